# SPDX-License-Identifier: Apache-2.0
"""Speed and memory against dense PyTorch: ``python -m pycl.bench [--suite NAME] [--quick]``.

The suites are "losses", "modifiers", "objectives" and "sinkhorn", on a CPU, and "gpu". Every case is checked against
float64 first and has no times if it is wrong. ``--suite gpu`` measures the first CUDA GPU, against its own matmul rate
and the peers that are installed. ``--base REF`` compares with another commit instead.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

import pycl

from .base import build, compare
from .base.compare import Pair
from .measure.device import Device
from .measure.runner import Plan
from .measure.suite import DEVICES, compared_with, run
from .measure.sweep import QUICK_SIZES, SIZES, sweep
from .measure.worker import Died
from .present import against, plots
from .present import record as records
from .present.text import text
from .suites.case import Case
from .suites.gpu import GPU_CASES
from .suites.losses import LOSS_CASES
from .suites.modifiers import MODIFIER_CASES
from .suites.objectives import OBJECTIVE_CASES
from .suites.sinkhorn import SINKHORN_CASES
from .workloads.registry import FORMS

Record = dict[str, Any]
SUITES: dict[str, tuple[Case, ...]] = {
    "losses": LOSS_CASES,
    "modifiers": MODIFIER_CASES,
    "objectives": OBJECTIVE_CASES,
    "sinkhorn": SINKHORN_CASES,
    "gpu": GPU_CASES,
}
EVERYONE = (*FORMS, "compile", "peers")
EAGER = ("eager", "compile")
SWEPT = ("eager", "compile", "peers")  # who is drawn beside ours
BASELINES = {"losses": EAGER, "modifiers": EVERYONE, "objectives": EAGER, "sinkhorn": EVERYONE, "gpu": EVERYONE}
NOT_WITH_BASE = ("--baselines", "--json", "--csv", "--plot", "--commit", "--budget")
QUICK_DIVISOR = 8
ASKED_FOR = {name: {*names, "peers"} for name, names in BASELINES.items()}  # with --baselines
SECONDS = {"losses": 10.0, "modifiers": 10.0, "objectives": 3.0, "sinkhorn": 10.0, "gpu": 2.0}
QUICK_SECONDS = 0.5
QUICK_BUDGET = 40.0  # beside the time that torch's import takes: less than a minute
GPU_BUDGET = 560.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns 1 where a case was refused, 2 where nothing can be measured."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        cases = select(options.suite, options.rows, options.sizes, options.quick)
    except ValueError as error:
        parser.error(str(error))
    # compiling alone takes longer than a quick run may
    baselines = options.baselines or (("eager",) if options.quick else BASELINES[options.suite])
    if reason := _contradiction(options, cases, baselines):
        parser.error(reason)
    device = DEVICES[cases[0].device]
    if reason := device.why_not():
        return _cannot_run(f"--suite {options.suite}", reason)
    seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS[options.suite])
    plan = Plan(tuple(baselines), seconds, options.repeats)
    command = " ".join(["python -m pycl.bench", *records.repeatable(arguments)])
    if options.base is not None:
        return _against(options, command, cases, plan)
    record = records.new_record(options.suite, command, options.commit)
    with _fresh_compiler_cache():
        try:
            _run(record, cases, plan, device, options)
        except Died as died:
            return _cannot_run(f"--suite {options.suite}", str(died))
    _progress("")
    print(text(record))
    if "compile" not in baselines:
        print("torch.compile was not measured (--baselines eager,compile does)")
    _write(record, options)
    return int(any(row["refused"] for row in (*record["rows"], *record["sweep"])))


def _contradiction(options: argparse.Namespace, cases: Sequence[Case], baselines: Sequence[str]) -> str | None:
    """What is wrong with options that are right one by one."""
    if options.base is not None:
        given = [name for name in NOT_WITH_BASE if getattr(options, name.removeprefix("--")) is not None]
        if given:
            return f"{given[0]} is not for --base, which compares two builds with each other"
        if options.suite == "gpu":
            return "--base is for suites on a CPU, not for --suite gpu"
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        return "--plot needs matplotlib: pip install matplotlib"
    for name, path in (("--json", options.json), ("--csv", options.csv)):
        if path and not path.parent.is_dir():
            return f"{name}: there is no folder {path.parent}"
    if options.csv and (reason := records.why_no_csv(options.csv)):
        return f"--csv: {reason}"
    if unknown := set(baselines) - ASKED_FOR[options.suite]:
        return f"--baselines: suite {options.suite} has no {unknown.pop()}"
    if not compared_with(baselines, cases):
        return f"--rows: {cases[0].name} compares with {', '.join(cases[0].baselines or ())} alone; see --baselines"
    if options.budget and options.suite != "gpu":
        return "--budget is for --suite gpu"
    return None


def _cannot_run(argument: str, reason: str) -> int:
    print(f"pycl.bench: {argument} cannot run: {reason}", file=sys.stderr)
    return 2


def _against(options: argparse.Namespace, command: str, cases: Sequence[Case], plan: Plan) -> int:
    """Compare with another commit; as ``main``."""
    root = Path(pycl.__file__).parent.parent
    try:
        base = build.built(options.base, root)
    except build.CannotBuild as error:
        return _cannot_run(f"--base {options.base}", str(error))
    record = records.new_record(options.suite, command) | {"base": base._asdict()}
    compare.run(record, cases, plan, Pair({compare.BASE: base.folder, compare.NOW: root}), _progress)
    _progress("")
    print(against.text(record))
    return int(any(row["refused"] for row in record["rows"]))


def _run(record: Record, cases: Sequence[Case], plan: Plan, device: Device, options: argparse.Namespace) -> None:
    def progress(label: str) -> None:
        _progress(label)
        if record["rows"] and options.json:
            records.write_json(record, options.json)  # what was measured survives whatever a foreign kernel does

    limit = GPU_BUDGET if options.suite == "gpu" else QUICK_BUDGET if options.quick else None
    run(record, cases, plan, device, budget=options.budget or limit, progress=progress)
    if options.plot and options.suite != "gpu":
        sizes = options.sizes or (QUICK_SIZES if options.quick else SIZES)
        names = options.baselines or (SWEPT if "compile" in plan.baselines else ("eager", "peers"))
        _progress(f"sweep of {cases[0].name}")
        swept = Plan(tuple(names), plan.seconds / 5, plan.rounds)
        record["sweep"], peers = sweep(cases[0], sizes, swept, device)
        record["peers"] |= peers


def _write(record: Record, options: argparse.Namespace) -> None:
    if options.json:
        records.write_json(record, options.json)
    if options.csv:
        records.append_csv(record, options.csv)
    if options.plot:
        path = plots.draw(record, options.plot)
        print(f"wrote {path}" if path else "nothing was drawn: fewer than two sizes have a time")


def select(suite: str, patterns: Sequence[str] | None, sizes: Sequence[int] | None, quick: bool) -> list[Case]:
    """The suite's cases whose name matches one of the patterns, at the sizes asked for."""
    known = SUITES[suite]
    cases = [case for case in known if any(fnmatch(case.name, pattern) for pattern in patterns or ("*",))]
    if not cases:
        raise ValueError(f"no row matches --rows; there are {', '.join(case.name for case in known)}")
    if sizes:
        return [case.at(size) for case in cases for size in sizes]
    if quick:
        small = (case.at(min(case.size, max(256, case.size // QUICK_DIVISOR))) for case in cases)
        return list({case.label + case.measure: case for case in small}.values())  # some are alike now
    return cases


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
    quick = f"1/{QUICK_DIVISOR} of the sizes, no torch.compile, no row that would begin after {QUICK_BUDGET:.0f} s"
    add("--quick", action="store_true", help=f"{quick}: less than a minute without --plot")
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
    add(
        "--base", metavar="REF", help="compare our own steps with those of this commit, which is built once, in a cache"
    )
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
    add(
        "--csv",
        type=Path,
        metavar="FILE",
        help="append one line for every provider and metric; docs/bench.md says what the columns are",
    )
    drawn = "at many sizes that are measured too, beside eager, torch.compile and the libraries that are installed"
    add("--plot", type=Path, metavar="DIR", help=f"draw it; on a CPU the first row, {drawn}")
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
