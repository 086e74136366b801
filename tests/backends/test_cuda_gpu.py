# SPDX-License-Identifier: Apache-2.0
"""The CUDA backend on a GPU: what no CPU can show. ``make gpu-test`` runs it."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from helpers.sinkhorn_problems import check, dense, problem
from torch import Tensor

import pycl.functional as F
from pycl.backends import registry
from pycl.backends.cuda_library import described, outputs_of
from pycl.core.problem import SinkhornProblem

REQUIRED = "cuda" in os.environ.get("PYCL_TEST_REQUIRE", "")
if not torch.cuda.is_available() and not REQUIRED:
    pytest.skip("no GPU", allow_module_level=True)
if (missing := registry.why_not("cuda", "cuda", operator=registry.SINKHORN)) and not REQUIRED:
    pytest.skip(missing, allow_module_level=True)

cuda: Any = registry.load("cuda")
GPU = torch.device("cuda")
BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


@pytest.fixture(autouse=True)
def _on_the_gpu() -> Any:
    with GPU:
        yield


def test_the_automatic_choice_is_cuda() -> None:
    assert registry.choose(None, "cuda", BF16, registry.SINKHORN) == "cuda"
    assert registry.choose(None, "cuda", F64, registry.SINKHORN) == "cuda"


SHAPES = [
    (4096, 3000),  # stays on chip
    (1, 1),
    (3, 70000),
    (1000, 1),
    (777, 1501),  # rows that are aligned to nothing
    (2048, 16384),
    (513, 16390),  # a part of a vector for the last block
    (100_000, 129),
]


@pytest.mark.parametrize("dtype", [BF16, F16, F32, F64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(shape: tuple[int, int], dtype: torch.dtype) -> None:
    t = problem(*shape, dtype, marginals=True)
    check(cuda.sinkhorn(t), t)


@pytest.mark.parametrize("shape", [(4096, 65536), (300, 262144), (300, 262143)], ids=str)
def test_many_prototypes(shape: tuple[int, int]) -> None:
    t = problem(*shape, BF16, codes=F32)
    check(cuda.sinkhorn(t), t)


@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize("epsilon", [0.003, 0.05])
def test_iterations_and_epsilon(iterations: int, epsilon: float) -> None:
    t = problem(600, 900, F32, iterations=iterations, epsilon=epsilon, holes=0.3)
    check(cuda.sinkhorn(t), t)


@pytest.mark.parametrize("shared_bytes", [20_000, 60_000, 160_000])
@pytest.mark.parametrize("cluster", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [BF16, F64], ids=str)
def test_plans_of_other_devices(shared_bytes: int, cluster: int, dtype: torch.dtype) -> None:
    """Less shared memory leads to tiles that stream or stay in global memory, with every size of clusters."""
    device = type(cuda.LIBRARY.device(0)).from_buffer_copy(cuda.LIBRARY.device(0))
    device.shared_bytes = shared_bytes
    counts = [n if size == cluster else 0 for size, n in zip((2, 4, 8), device.clusters, strict=True)]
    device.clusters[:] = counts
    device.processors *= cluster == 1
    if not device.processors + sum(counts):
        pytest.skip(f"no clusters of {cluster}")
    t = problem(700, 4003, dtype)
    found = outputs_of(t)
    structure = described(t, *found)
    plan = cuda.LIBRARY.plan(structure, device)
    assert plan.cluster == cluster
    workspace = torch.full((plan.workspace_bytes,), 255, dtype=torch.uint8)
    cuda.LIBRARY.run(0, structure, plan, workspace, torch.cuda.current_stream().cuda_stream)
    check(found, t)


def test_a_stride_of_its_own() -> None:
    for stride in (1024, 1010, 1001):
        t = problem(500, 1000, BF16, stride=stride)
        check(cuda.sinkhorn(t), t)


def test_a_million_samples() -> None:
    t = problem(1 << 20, 512, BF16)
    codes, u, v = cuda.sinkhorn(t)
    logits = t.scores.double() / t.epsilon + v.double()
    torch.testing.assert_close(u.double(), -logits.logsumexp(1), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(codes.double().sum(1), torch.ones_like(u).double(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_not_a_number_shows(value: float) -> None:
    t = problem(4096, 3000)
    t.scores[1234, 567] = value
    assert cuda.sinkhorn(t)[0][1234].isnan().all()


def same(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("shape", [(4096, 3000), (4096, 65536)], ids=str)
def test_runs_repeat_bit_by_bit(shape: tuple[int, int]) -> None:
    t = problem(*shape)
    first = cuda.sinkhorn(t)
    assert all(same(first, cuda.sinkhorn(t)) for _ in range(20))


@pytest.mark.parametrize("shape", [(4096, 3000), (1024, 65536)], ids=str)
def test_captured_in_a_graph(shape: tuple[int, int]) -> None:
    t, stream = problem(*shape), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        wanted = cuda.sinkhorn(t)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            found = cuda.sinkhorn(t)
    graph.replay()
    torch.cuda.synchronize()
    assert same(found, wanted)
    t.scores.copy_(t.scores.flip(0))
    graph.replay()
    torch.cuda.synchronize()
    assert same(found, cuda.sinkhorn(t))


def test_nothing_waits_for_the_device() -> None:
    scores = problem(4096, 3000).scores
    F.sinkhorn(scores, backend="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        F.sinkhorn(scores, backend="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_current_stream_is_used() -> None:
    t, stream = problem(4096, 3000), torch.cuda.Stream()
    wanted, late = cuda.sinkhorn(t), torch.zeros_like(t.scores)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(t.scores)  # in order behind the sleep
        found = cuda.sinkhorn(t._replace(scores=late))
    stream.synchronize()
    assert same(found, wanted)


def test_other_devices() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    t = problem(500, 300)
    there = SinkhornProblem(*(x.to("cuda:1") if isinstance(x, Tensor) else x for x in t))
    assert same(tuple(x.to(GPU) for x in cuda.sinkhorn(there)), cuda.sinkhorn(t))
    assert torch.cuda.current_device() == 0


def test_through_the_public_function() -> None:
    t = problem(1000, 300, F32)
    codes = F.sinkhorn(t.scores, backend="cuda")
    torch.testing.assert_close(codes.double(), dense(t)[0], rtol=1e-4, atol=1e-6)


def test_extra_memory() -> None:
    """Vectors for each team, no second matrix."""
    t = problem(16384, 3000)
    cuda.sinkhorn(t)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = cuda.sinkhorn(t)
    assert torch.cuda.max_memory_allocated() - before - sum(x.nbytes for x in found) < 8e6
