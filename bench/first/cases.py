# SPDX-License-Identifier: Apache-2.0
"""Small problems against float64, what the headline figures stand on first; each in a process of its own.

``python -m pycl.bench.first.cases NAME`` in a checkout, with its ``tests`` on the path: they have the references.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from helpers.dense import POS_OTHER, POS_SAME, check, make
from torch import Tensor

import pycl
import pycl.functional as losses
from pycl.backends.triton import cache_keys
from pycl.engine import pair_average
from pycl.testing import formulas

from ..workloads.losses import LOSS_WORKLOADS
from ..workloads.workload import step_of
from . import builds
from .smoke import NAMES

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
SAMPLES = 1000  # of Sinkhorn
REPEATS = 20
UNLABELLED = 2048  # rows: most tiles have no positive


class Wrong(AssertionError):
    """A result that is further from float64 than rounding explains."""


def near(what: str, found: Tensor, wanted: Tensor, digits: float) -> None:
    """Within ``digits`` of the largest entry."""
    error = ((found.double() - wanted).abs().max() / wanted.abs().max()).item()
    if not error <= digits:
        raise Wrong(f"{what}: off by {error:.2g} of the largest entry, allowed {digits:g}")


def labelled(d: int, dtype: torch.dtype) -> None:
    """Both sides, labels, every statistic: all tiles are mixed."""
    check(make(1000, 1300, d, bias=(), offset=None), "triton", dtype)


def itself(d: int, dtype: torch.dtype) -> None:
    check(make(1100, None, d, bias=(), normalize=True, positives=POS_SAME | POS_OTHER), "triton", dtype)


def steep(d: int, dtype: torch.dtype) -> None:
    """Logits so large that sums follow their maxima."""
    check(make(900, 1030, d, scale=90.0, normalize=True), "triton", dtype)


def ragged(d: int, dtype: torch.dtype) -> None:
    check(make(1000, 1301, d, offset=3), "triton", dtype)


def own_scales(d: int, dtype: torch.dtype) -> None:
    check(make(700, 900, d, scale="rows", sides="rows"), "triton", dtype)


def unlabelled(loss: str, d: int, dtype: torch.dtype) -> None:
    """A loss of the bench, whose headline rows take these kernels."""
    work = LOSS_WORKLOADS[loss]
    inputs = work.inputs(UNLABELLED, d, dtype, str(torch.get_default_device()))
    exact = [x.detach().double().requires_grad_() for x in inputs]
    names = ("value", *(f"gradient {k}" for k in range(len(inputs))))
    found, wanted = step_of(partial(work.ours, backend="triton"), inputs)(), step_of(work.dense, exact)()
    for name, mine, true in zip(names, found, wanted, strict=True):
        near(name, mine, true, 1e-3 if name == "value" else 8e-3)


def siglip(d: int, dtype: torch.dtype) -> None:
    x, y = (F.normalize(torch.randn(SAMPLES, d), dim=1).to(dtype).requires_grad_() for _ in range(2))
    exact = [z.detach().double().requires_grad_() for z in (x, y)]
    wanted = formulas.siglip(exact[0], exact[1], 10.0, -10.0).mean()
    found = losses.siglip(x, y, 10.0, -10.0, backend="triton")
    near("value", found.detach(), wanted.detach(), 1e-3)
    for mine, true in zip(torch.autograd.grad(found, [x, y]), torch.autograd.grad(wanted, exact), strict=True):
        near("gradient", mine, true, 8e-3)


def average(d: int, dtype: torch.dtype) -> None:
    x, y = (torch.randn(n, d).to(dtype) / 10 for n in (SAMPLES, 1300))
    values = torch.randn(1300, 70)
    found = pair_average(pycl.Points(x), pycl.Points(y), values, 5.0, offset=None, backend="triton")
    near("average", found, (5.0 * x.double() @ y.double().T).softmax(1) @ values.double(), 4e-3)


def top(d: int, dtype: torch.dtype) -> None:
    x, y = (torch.randn(n, d).to(dtype) for n in (500, 1300))
    found, _ = pycl.pair_top(pycl.Points(x), pycl.Points(y), 10, offset=None, backend="triton")
    near("the largest", found, (x.double() @ y.double().T).topk(10).values, 1e-4)


def sinkhorn(backend: str, n_prototypes: int) -> None:
    scores = (torch.randn(SAMPLES, n_prototypes) * 0.3).clamp(-1, 1).bfloat16()
    logits = scores.double() / 0.05
    u = torch.zeros(SAMPLES, 1, dtype=torch.float64)
    for _ in range(3):
        v = -(logits + u).logsumexp(0)
        u = -(logits + v).logsumexp(1, keepdim=True)
    near("codes", losses.sinkhorn(scores, dtype=torch.float32, backend=backend), (logits + u + v).exp(), 1e-4)


def _steps(d: int, dtype: torch.dtype) -> Callable[[], list[Tensor]]:
    x, y = (F.normalize(torch.randn(3000, d), dim=1).to(dtype).requires_grad_() for _ in range(2))

    def step() -> list[Tensor]:
        value = losses.clip(x, y, 20.0) + losses.nt_xent((x, y), temperature=0.1)
        return [value.detach(), *torch.autograd.grad(value, [x, y])]

    return step


def _same(what: str, found: list[Tensor], wanted: list[Tensor]) -> None:
    if not all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True)):
        raise Wrong(f"{what} differs")


def repeat(d: int, dtype: torch.dtype) -> None:
    step = _steps(d, dtype)
    wanted = step()
    for run in range(REPEATS):
        _same(f"run {run + 2} of the same", step(), wanted)


def graph(d: int, dtype: torch.dtype) -> None:
    step, stream = _steps(d, dtype), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        wanted = step()
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured, stream=stream):
            found = step()
    captured.replay()
    torch.cuda.synchronize()
    _same("what a CUDA graph computes", found, wanted)


PROBLEMS = {f.__name__: f for f in (labelled, itself, steep, ragged, own_scales, siglip, average, top, graph, repeat)}
PROBLEMS |= {loss: partial(unlabelled, loss) for loss in ("clip", "nt_xent")}


def case(name: str) -> Callable[[], None]:
    """``PROBLEM-dWIDTH-DTYPE`` or ``sinkhorn-BACKEND-PROTOTYPES``, one of ``NAMES``."""
    problem, first, second = name.split("-")
    if problem == "sinkhorn":
        return partial(sinkhorn, first, int(second))
    return partial(PROBLEMS[problem], int(first.removeprefix("d")), DTYPES[second])


def run(name: str, device: str = "cuda") -> None:
    torch.manual_seed(0)
    with torch.device(device):
        case(name)()
    if device == "cuda":
        torch.cuda.synchronize()


def main(arguments: list[str]) -> int:
    """Run the cases named, or all; 1 where one is wrong or fails."""
    builds.apply()
    importlib.import_module("pycl.backends.triton.backend")
    cache_keys.settle()  # a process that runs one case finds what another one compiled that runs all
    failed = 0
    for name in arguments or NAMES:
        try:
            run(name)
        except Exception as error:
            failed += 1
            print(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}", file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
