# SPDX-License-Identifier: Apache-2.0
"""The Triton backend on a GPU: what the interpreter cannot show. ``make gpu-test`` runs it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from dense import POS_OTHER, POS_SAME, Case, check, make
from torch import Tensor

import pycl.functional as F
from pycl import backends

if not torch.cuda.is_available() and "cuda" not in os.environ.get("PYCL_TEST_REQUIRE", ""):
    pytest.skip("no GPU", allow_module_level=True)

GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def _on_the_gpu() -> Any:
    with GPU:
        yield


def test_the_automatic_choice_is_triton() -> None:
    assert backends.choose(None, "cuda") == "triton"


CASES: dict[str, Callable[[], Case]] = {
    "columns": lambda: make(1000, 1300, 96, offset=3),
    "itself": lambda: make(1100, None, 128, bias=(), normalize=True, positives=POS_SAME | POS_OTHER),
    "steep": lambda: make(900, 1030, 256, scale=90.0, normalize=True),
    "wide": lambda: make(700, 900, 1000, normalize=True),
    "wider": lambda: make(300, 260, 4100, bias=()),
    "scale_of_rows": lambda: make(700, 900, 64, scale="rows", sides="rows"),
    "one_feature": lambda: make(129, 131, 1),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_against_float64(case: str, dtype: torch.dtype) -> None:
    check(CASES[case](), "triton", dtype)


def step(x: Tensor, y: Tensor, scale: Tensor) -> list[Tensor]:
    loss = F.clip(x, y, scale) + F.nt_xent((x, y), temperature=0.1)
    return [loss, *torch.autograd.grad(loss, [x, y, scale])]


def inputs(n: int, d: int) -> list[Tensor]:
    x, y = (torch.nn.functional.normalize(torch.randn(n, d), dim=1).bfloat16() for _ in range(2))
    return [x.requires_grad_(), y.requires_grad_(), torch.tensor(20.0, requires_grad=True)]


@pytest.mark.parametrize("d", [128, 256, 768])
def test_runs_repeat_bit_by_bit(d: int) -> None:
    leaves = inputs(5000, d)
    first = step(*leaves)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, step(*leaves), strict=True))


def test_captured_in_a_graph() -> None:
    leaves = inputs(2000, 256)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        wanted = step(*leaves)  # compiles
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            found = step(*leaves)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    with torch.no_grad():
        leaves[0].copy_(leaves[0].flip(0))
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, step(*leaves), strict=True))


def test_nothing_waits_for_the_device() -> None:
    leaves = inputs(3000, 128)
    step(*leaves)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(*leaves)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_current_stream_is_used() -> None:
    x, y, scale = inputs(4000, 128)
    wanted, stream = step(x, y, scale), torch.cuda.Stream()
    late = torch.zeros_like(x).requires_grad_()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        torch.cuda._sleep(50_000_000)
        late.copy_(x)  # in order behind the sleep
    with torch.cuda.stream(stream):
        found = step(late, y, scale)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("d", [256, 512])
def test_extra_memory(d: int) -> None:
    """NT-Xent stacks its views first: two more copies of the points, and of their gradient."""
    for n, loss, most in (
        (32768, lambda x, y, s: F.clip(x, y, s), 100e6),
        (16384, lambda x, y, s: F.nt_xent((x, y), temperature=0.1), 100e6 + 2 * 32768 * d * 2),
    ):
        leaves = inputs(n, d)
        torch.autograd.grad(loss(*leaves), leaves[:2])
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradients = torch.autograd.grad(loss(*leaves), leaves[:2])
        assert torch.cuda.max_memory_allocated() - before - sum(g.nbytes for g in gradients) < most


def test_a_million_rows() -> None:
    x, y, scale = inputs(1 << 20, 256)
    loss = F.clip(x, y, scale)
    gradients = torch.autograd.grad(loss, [x, y])
    sample = torch.randint(0, len(x), (8,))
    logits = (x[sample].float() @ y.float().T) * scale
    softmax = logits.softmax(1)
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in gradients)
    towards = (softmax @ y.float() - y[sample].float()) * scale / (2 * len(x))  # the rows' half of the gradient
    both = gradients[0][sample].float()
    assert (both * towards).sum() > 0
    assert both.norm() < 3 * towards.norm()
