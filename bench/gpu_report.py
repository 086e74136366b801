# SPDX-License-Identifier: Apache-2.0
"""What a run on a GPU says, and what the README says where there was none: "not measured"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from . import runner
from .gpu_rows import GPU_ROWS
from .report import Table, layout, marked, milliseconds, peer_remarks
from .rows import Goals

MISSING = "not measured"
NOT_APPLICABLE = "-"
COMPARED = ("eager", "compile", "inf-cl", "memeff", "siglip-kernel")
COLUMNS = (
    "row", "ours (ms)", "floor (ms)", "share of roof", "memory (MB)", *(f"vs {name}" for name in COMPARED), "target",
    "met",
)  # fmt: skip
PROVIDERS_TITLE = "Milliseconds of one step; (off by) marks an answer too far from float64, relative to its length"
SMALL_COLUMNS = ("row", "ours (ms)", "eager (ms)", "launches", "of eager", "host (ms)", "of eager")


def header(record: dict[str, Any]) -> str:
    """Versions and machine in one paragraph."""
    gpu = record["gpu"]
    backend = ", ".join(sorted({row["backend"] for row in record["rows"] if row["backend"]}))
    facts = [
        f"{gpu['name']}, {gpu['memory_gib']:.0f} GiB, {gpu['multiprocessors']} multiprocessors",
        f"driver {gpu['driver'] or 'unknown'}, CUDA {gpu['cuda']}",
        f"pycl {record['pycl']} ({record['commit'] or 'no commit'}), backend {backend or 'none'}",
        f"torch {record['torch']['version']}, Triton {gpu['triton'] or 'none'}, Python {record['python']}",
        record["timestamp"],
    ]
    return "; ".join(facts)


def seconds_of(row: Mapping[str, Any], provider: str = "ours") -> float | None:
    timing = row.get("time_s", {}).get(provider)
    return None if timing is None else float(timing["median"])


def floor_seconds(row: Mapping[str, Any], roofs: Mapping[str, float]) -> float:
    """What the least operations of a step take at the rate of a bare matrix product, or its bytes at that of a copy."""
    return float(max(row["floor_flop"] / roofs[row["format"]], row["floor_bytes"] / roofs["copy"]))


def share_of_roof(row: Mapping[str, Any], roofs: Mapping[str, float]) -> float | None:
    seconds = seconds_of(row)
    return None if seconds is None else floor_seconds(row, roofs) / seconds


def megabytes(row: Mapping[str, Any]) -> float | None:
    """What a step needs at most beyond its inputs and what it returns."""
    mib = row.get("extra_mib", {}).get("ours")
    return None if mib is None else mib * 2**20 / 1e6


def gain(row: Mapping[str, Any], provider: str) -> float | None:
    """How many times as fast as another provider ours is."""
    ours, other = seconds_of(row), seconds_of(row, provider)
    return None if ours is None or other is None else other / ours


def parts_met(row: Mapping[str, Any], roofs: Mapping[str, float]) -> dict[str, bool | None]:
    """Every part of a row's target by name, reached or not; ``None`` where it was not measured."""
    target = row["target"] or asdict(Goals())
    found: dict[str, bool | None] = {}
    if target["microseconds"] is not None:
        seconds = seconds_of(row)
        found["time"] = None if seconds is None else seconds <= target["microseconds"] / 1e6
    if target["share"] is not None:
        share = share_of_roof(row, roofs)
        found["roof"] = None if share is None else share >= target["share"]
    if target["megabytes"] is not None:
        memory = megabytes(row)
        found["memory"] = None if memory is None else memory <= target["megabytes"]
    for provider, factor in target["faster"]:
        times = gain(row, provider)
        found[provider] = None if times is None else times >= factor
    return dict.fromkeys(found, False) if row.get("refused") else found


def is_met(row: Mapping[str, Any], roofs: Mapping[str, float]) -> bool | None:
    """Whether all that was measured of a target was reached; ``None`` without a target or a measurement."""
    known = [part for part in parts_met(row, roofs).values() if part is not None]
    return all(known) if known else None


def met_text(row: Mapping[str, Any], roofs: Mapping[str, float]) -> str:
    parts = parts_met(row, roofs)
    if not parts:
        return NOT_APPLICABLE
    if all(part is None for part in parts.values()):
        return MISSING
    missed = [name for name, met in parts.items() if met is False]
    unknown = [name for name, met in parts.items() if met is None]
    return f"no: {', '.join(missed)}" if missed else "yes" + (f", {', '.join(unknown)} {MISSING}" if unknown else "")


def table(record: dict[str, Any]) -> str:
    """The record as text for a terminal."""
    return layout(header(record), tables(record), remarks(record))


def tables(record: dict[str, Any]) -> list[Table]:
    """Title, columns and cells: rows with and without a target, everyone's times, what small batches are made of."""
    rows, roofs = record["rows"], record["roofs"]
    promised = [_figures(row, roofs) for row in (*rows, *record["not_reached"]) if _is_promised(row)]
    others = [_figures(row, roofs)[:-2] for row in rows if not _is_promised(row)]
    title = (
        "Forward and backward; the roof is the rate of one large torch.mm in the same format and run, the floor what "
        "the least operations of a step (8 N² d for CLIP, 6 N² d for SigLIP, 4 N² d for NT-Xent) take at that rate; "
        "Sinkhorn is forward alone, its roof the rate of one large copy, its floor one read of the scores for each "
        "iteration and for the codes, which are written; memory is the peak beyond the inputs and the gradients or "
        "codes; medians (quartiles)"
    )
    timed = [row for row in rows if len(row.get("time_s", ())) > 1]
    providers = list(dict.fromkeys(name for row in timed for name in (*row["time_s"], *row["skipped"])))
    times = [[row["label"], *(_time(row, name) for name in providers)] for row in timed]
    small = [_small(row) for row in rows if row.get("launches")]
    found = [
        (title, COLUMNS, promised),
        ("Other rows", COLUMNS[:-2], others),
        (PROVIDERS_TITLE, ("row", *providers), times),
        ("Launches of one step, and the time the host needs to issue it", SMALL_COLUMNS, small),
    ]
    return [part for part in found if part[2]]


def unmeasured() -> list[Table]:
    """The rows that someone waits for, without a single figure."""
    rows = [_figures(row, {}) for row in map(runner.describe, GPU_ROWS) if _is_promised(row)]
    return [("Targets on one NVIDIA H100 or H200, forward and backward, Sinkhorn forward alone", COLUMNS, rows)]


def _is_promised(row: Mapping[str, Any]) -> bool:
    return row["target"] is not None or row["measure"] == "one step"


def _figures(row: Mapping[str, Any], roofs: Mapping[str, float]) -> list[str]:
    ours, share, memory = seconds_of(row), share_of_roof(row, roofs), megabytes(row)
    missing = "refused" if row.get("refused") else MISSING
    gains = []
    for name in COMPARED:
        times = gain(row, name)
        targeted = name in dict(row["target"]["faster"] if row["target"] else ())
        gains.append(f"{times:.1f} x" if times is not None else missing if targeted else NOT_APPLICABLE)
    return [
        row["label"],
        missing if ours is None else _spread(row["time_s"]["ours"]),
        missing if ours is None else milliseconds(floor_seconds(row, roofs)),
        missing if share is None else f"{share:.0%}",
        missing if memory is None else f"{memory:.3g}" if memory < 100 else f"{memory:.0f}",
        *gains,
        row["target"]["text"] if row["target"] else NOT_APPLICABLE,
        met_text(row, roofs),
    ]


def _spread(timing: Mapping[str, float]) -> str:
    if timing["rounds"] == 1:
        return milliseconds(timing["median"])
    return "{} ({}-{})".format(*(milliseconds(timing[key]) for key in ("median", "q1", "q3")))


def _time(row: Mapping[str, Any], provider: str) -> str:
    seconds = seconds_of(row, provider)
    if seconds is None:
        return "none" if provider in row["skipped"] else NOT_APPLICABLE
    return marked(milliseconds(seconds), row["wrong"].get(provider))


def _small(row: Mapping[str, Any]) -> list[str]:
    times = [seconds_of(row, name) for name in ("ours", "eager")]
    counts = [row["launches"].get(name) for name in ("ours", "eager")]
    host = [row["host_s"].get(name) for name in ("ours", "eager")]
    return [
        row["label"],
        *(MISSING if t is None else milliseconds(t) for t in times),
        *(MISSING if n is None else str(n) for n in counts),
        *(MISSING if t is None else milliseconds(t) for t in host),
    ]


def remarks(record: dict[str, Any]) -> list[str]:
    """What a reader of the tables must know besides."""
    roofs = record["roofs"]
    rates = [f"{rate / 1e12:.3g} TFLOP/s in {name}" for name, rate in roofs.items() if name != "copy"]
    found = [f"roofs, measured in the same run: {'; '.join(rates)}; copy {roofs['copy'] / 1e12:.3g} TB/s"]
    found += peer_remarks(record)
    found += [f"REFUSED {row['label']}: {row['refused']}" for row in record["rows"] if row["refused"]]
    found += _skipped(record["rows"])
    found += [f"not reached: {row['label']}, {row['reason']}" for row in record["not_reached"]]
    return found


def _skipped(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Providers without a time and why, with the rows where that is so."""
    labels: dict[str, list[str]] = {}
    for row in rows:
        for provider, reason in row["skipped"].items():
            labels.setdefault(f"{provider} has no time: {reason}", []).append(row["label"])
    return [f"{reason} ({'; '.join(names)})" for reason, names in labels.items()]
