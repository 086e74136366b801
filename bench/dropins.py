# SPDX-License-Identifier: Apache-2.0
"""Drop-ins against the libraries they stand for: ``python -m pycl.bench.dropins [--sizes 128,512] [--json DIR]``.

Forward and backward, both in one process, in turn; each row's values and gradients are compared first. The peak memory
of either is that of a process of its own, at the largest size and the smallest width.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .measure.dropin_memory import inputs_of, module_of, peak
from .measure.timing import interleaved
from .present import record as records
from .present.program import finish, integers
from .suites.dropins import DIMS, DROPINS, SIZES, DropIn
from .workloads.baselines import declare_torchvision
from .workloads.workload import step_of

SECONDS = 4.0
TOLERANCE = 1e-3  # of the largest entry, float32


def measure(dropin: DropIn, dim: int, size: int, theirs: Any, seconds: float) -> dict[str, Any]:
    """One row: times of ours and, where its memory allows, the peer's, after their answers were compared."""
    inputs = inputs_of(dropin, dim, size)
    ours = step_of(dropin.make(module_of(dropin, "ours")), inputs)
    steps: dict[str, Callable[[], Any]] = {"ours": ours}
    answer = ours()
    if size <= dropin.largest:
        steps["peer"] = step_of(dropin.make(theirs), inputs)
        for mine, right in zip(answer, steps["peer"](), strict=True):
            apart = float((mine - right).abs().max() / right.abs().max())
            if not apart <= TOLERANCE:
                row = f"{dropin.name}, d = {dim}, N = {size}"
                raise AssertionError(f"{row}: {apart:.2g} from the peer, limit {TOLERANCE:g}")
    times = interleaved(steps, seconds=seconds)
    time_s = {name: time._asdict() for name, time in times.items()}
    return {"name": dropin.name, "dim": dim, "size": size, "time_s": time_s}


def peaks(dropin: DropIn, dim: int, size: int) -> dict[str, float]:
    """MiB of ours and, where its memory allows, the peer's."""
    sides = ("ours", "peer") if size <= dropin.largest else ("ours",)
    return {side: peak(dropin, dim, size, side) for side in sides}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every library that is installed."""
    parser = argparse.ArgumentParser(prog="python -m pycl.bench.dropins", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--sizes", type=integers, default=SIZES, metavar="N,...")
    parser.add_argument("--dims", type=integers, default=DIMS, metavar="d,...")
    parser.add_argument("--only", default="", metavar="TEXT", help="drop-ins with this in their name")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"spent on a row (default {SECONDS:g})")
    parser.add_argument("--json", type=Path, metavar="DIR", help="write the record there as cpu-dropins.json")
    arguments = sys.argv[1:] if argv is None else argv
    options = parser.parse_args(arguments)
    declare_torchvision()
    record = records.new_record("dropins", " ".join(["python -m pycl.bench.dropins", *records.repeatable(arguments)]))
    record["peers"] = {}
    for dropin in (dropin for dropin in DROPINS if options.only in dropin.name):
        try:
            theirs = importlib.import_module(dropin.peer)
        except ImportError as error:
            record["peers"][dropin.distribution] = {"version": None, "why_not": str(error)}
            continue
        version = importlib.metadata.version(dropin.distribution)
        record["peers"][dropin.distribution] = {"version": version, "why_not": None}
        for dim, size in itertools.product(options.dims, options.sizes):
            print(f"{dropin.name}, d = {dim}, N = {size}", file=sys.stderr)
            row = measure(dropin, dim, size, theirs, options.seconds)
            if (dim, size) == (min(options.dims), max(options.sizes)):
                row["peak_mib"] = peaks(dropin, dim, size)
            record["rows"].append(row)
    finish(record, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
