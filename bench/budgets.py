# SPDX-License-Identifier: Apache-2.0
"""Time against the memory that may be kept, for one step of CLIP on a CPU: ``python -m pycl.bench.budgets [PAGE]``.

Budgets from 0 to all products of the step take turns with ``torch.compile`` and eager in one process. With a page as
its argument the table is written between the page's marks, and the picture into ``images`` beside it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import pycl

from .present.page import write_or_print
from .present.plots import COLOURS, NAMES, STYLE
from .present.record import new_record
from .present.tables import header
from .workloads.registry import WORKLOADS
from .workloads.workload import step_of

LOSS, N, D = "clip", 8192, 512
MIB = 1 << 20
SHARES = (0, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
ROUNDS = 7


def steps() -> dict[Any, Callable[[], object]]:
    """A step for every budget in MiB, and those of the baselines."""
    workload = WORKLOADS[LOSS]
    inputs = workload.inputs(N, D, torch.float32)
    ours = step_of(workload.ours, inputs)

    def within(mib: int) -> Callable[[], object]:
        def step() -> None:
            with pycl.set_workspace(mib * MIB):
                ours()

        return step

    budgets = [round(share * (N * N * 4 / MIB + 16)) for share in SHARES]  # tiles are padded
    found: dict[Any, Callable[[], object]] = {mib: within(mib) for mib in budgets}
    found["compile"] = step_of(torch.compile(workload.dense), inputs)
    found["eager"] = step_of(workload.dense, inputs)
    return found


def measured() -> dict[Any, float]:
    """Milliseconds; medians of rounds that alternate in direction."""
    found = steps()
    times: dict[Any, list[float]] = {name: [] for name in found}
    for turn in range(ROUNDS + 1):
        for name in list(found) if turn % 2 else list(found)[::-1]:
            start = time.perf_counter()
            found[name]()
            if turn:  # the first compiles, and touches new pages
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) * 1e3 for name, each in times.items()}


def table(found: dict[Any, float]) -> str:
    budgets = [name for name in found if isinstance(name, int)]
    lines = ["| budget (MiB) | step (ms) | against eager | against torch.compile |", "| ---: | ---: | ---: | ---: |"]
    for mib in budgets:
        ratios = " | ".join(f"{found[name] / found[mib]:.2f} x" for name in ("eager", "compile"))
        lines.append(f"| {mib} | {found[mib]:.0f} | {ratios} |")
    return "\n".join(lines)


def draw(found: dict[Any, float], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    budgets = [name for name in found if isinstance(name, int)]
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(6, 3.6))
        axes.plot(budgets, [found[mib] for mib in budgets], "o-", color=COLOURS["ours"], label=NAMES["ours"])
        axes.axhline(found["eager"], color=COLOURS["eager"], label=NAMES["eager"])
        axes.axhline(found["compile"], color="#4f6db0", label="torch.compile of the same")
        axes.set(xlabel="memory that may be kept (MiB)", ylabel="one step (ms)", ylim=(0, None))
        axes.set_title(f"CLIP, {N} pairs, d = {D}, float32, forward and backward")
        axes.legend(frameon=False)
        figure.tight_layout()
        figure.savefig(path)
        pyplot.close(figure)


def main(arguments: Sequence[str]) -> int:
    record, found = new_record("budgets", "python -m pycl.bench.budgets"), measured()
    body = f"CLIP, {N} pairs, d = {D}, float32, forward and backward; medians:\n\n{table(found)}\n\n*{header(record)}.*"
    write_or_print(arguments, "budgets", body)
    if arguments:
        draw(found, Path(arguments[0]).parent / "images" / "clip-budgets.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
