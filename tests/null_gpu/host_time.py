# SPDX-License-Identifier: Apache-2.0
"""What the host pays for a loss, without a GPU: ``make host-time``, ``PYTHONPATH=tests python -m null_gpu.host_time``.

A step is a forward and a backward (Sinkhorn: a forward), launched on the null driver. Times are the processor's, the
least of several batches of steps. Launches are timed by themselves. What torch does around them is counted, and timed
where tensors are so small that it takes the CPU as long as it takes a GPU's host; the products of torch's that
gradients of more than 256 features take are neither.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from . import device, library

Step = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    loss: str
    n: int  # rows of the similarity matrix, samples
    d: int  # features, prototypes

    @property
    def name(self) -> str:
        return f"{self.loss}-{self.n}-d{self.d}"

    @property
    def small(self) -> bool:
        return self.n <= SMALL


CASES = (
    *(Case("nt_xent", n, 256) for n in (256, 1024, 32768)),
    *(Case("clip", n, 256) for n in (256, 1024)),
    *(Case("clip", 32768, d) for d in (128, 256, 512, 768)),
    *(Case("siglip", 32768, d) for d in (256, 768)),
    *(Case("sinkhorn", 4096, k) for k in (3000, 65536)),
)
SMALL = 2048  # rows up to which tensors are on the CPU; beyond, on the meta device, where they need no memory
HEAD = ("loss", "N", "d", "launches", "us a launch", "us in launches", "calls of torch", "us a step", "launches of")


def step_of(case: Case, dtype: torch.dtype, learnable: bool = False) -> Step:
    """``learnable``: the scale of CLIP and SigLIP, and the bias of SigLIP, are tensors that get gradients."""
    import pycl.functional as F

    where = "cpu" if case.small else "meta"

    def points(n: int) -> Tensor:
        return torch.zeros(n, case.d, dtype=dtype, device=where, requires_grad=case.loss != "sinkhorn")

    def number(value: float) -> Any:
        return torch.full((), value, device=where, requires_grad=True) if learnable else value

    if case.loss == "sinkhorn":
        scores = points(case.n)
        return lambda: F.sinkhorn(scores)
    if case.loss == "nt_xent":
        views = points(case.n // 2), points(case.n // 2)
        return lambda: torch.autograd.grad(F.nt_xent(views), views)
    x, y, scale, bias = points(case.n), points(case.n), number(14.3), number(-10.0)
    leaves = [t for t in (x, y, scale, bias) if isinstance(t, Tensor)]
    if case.loss == "clip":
        return lambda: torch.autograd.grad(F.clip(x, y, scale), leaves[:3])
    return lambda: torch.autograd.grad(F.siglip(x, y, scale, bias), leaves)


@dataclass(frozen=True)
class HostTime:
    case: Case
    kernels: Counter[str]
    calls: int  # of torch
    step: float  # seconds of the processor
    launches: float | None  # of these, those between the calls of launch() and their return

    @property
    def cells(self) -> tuple[str, ...]:
        count = self.kernels.total()
        inside = None if self.launches is None else 1e6 * self.launches
        kernels = ", ".join(f"{n} {name}" for name, n in self.kernels.most_common())
        return (
            *(self.case.loss, str(self.case.n), str(self.case.d), str(count)),
            *(("-", "-") if inside is None else (f"{inside / count:.1f}", f"{inside:.0f}")),
            *(str(self.calls), f"{1e6 * self.step:.0f}" if self.case.small else "-", kernels),
        )


class _Watch:
    """Times the calls of ``launch``, under whatever module's name they are made."""

    def __init__(self) -> None:
        from pycl.backends.triton import launch

        self.seconds, self.calls, self._launch = 0.0, 0, launch.launch
        ours = [m for name, m in sys.modules.items() if name.startswith("pycl.backends.triton.")]
        self._users = [m for m in ours if getattr(m, "launch", None) is self._launch]

    def __enter__(self) -> _Watch:
        for module in self._users:
            vars(module)["launch"] = self._timed
        return self

    def __exit__(self, *_: object) -> None:
        for module in self._users:
            vars(module)["launch"] = self._launch

    def _timed(self, *arguments: Any, **options: Any) -> None:
        start = time.process_time()
        self._launch(*arguments, **options)
        self.seconds += time.process_time() - start
        self.calls += 1


def measure(case: Case, driver: library.Library, dtype: torch.dtype, rounds: int, learnable: bool) -> HostTime:
    step = step_of(case, dtype, learnable)
    step()  # compiles
    before = driver.launches
    step()
    kernels = driver.kernels(before)
    repeat = max(1, min(20, 400 // max(1, kernels.total())))
    alone = min(_seconds(step, repeat) for _ in range(rounds))
    inside: list[float] = []
    for _ in range(rounds):
        with _Watch() as watch:
            _seconds(step, repeat)
        if watch.calls == repeat * kernels.total():  # else something is launched in another way
            inside.append(watch.seconds / repeat)
    return HostTime(case, kernels, _calls_of_torch(step), alone, min(inside, default=None))


def _calls_of_torch(step: Step) -> int:
    """Without those that another one makes."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step()
    events = [event for event in seen.events() or () if event.name.startswith("aten::")]
    return sum(event.cpu_parent is None or not event.cpu_parent.name.startswith("aten::") for event in events)


def _seconds(step: Step, repeat: int) -> float:
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = time.process_time()
        for _ in range(repeat):
            step()
        return (time.process_time() - start) / repeat
    finally:
        if collecting:
            gc.enable()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m null_gpu.host_time", description=(__doc__ or "").split(":")[0])
    parser.add_argument("rows", nargs="*", default=["*"], metavar="ROW", help="such as nt_xent-256-d256, clip-*")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--learnable", action="store_true", help="scale and bias are tensors with gradients")
    parser.add_argument("--rounds", type=int, default=7, help="of which the least counts (default: %(default)s)")
    asked = parser.parse_args(argv)
    cases = [case for case in CASES if any(fnmatch(case.name, row) for row in asked.rows)]
    if not cases:
        parser.error(f"no row matches; there are {', '.join(case.name for case in CASES)}")
    try:
        driver = device.use()
        torch.set_num_threads(1)
    except RuntimeError as error:
        parser.error(str(error))
    rows: list[tuple[str, ...]] = [HEAD]
    for case in cases:
        rows.append(measure(case, driver, getattr(torch, asked.dtype), asked.rounds, asked.learnable).cells)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
