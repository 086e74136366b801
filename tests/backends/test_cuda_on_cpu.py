# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernel's logic, run thread by thread on a CPU: every place of the scores, cluster size, dtype and edge."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import cuda_emulator as fibers
from helpers.cuda_emulator import A100, H200, fields, place_of, plan_at, plan_of, solve
from helpers.sinkhorn_problems import check, problem

from pycl.backends import reference_sinkhorn
from pycl.backends.cuda_library import CudaLibrary, PyclDevice, described

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
# how tiles reach a block and how many blocks share a row; 250 columns leave the last block of 8 a part of a vector
PLACES = [(place, cluster) for place in ("resident", "streamed", "global") for cluster in (1, 2, 8)]
FEW = [("resident", 1), ("streamed", 2), ("global", 8)]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> CudaLibrary:
    return fibers.build(tmp_path_factory.mktemp("cuda_on_cpu"))


def verify(library: CudaLibrary, place: str, cluster: int, *shape: Any, **options: Any) -> None:
    """Against float64, and the same bits in whatever order threads run: a missing barrier shows."""
    t = problem(*shape, **options)
    plan = plan_at(library, t, place, cluster)
    assert (place_of(plan), plan.cluster) == (place, cluster)
    found = solve(library, t, plan)
    check(found, t)
    for order in (fibers.BACKWARD, fibers.SHUFFLED, fibers.BLOCK_BY_BLOCK):
        again = solve(library, t, plan, order)
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True)), fields(plan)


@pytest.mark.parametrize(("place", "cluster"), PLACES)
def test_places(library: CudaLibrary, place: str, cluster: int) -> None:
    verify(library, place, cluster, 41, 250)


@pytest.mark.parametrize(("place", "cluster"), FEW)
@pytest.mark.parametrize(("dtype", "codes"), [(F16, F16), (F16, F32), (BF16, F32), (F32, F32), (F64, F64), (F64, F32)])
def test_dtypes(library: CudaLibrary, place: str, cluster: int, dtype: torch.dtype, codes: torch.dtype) -> None:
    verify(library, place, cluster, 29, 131, dtype, codes=codes)


@pytest.mark.parametrize("place", ["resident", "streamed", "global"])
@pytest.mark.parametrize(
    ("n_prototypes", "stride", "dtype"),
    [
        (96, 96, BF16),  # whole vectors, and codes in whole vectors
        (96, 104, BF16),
        (90, 96, F16),  # aligned rows, a last vector in part
        (90, 92, BF16),  # copies of 8 bytes
        (90, 90, BF16),  # 4 bytes
        (91, 91, BF16),  # none
        (91, 91, F32),
        (92, 92, F32),
        (91, 91, F64),
        (96, 96, F64),
    ],
)
def test_alignments(library: CudaLibrary, place: str, n_prototypes: int, stride: int, dtype: torch.dtype) -> None:
    verify(library, place, 1, 31, n_prototypes, dtype, stride=stride)


@pytest.mark.parametrize(("place", "cluster"), FEW)
@pytest.mark.parametrize("iterations", [1, 2, 10])
def test_iterations(library: CudaLibrary, place: str, cluster: int, iterations: int) -> None:
    verify(library, place, cluster, 25, 77, F32, iterations=iterations)


@pytest.mark.parametrize(("place", "cluster"), FEW)
@pytest.mark.parametrize("dtype", [BF16, F64])
def test_marginals(library: CudaLibrary, place: str, cluster: int, dtype: torch.dtype) -> None:
    verify(library, place, cluster, 25, 77, dtype, marginals=True)


@pytest.mark.parametrize(("place", "cluster"), FEW)
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_pairs_that_are_ruled_out(library: CudaLibrary, place: str, cluster: int, dtype: torch.dtype) -> None:
    """So many that whole vectors, parts of rows and first tiles of columns are nothing but minus infinity."""
    verify(library, place, cluster, 31, 90, dtype, holes=0.93)


@pytest.mark.parametrize(("place", "cluster"), FEW)
@pytest.mark.parametrize("dtype", [BF16, F32, F64])
def test_small_epsilon(library: CudaLibrary, place: str, cluster: int, dtype: torch.dtype) -> None:
    verify(library, place, cluster, 27, 66, dtype, epsilon=0.003, marginals=True)


@pytest.mark.parametrize("cluster", [1, 8])
@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (70, 1), (2, 9), (65, 7), (5, 600)])
def test_edges(library: CudaLibrary, shape: tuple[int, int], cluster: int) -> None:
    """Fewer samples than teams, prototypes for one block of a cluster alone, more rows than lanes and threads."""
    t = problem(*shape, F32)
    where = fibers.device(4 if cluster == 1 else 0, 1 << 16, (0, 0, 2 if cluster == 8 else 0), threads=32)
    plan = plan_of(library, t, where)
    assert plan.teams == min(shape[0], 4 if cluster == 1 else 2)
    check(solve(library, t, plan), t)


@pytest.mark.parametrize(("place", "cluster"), FEW)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_not_a_number_shows(library: CudaLibrary, place: str, cluster: int, value: float) -> None:
    t = problem(24, 70, F32)
    t.scores[13, 40] = value
    codes, u, v = solve(library, t, plan_at(library, t, place, cluster))
    assert codes[13].isnan().all()
    assert not u[13].isfinite()
    assert not v[40].isfinite()


@pytest.mark.parametrize(("place", "cluster"), FEW)
@pytest.mark.parametrize("iterations", [1, 2])
def test_empty_rows_and_columns(library: CudaLibrary, place: str, cluster: int, iterations: int) -> None:
    """As the reference has them: NaN where 0 is divided by 0."""
    for where in ((5, slice(None)), (slice(None), 33)):
        t = problem(24, 70, F32, iterations=iterations)
        t.scores[where] = -torch.inf
        found, wanted = solve(library, t, plan_at(library, t, place, cluster)), reference_sinkhorn.sinkhorn(t)
        for a, b in zip(found, wanted, strict=True):
            assert torch.equal(a.isnan(), b.isnan())
            assert torch.equal(a.isinf(), b.isinf())


GIANT = (1 << 20, 3000)


@pytest.mark.parametrize(
    ("shape", "dtype", "on", "expected"),
    [
        ((4096, 3000), BF16, H200, ("resident", 1, 132, 8)),
        ((4096, 3000), F32, H200, ("streamed", 1, 132, 8)),
        ((4096, 65536), BF16, H200, ("streamed", 8, 16, 4)),
        ((512, 16384), BF16, H200, ("resident", 2, 66, 2)),
        ((300, 262144), BF16, H200, ("global", 8, 16, 3)),
        (GIANT, BF16, H200, ("streamed", 1, 132, 16)),
        ((4096, 3000), BF16, A100, ("streamed", 1, 108, 11)),
        ((4096, 65536), BF16, A100, ("global", 1, 108, 1)),
        ((1, 1), F64, H200, ("resident", 1, 1, 1)),
        ((8_000_000, 1), F16, H200, ("streamed", 1, 132, 1)),
    ],
)
def test_plans(
    library: CudaLibrary, shape: tuple[int, int], dtype: torch.dtype, on: PyclDevice, expected: tuple[Any, ...]
) -> None:
    """Where scores are, blocks in a cluster, teams, and at least how many samples in a tile."""
    t = problem(1, 1)._replace(scores=torch.empty(shape, dtype=dtype, device="meta"), dtype=dtype)
    found = library.plan(described(t, *(torch.empty(0) for _ in range(3))), on)
    assert (place_of(found), found.cluster, found.teams) == expected[:3], fields(found)
    assert found.tile_rows >= expected[3], fields(found)
    assert 0 < found.shared_bytes <= on.shared_bytes
    assert found.workspace_bytes < 4 * 2 * 133 * (shape[1] + 32) * (2 if dtype == F64 else 1)
    assert found.cluster * found.slice >= shape[1]
