# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of the losses against dense PyTorch: ``python -m pycl.bench [--quick]``.

Every row is checked against float64 first and has no times if it is wrong.
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

import torch

from . import plot, report, runner
from .losses import SUITES, Row

OUTPUTS = ("--json", "--csv", "--plot")
QUICK_DIVISOR = 8
SECONDS, QUICK_SECONDS = 10.0, 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns 1 where a row was refused."""
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
    # compiling alone takes longer than a quick run may
    baselines = options.baselines or (("eager",) if options.quick else runner.BASELINES)
    seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)

    record = report.new_record(options.suite, _repeatable(arguments))
    with _fresh_compiler_cache():
        for row in rows:
            _progress(row.label)
            record["rows"].append(runner.measure(row, baselines, seconds=seconds, rounds=options.repeats))
        if options.plot:
            sizes = options.sizes or (plot.QUICK_SIZES if options.quick else plot.SIZES)
            _progress(f"sweep of {rows[0].name}")
            record["sweep"] = plot.sweep(rows[0], sizes, seconds=seconds / 5, rounds=options.repeats)
    _progress("")
    print(report.table(record))
    if "compile" not in baselines:
        print("torch.compile was not measured (--baselines eager,compile does)")
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    if options.csv:
        report.append_csv(record, options.csv)
    if options.plot:
        print(f"wrote {plot.draw(record, options.plot)}")
    return int(any(row["refused"] for row in (*record["rows"], *record["sweep"])))


def _repeatable(arguments: Sequence[str]) -> list[str]:
    """The arguments without those that name a file: they are the business of who ran it."""
    kept = []
    rest = iter(arguments)
    for argument in rest:
        if argument in OUTPUTS:
            next(rest)
        elif not argument.startswith(tuple(f"{name}=" for name in OUTPUTS)):
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
    return [row.at(max(256, row.size // QUICK_DIVISOR)) for row in rows] if quick else rows


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
    add("--sizes", type=_sizes, metavar="N,...", help="rows of the similarity matrix, in place of each row's own")
    add("--baselines", type=_baselines, metavar="eager,compile", help="what to compare with")
    add("--seconds", type=float, help=f"spent on the timing of a row (default {SECONDS:g}), at least three rounds")
    add("--repeats", type=int, help="exactly this many rounds a row instead")
    add("--threads", type=int)
    add("--json", type=Path, metavar="FILE", help="write the record")
    add("--csv", type=Path, metavar="FILE", help="append one line for every provider and metric")
    add("--plot", type=Path, metavar="DIR", help="also measure the first row at many sizes and draw it")
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(int(part) for part in _names(text))
    if not sizes or min(sizes) < 4:
        raise argparse.ArgumentTypeError(f"sizes must be integers of at least 4, got {text!r}")
    return sizes


def _baselines(text: str) -> tuple[str, ...]:
    names = _names(text)
    if unknown := set(names) - set(runner.BASELINES):
        raise argparse.ArgumentTypeError(f"unknown baseline {unknown.pop()!r}; there are {', '.join(runner.BASELINES)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
