# SPDX-License-Identifier: Apache-2.0
"""The Triton backend on a GPU: what the interpreter cannot show. ``make gpu-test`` runs it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.dense import POS_OTHER, POS_SAME, Case, check, make
from helpers.modified import KINDS, check_modified, make_modified
from torch import Tensor

import pycl.functional as F
from pycl import Points
from pycl.backends import registry
from pycl.engine import pair_average

if not torch.cuda.is_available() and "cuda" not in os.environ.get("PYCL_TEST_REQUIRE", ""):
    pytest.skip("no GPU", allow_module_level=True)

from pycl.backends.triton.gradients import STRIPS

GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def _on_the_gpu() -> Any:
    with GPU:
        yield


def test_the_automatic_choice_is_triton() -> None:
    assert registry.choose(None, "cuda") == "triton"


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
    stream.wait_stream(torch.cuda.current_stream())  # which makes the leaves
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
    """NT-Xent stacks its views first: two more copies of the points, and of their gradient.

    Above 256 features a strip of weights takes one part in 512 of the GPU's memory.
    What is asked of torch's allocator counts, not what it rounds up to, which is up to a megabyte a block.
    """
    extra = 100e6 + (torch.cuda.get_device_properties(0).total_memory / STRIPS if d > 256 else 0)
    for n, loss, most in (
        (32768, lambda x, y, s: F.clip(x, y, s), extra),
        (16384, lambda x, y, s: F.nt_xent((x, y), temperature=0.1), extra + 2 * 32768 * d * 2),
    ):
        leaves = inputs(n, d)
        torch.autograd.grad(loss(*leaves), leaves[:2])
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_stats()["requested_bytes.all.current"]
        gradients = torch.autograd.grad(loss(*leaves), leaves[:2])
        peak = torch.cuda.memory_stats()["requested_bytes.all.peak"]
        assert peak - before - sum(g.nbytes for g in gradients) < most


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


SCORES = {
    "SwAV": (4096, 3000),
    "odd": (1000, 3001),
    "few prototypes": (5000, 100),
    "one multiprocessor": (600, 16384),
    "cluster": (4096, 65536),
    "largest cluster": (200, 131072),
    "streamed": (200, 262144),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SCORES)
def test_sinkhorn(shape: str, dtype: torch.dtype) -> None:
    """Codes of some samples against float64, and all of their sums."""
    n_samples, n_prototypes = SCORES[shape]
    z, c = (torch.nn.functional.normalize(torch.randn(n, 64), dim=1) for n in (n_samples, n_prototypes))
    scores = (z @ c.T).to(dtype)
    v = torch.zeros(n_prototypes, dtype=torch.float64)
    u = torch.zeros(n_samples, dtype=torch.float64)
    strips = [slice(i, i + 256) for i in range(0, n_samples, 256)]
    for _ in range(3):
        v = -torch.stack([(scores[i].double() / 0.05 + u[i, None]).logsumexp(0) for i in strips]).logsumexp(0)
        u = -torch.cat([(scores[i].double() / 0.05 + v).logsumexp(1) for i in strips])
    codes = F.sinkhorn(scores, dtype=torch.float32, backend="triton")
    wanted = (scores[:256].double() / 0.05 + u[:256, None] + v).exp()
    assert (codes[:256] - wanted).abs().max() <= 1e-4 * wanted.max()
    assert (codes.sum(1) - 1).abs().max() < 1e-4
    narrow = F.sinkhorn(scores, backend="triton")
    assert torch.equal(narrow, codes.to(dtype))
    assert torch.equal(narrow, F.sinkhorn(scores, backend="triton"))


@pytest.mark.parametrize("n_prototypes", [3000, 65536])
def test_sinkhorn_in_a_graph_and_without_waiting(n_prototypes: int) -> None:
    scores = torch.randn(2048, n_prototypes).bfloat16() / 8
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        F.sinkhorn(scores, backend="triton")  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            F.sinkhorn(scores, backend="triton")
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            found = F.sinkhorn(scores, backend="triton")
        scores.copy_(scores.flip(0))
        graph.replay()
        wanted = F.sinkhorn(scores, backend="triton")
    torch.cuda.synchronize()
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_averages_of_values(dtype: torch.dtype, normalize: bool) -> None:
    x, y = (torch.randn(n, 96).to(dtype) / 10 for n in (3000, 4100))
    values, slope = torch.randn(4100, 70, requires_grad=True), torch.randn(3000, 70) * 1e-7
    left, right = (torch.nn.functional.normalize(z.double(), dim=1) if normalize else z.double() for z in (x, y))
    weights = (5.0 * left @ right.T).softmax(1)
    out = pair_average(Points(x), Points(y), values, 5.0, offset=None, normalize=normalize, backend="triton")
    torch.cuda.set_sync_debug_mode("error")
    try:
        pair_average(Points(x), Points(y), values, 5.0, offset=None, normalize=normalize, backend="triton")
        (gradient,) = torch.autograd.grad(out, values, slope)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    digits = 1e-5 if dtype == torch.float32 else 4e-3
    for found, wanted in ((out, weights @ values.double()), (gradient, weights.T @ slope.double())):
        assert (found - wanted).abs().max() <= digits * wanted.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_modifiers(kind: str, dtype: torch.dtype) -> None:
    check_modified(make_modified(make(1000, 1300, 96, offset=3), kind, width=16), "triton", dtype)
