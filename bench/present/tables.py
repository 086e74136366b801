# SPDX-License-Identifier: Apache-2.0
"""The tables of a record, the paragraph that says what it was measured on, and what a reader must know besides.

All suites share the columns of times. A CPU's row has the bare operation G beside them, a GPU's row its floor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from ..suites.case import Case
from ..workloads.baselines import PEERS
from ..workloads.registry import FORMS, WORKLOADS
from ..workloads.workload import Workload
from . import dropins, figures, training, transformers
from .figures import Row

BUSY = 0.5  # load average a core before the run from which its times mean little
BOTH_WAYS = 2  # competitors up to which a table has room for their times in G beside how many times as fast ours is
MEMORY_UNITS: dict[str, Callable[[Row], float]] = {  # in MiB
    "GiB": lambda row: 2.0**10,
    "scores": lambda row: float(row["matrix_mib"]),
}
OWN_COLUMNS: dict[str, Any] = {"dropins": dropins, "training": training, "transformers": transformers}  # of suites
Record = Mapping[str, Any]


class Table(NamedTuple):
    title: str
    columns: tuple[str, ...]
    cells: list[list[str]]


class Column(NamedTuple):
    title: str
    cell: Callable[[Row], str]


LABEL = Column("row", lambda row: str(row["label"]))
OURS = Column("ours (ms)", lambda row: figures.spread(row["time_s"].get("ours")))
MEDIAN = Column("ours (ms)", lambda row: figures.milliseconds(figures.seconds_of(row)))


def table(title: str, columns: Sequence[Column], rows: Iterable[Row]) -> Table:
    """A row that was refused says so in every cell."""
    first, *others = columns
    cells = [
        [first.cell(row), *("refused" if row.get("refused") else column.cell(row) for column in others)] for row in rows
    ]
    return Table(title, tuple(column.title for column in columns), cells)


def tables(record: Record, narrow: bool = False) -> list[Table]:
    """Tables of times, then of memory, each of what is measured alike.

    ``narrow`` leaves out quartiles, what others take in G, and how long compiling took: for a terminal.
    """
    if own := OWN_COLUMNS.get(record["suite"]):
        return [table(own.TITLE, [Column(*column) for column in own.columns()], record["rows"])]
    timed = [row for row in record["rows"] if row["measure"] != "memory"]
    memory = [row for row in record["rows"] if row["measure"] == "memory"]
    found = [
        table(_title(record, rows, narrow), _times(record, rows, narrow), rows)
        for rows in _alike(timed, lambda w: w.what)
    ]
    found += [table(_workload(rows[0]).memory, _memory(rows), rows) for rows in _alike(memory, lambda w: w.memory)]
    small = [row for row in timed if row.get("launches")]
    if small:
        found.append(table("Launches of one step, and the time the host needs to issue it", SMALL, small))
    return found


def _workload(row: Row) -> Workload:
    return WORKLOADS[row["loss"]]


def _alike(rows: Iterable[Row], key: Callable[[Workload], str]) -> list[list[Row]]:
    """Rows with the same key, in the order they come."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(key(_workload(row)), []).append(row)
    return list(found.values())


def _title(record: Record, rows: Sequence[Row], narrow: bool) -> str:
    workload, medians = _workload(rows[0]), "medians" if narrow else "medians (quartiles)"
    if "roofline" not in record:
        return f"{workload.what}; G is {workload.bare}; {medians}"
    floors = {row["loss"]: floor for row in rows if (floor := _workload(row).floor)}
    least = f" ({'; '.join(f'{loss}: {floor}' for loss, floor in floors.items())})" if floors else ""
    return (
        f"{workload.what}; the floor is what the least work of a step{least} takes at the rate of one large torch.mm "
        "of the same format, or of one large copy, in the same run; memory is the peak beyond inputs and answer; "
        f"{medians}"
    )


def _times(record: Record, rows: Sequence[Row], narrow: bool) -> list[Column]:
    measured = {name for row in rows for name in row.get("time_s", ()) if name not in ("ours", "G")}
    order = dict.fromkeys((*FORMS, "compile", *(name for row in rows for name in row.get("time_s", ()))))
    others = [name for name in order if name in measured]
    ours = MEDIAN if narrow else OURS
    if "roofline" in record:
        columns = [LABEL, ours, *_on_gpu(record["roofline"])]
    else:
        columns = [LABEL, *_on_cpu(ours, [] if narrow or len(others) > BOTH_WAYS else others)]
    columns += [Column(f"vs {name}", partial(_versus, name)) for name in others]
    if "compile" in measured and not narrow:
        columns.append(Column("compiling (s)", _compiling))
    return columns


def _on_cpu(ours: Column, others: Sequence[str]) -> list[Column]:
    def in_g(name: str, form: str) -> Column:
        return Column(f"{name} (G)", lambda row: figures.formatted(figures.ratio(row, name, "G"), form))

    g = Column("G (ms)", lambda row: figures.milliseconds(figures.seconds_of(row, "G")))
    return [g, ours, in_g("ours", ".2f"), *(in_g(name, ".1f") for name in others)]


def _on_gpu(rates: Mapping[str, float]) -> list[Column]:
    def memory(row: Row) -> str:
        mib = row.get("extra_mib", {}).get("ours")
        megabytes = None if mib is None else mib * 2**20 / 1e6
        return figures.formatted(megabytes, ".3g" if megabytes and megabytes < 100 else ".0f")

    return [
        Column("floor (ms)", lambda row: figures.milliseconds(figures.floor_seconds(row, rates))),
        Column("share of roofline", lambda row: figures.formatted(figures.share_of_roofline(row, rates), ".0%")),
        Column("memory (MB)", memory),
    ]


def _versus(name: str, row: Row) -> str:
    return figures.times(figures.ratio(row, name, "ours"), row.get("wrong", {}).get(name))


def _compiling(row: Row) -> str:
    return figures.formatted(row["first_call_s"].get("compile"), ".0f")


def _memory(rows: Sequence[Row]) -> list[Column]:
    unit = _workload(rows[0]).memory_unit

    def peak(provider: str, row: Row) -> float | None:
        mib = row["peak_mib"].get(provider)
        return None if mib is None else mib / MEMORY_UNITS[unit](row)

    def eager(row: Row) -> str:
        scaled = "~" if row.get("eager_measured_at", row["size"]) < row["size"] else ""
        return scaled + figures.formatted(peak("eager", row), ".3g")

    return [
        LABEL,
        Column(f"peak ({unit})", lambda row: figures.formatted(peak("ours", row), ".3f")),
        Column(f"eager ({unit})", eager),
        Column("step (s)", lambda row: f"{row['seconds']['ours']:.1f}"),
    ]


def _small(title: str, cell: Callable[[str, Row], str]) -> list[Column]:
    return [Column(title.format(name), partial(cell, name)) for name in ("ours", "eager")]


SMALL = (
    LABEL,
    *_small("{} (ms)", lambda name, row: figures.milliseconds(figures.seconds_of(row, name))),
    *_small("launches, {}", lambda name, row: figures.formatted(row["launches"].get(name))),
    *_small("host, {} (ms)", lambda name, row: figures.milliseconds(row["host_s"].get(name))),
)


def header(record: Record) -> str:
    """Versions and machine in one paragraph."""
    backends = {row["backend"] for row in (*record["rows"], *record["sweep"]) if row.get("backend")}
    used = ", ".join(sorted(backends)) or ("none" if "gpu" in record else "cpu")
    versions = f"torch {record['torch']['version']}, Python {record['python']}"
    facts = [
        f"pycl {record['pycl']} ({record['commit'] or 'no commit'}), backend {used}",
        *(_gpu_facts(record["gpu"], versions) if "gpu" in record else _cpu_facts(record, versions)),
        record["timestamp"],
    ]
    return "; ".join(facts)


def _cpu_facts(record: Record, versions: str) -> list[str]:
    cpu, threads = record["cpu"], record["threads"]
    return [
        versions,
        f"{cpu['model']}, instruction set {cpu['isa'] or 'none'}, AMX: {cpu['amx']}",
        f"threads: {threads['count']}, cores: {threads['usable_cores']}",
        'float32 matmul precision "highest" unless a row says otherwise',
    ]


def _gpu_facts(gpu: Mapping[str, Any], versions: str) -> list[str]:
    return [
        f"{versions}, Triton {gpu['triton'] or 'none'}",
        f"{gpu['name']}, {gpu['memory_gib']:.0f} GiB, {gpu['multiprocessors']} multiprocessors",
        f"driver {gpu['driver'] or 'unknown'}, CUDA {gpu['cuda']}",
    ]


def remarks(record: Record) -> list[str]:
    """What a reader of the tables must know besides."""
    rows = record["rows"]
    found = _rates(record.get("roofline", {}))
    found += [f"{row['label']}: {note}" for row in rows for note in row.get("notes", ())]
    found += [f"REFUSED {row['label']}: {row['refused']}" for row in rows if row.get("refused")]
    found += peer_remarks(record)
    found += _skipped(rows)
    found += [f"not reached: {row['label']}, {row['reason']}" for row in record.get("not_reached", ())]
    load = record.get("load_average") or 0
    if load and load > BUSY * record["threads"]["usable_cores"]:
        found.append(f"other programs kept the machine busy (load average {load:.1f} at the start)")
    return found


def _rates(roofline: Mapping[str, float]) -> list[str]:
    if not roofline:
        return []
    rates = [f"{rate / 1e12:.3g} TFLOP/s in {name}" for name, rate in roofline.items() if name != "copy"]
    return [f"rates measured in the same run: {'; '.join(rates)}; copy {roofline['copy'] / 1e12:.3g} TB/s"]


def peer_remarks(record: Record) -> list[str]:
    peers = record.get("peers", {})
    used = [f"{name} {peer['version']}" for name, peer in peers.items() if peer["why_not"] is None]
    absent = [f"peer {name}: {peer['why_not']}" for name, peer in peers.items() if peer["why_not"]]
    return [*([f"peers: {', '.join(used)}"] if used else []), *absent]


def _skipped(rows: Sequence[Row]) -> list[str]:
    """Providers without a time and why, with the rows where that is so."""
    labels: dict[str, list[str]] = {}
    for row in rows:
        for provider, reason in row.get("skipped", {}).items():
            labels.setdefault(f"{provider} has no time: {reason}", []).append(row["label"])
    return [f"{reason} ({'; '.join(names)})" for reason, names in labels.items()]


def unmeasured(cases: Sequence[Case]) -> Table:
    """What a run would measure, and with whom it would compare."""
    found: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        found.setdefault((case.loss, case.format), []).append(case)
    cells = [[f"{loss}, {kind}", _shapes(rows), ", ".join(_compared(rows))] for (loss, kind), rows in found.items()]
    title = (
        "No case is measured yet; a run will take these, Sinkhorn and potentials forward alone, losses with gradients"
    )
    return Table(title, ("workload", "width: rows", "compared with"), cells)


def _shapes(cases: Sequence[Case]) -> str:
    sizes: dict[int, set[int]] = {}
    for case in cases:
        sizes.setdefault(case.dim, set()).add(case.size)
    return "; ".join(f"{dim}: {', '.join(map(str, sorted(rows)))}" for dim, rows in sorted(sizes.items()))


def _compared(cases: Sequence[Case]) -> list[str]:
    names = {name for case in cases for name in case.baselines or ()}
    peers = [peer.name for peer in PEERS if peer.loss == cases[0].loss and "peers" in names]
    return [*(name for name in (*FORMS, "compile") if name in names), *peers]
