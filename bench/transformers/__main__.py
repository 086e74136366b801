# SPDX-License-Identifier: Apache-2.0
"""A step of CLIPModel with and without ``patch()``, and its memory: ``python -m pycl.bench.transformers``.

The times are taken in turn, in one process. A peak is that of one step in a fresh process, above the inputs. What the
loss takes of it is what a step without one, whose value is the mean of the embeddings, does not take; where a peak is
in the towers' backward, that may be less than nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..measure.timing import interleaved
from ..present import record as records
from ..present.program import finish, integers
from ..workloads.baselines import declare_torchvision
from .step import STEPS, inputs, model, peak, step_of

TOLERANCE = 1e-5  # of the value, float32


def measure(n: int, dim: int, seconds: float) -> dict[str, Any]:
    """One row: times of a step with either loss and of the towers alone, and their peaks."""
    clip, batch = model(dim), inputs(n)
    steps = {name: step_of(name, clip, batch) for name in STEPS}
    mine, right, _ = (step() for step in steps.values())
    if not abs(mine - right) <= TOLERANCE * abs(right):
        raise AssertionError(f"N = {n}, d = {dim}: the loss is {mine:.7g}, and {right:.7g} in the library")
    times = interleaved(steps, seconds=seconds)
    return {
        "size": n,
        "dim": dim,
        "time_s": {name: time._asdict() for name, time in times.items()},
        "peak_mib": {name: peak(name, n, dim) for name in STEPS},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every size and width."""
    program = "python -m pycl.bench.transformers"
    parser = argparse.ArgumentParser(prog=program, description=(__doc__ or "").split(":")[0])
    parser.add_argument("--sizes", type=integers, default=[1024, 4096], metavar="N,...")
    parser.add_argument("--dims", type=integers, default=[128, 512], metavar="d,...")
    parser.add_argument("--seconds", type=float, default=20.0, help="spent on a row (default 20)")
    parser.add_argument("--json", type=Path, metavar="DIR", help="write the record there as cpu-transformers.json")
    arguments = sys.argv[1:] if argv is None else argv
    options = parser.parse_args(arguments)
    declare_torchvision()
    record = records.new_record("transformers", " ".join([program, *records.repeatable(arguments)]))
    record["peers"] = {"transformers": {"version": importlib.metadata.version("transformers"), "why_not": None}}
    record["rows"] = [measure(n, dim, options.seconds) for dim in options.dims for n in options.sizes]
    finish(record, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
