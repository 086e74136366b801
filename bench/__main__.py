# SPDX-License-Identifier: Apache-2.0
"""Speed and memory against dense PyTorch: ``python -m pycl.bench [--suite losses | sinkhorn | gpu] [--quick]``.

Every row is checked against float64 first and has no times if it is wrong. ``--suite gpu`` measures the first CUDA GPU,
against its own matmul rate and the peers that are installed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from . import gpu, gpu_plot, gpu_report, gpu_suite, plot, report, runner
from .gpu_rows import GPU_ROWS
from .gpu_worker import Died
from .rows import LOSS_ROWS, SINKHORN_ROWS, Row

Record = dict[str, Any]
SUITES: dict[str, tuple[Row, ...]] = {"losses": LOSS_ROWS, "sinkhorn": SINKHORN_ROWS, "gpu": GPU_ROWS}
EVERYONE = (*runner.FORMS, "compile", "peers")
BASELINES = {"losses": ("eager", "compile"), "sinkhorn": EVERYONE, "gpu": EVERYONE}
NOT_REPEATED = ("--json", "--csv", "--plot", "--commit")  # the business of who ran it
QUICK_DIVISOR = 8
SECONDS, QUICK_SECONDS = {"losses": 10.0, "sinkhorn": 10.0, "gpu": 2.0}, 1.0
GPU_BUDGET = 560.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns 1 where a row was refused, 2 where nothing can be measured."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib")
    try:
        rows = select(options.suite, options.rows, options.sizes, options.quick)
    except ValueError as error:
        parser.error(str(error))
    on_gpu = options.suite == "gpu"
    # compiling alone takes longer than a quick run may
    baselines = options.baselines or (("eager",) if options.quick else BASELINES[options.suite])
    if unknown := set(baselines) - set(BASELINES[options.suite]):
        parser.error(f"--baselines: suite {options.suite} has no {unknown.pop()}")
    if on_gpu and not gpu_suite.compared_with(baselines, rows):
        parser.error(
            f"--rows: {rows[0].name} compares with {', '.join(rows[0].baselines or ())} alone; see --baselines"
        )
    if options.budget and not on_gpu:
        parser.error("--budget is for --suite gpu")
    if on_gpu and (reason := gpu.why_not()):
        print(f"pycl.bench: --suite gpu cannot run: {reason}", file=sys.stderr)
        return 2
    options.seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS[options.suite])

    record = report.new_record(options.suite, _repeatable(arguments), options.commit)
    with _fresh_compiler_cache():
        try:
            (_run_on_gpu if on_gpu else _run)(record, rows, baselines, options)
        except Died as reason:
            print(f"pycl.bench: --suite gpu cannot run: {reason}", file=sys.stderr)
            return 2
    _progress("")
    print((gpu_report if on_gpu else report).table(record))
    if "compile" not in baselines:
        print("torch.compile was not measured (--baselines eager,compile does)")
    _write_json(record, options)
    if options.csv:
        report.append_csv(record, options.csv)
    if options.plot:
        path = (gpu_plot if on_gpu else plot).draw(record, options.plot)
        print(f"wrote {path}" if path else "nothing was drawn: fewer than two sizes have a time")
    return int(any(row["refused"] for row in (*record["rows"], *record["sweep"])))


def _run(record: Record, rows: Sequence[Row], baselines: Sequence[str], options: argparse.Namespace) -> None:
    found = runner.find_peers(record, rows, baselines)
    for row in rows:
        _progress(row.label)
        record["rows"].append(runner.measure(row, baselines, found, seconds=options.seconds, rounds=options.repeats))
    if options.plot:
        sizes = options.sizes or (plot.QUICK_SIZES if options.quick else plot.SIZES)
        _progress(f"sweep of {rows[0].name}")
        record["sweep"] = plot.sweep(rows[0], sizes, seconds=options.seconds / 5, rounds=options.repeats)


def _run_on_gpu(record: Record, rows: Sequence[Row], baselines: Sequence[str], options: argparse.Namespace) -> None:
    def progress(text: str) -> None:
        _progress(text)
        if record["rows"]:
            _write_json(record, options)  # what was measured survives whatever a foreign kernel does

    budget = options.budget or GPU_BUDGET
    timing = {"seconds": options.seconds, "rounds": options.repeats}
    gpu_suite.run(record, rows, baselines, budget=budget, progress=progress, **timing)


def _write_json(record: Record, options: argparse.Namespace) -> None:
    """Into the file, or into a folder under the name of what was measured."""
    if options.json:
        cpu = "cpu" if record["suite"] == "losses" else f"cpu-{record['suite']}"
        name = gpu.file_name(record["gpu"]["name"]) if "gpu" in record else cpu
        path = options.json / f"{name}.json" if options.json.is_dir() else options.json
        path.write_text(json.dumps(record, indent=1) + "\n")


def _repeatable(arguments: Sequence[str]) -> list[str]:
    """The arguments without those that say nothing about what is measured."""
    kept = []
    rest = iter(arguments)
    for argument in rest:
        if argument in NOT_REPEATED:
            next(rest)
        elif not argument.startswith(tuple(f"{name}=" for name in NOT_REPEATED)):
            kept.append(argument)
    return kept


def select(suite: str, patterns: Sequence[str] | None, sizes: Sequence[int] | None, quick: bool) -> list[Row]:
    """The suite's rows whose name matches one of the patterns, at the sizes asked for."""
    known = SUITES[suite]
    rows = [row for row in known if any(fnmatch(row.name, pattern) for pattern in patterns or ("*",))]
    if not rows:
        raise ValueError(f"no row matches --rows; there are {', '.join(row.name for row in known)}")
    if sizes:
        return [row.at(size) for row in rows for size in sizes]
    return [row.at(min(row.size, max(256, row.size // QUICK_DIVISOR))) for row in rows] if quick else rows


@contextlib.contextmanager
def _fresh_compiler_cache() -> Iterator[None]:
    """Have torch.compile start from nothing, as a user does: its first call is reported."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch")  # inductor's own
        os.environ[name] = folder
        try:
            yield
        finally:
            os.environ.pop(name) if before is None else os.environ.update({name: before})


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pycl.bench", description=(__doc__ or "").split(":")[0])
    add = parser.add_argument
    add("--quick", action="store_true", help=f"1/{QUICK_DIVISOR} of the sizes, no torch.compile: less than a minute")
    add("--suite", choices=SUITES, default="losses")
    add("--rows", type=_names, metavar="NAME,...", help="only these; * matches anything")
    add(
        "--sizes",
        type=_sizes,
        metavar="N,...",
        help="rows of the similarity matrix, or samples, in place of each row's own",
    )
    add("--baselines", type=_names, metavar="NAME,...", help=f"what to compare with: {', '.join(EVERYONE)}")
    defaults = ", ".join(f"{name}: {seconds:g}" for name, seconds in SECONDS.items())
    add("--seconds", type=float, help=f"spent on the timing of a row (default {defaults}), at least three rounds")
    add(
        "--budget",
        type=float,
        help=f"seconds of the whole suite gpu (default {GPU_BUDGET:g}); rows beyond it are listed",
    )
    add("--repeats", type=int, help="exactly this many rounds a row instead")
    add("--threads", type=int)
    add(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the record; into a folder, under the name of the GPU or as cpu.json, cpu-sinkhorn.json",
    )
    add("--csv", type=Path, metavar="FILE", help="append one line for every provider and metric")
    add("--plot", type=Path, metavar="DIR", help="draw it; on a CPU the first row, at many sizes that are measured too")
    add("--commit", metavar="HASH", help="what was measured, where it is not a git checkout")
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(int(part) for part in _names(text))
    if not sizes or min(sizes) < 4:
        raise argparse.ArgumentTypeError(f"sizes must be integers of at least 4, got {text!r}")
    return sizes


if __name__ == "__main__":
    sys.exit(main())
