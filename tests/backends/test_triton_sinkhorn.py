# SPDX-License-Identifier: Apache-2.0
"""The Triton backend's Sinkhorn: every size of block, dtypes, extremes, what is launched."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers.oracle import assert_as_accurate
from torch import Tensor
from torch.testing import assert_close

import pycl.functional as F
from pycl.backends.registry import why_not

if reason := why_not("triton", "cpu"):
    pytest.skip(reason, allow_module_level=True)

from pycl.backends import reference
from pycl.backends.triton import backend as backend
from pycl.backends.triton import launch, sinkhorn_steps
from pycl.backends.triton.device import Device
from pycl.core.problem import SinkhornProblem

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (5, 2), (64, 31), (257, 64), (70, 300), (1, 300), (300, 1), (21, 600)]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several programs, each with several blocks of rows; a row of more than 512 prototypes is streamed."""
    monkeypatch.setattr(sinkhorn_steps, "TILE", 256)
    monkeypatch.setattr(sinkhorn_steps, "COLUMNS", 256)


def scores_of(n_samples: int, n_prototypes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Cosines in 16 dimensions."""
    z, c = (torch.nn.functional.normalize(torch.randn(n, 16), dim=1) for n in (n_samples, n_prototypes))
    return (z @ c.T).to(dtype)


def published(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Listing 1 of arXiv 2006.09882."""
    q = torch.exp(scores / epsilon).T
    q /= q.sum()
    n_prototypes, n_samples = q.shape
    for _ in range(iterations):
        q /= q.sum(1, keepdim=True)
        q /= n_prototypes
        q /= q.sum(0, keepdim=True)
        q /= n_samples
    return (q * n_samples).T


def transport(scores: Tensor, epsilon: float = 0.05, iterations: int = 3, **more: Any) -> SinkhornProblem:
    share = math.log(max(1, len(scores)) / scores.shape[1])
    uniform = torch.full(scores.shape[1:], share, device=scores.device)
    rest = {"sample_target": None, "prototype_target": uniform, "dtype": torch.float32} | more
    return SinkhornProblem(scores, epsilon, iterations, **rest)


def check(t: SinkhornProblem) -> tuple[Tensor, ...]:
    """Codes and potentials as accurate as plain torch's in float32, both against float64."""
    targets = {name: None if (x := getattr(t, name)) is None else x.double() for name in t._fields[3:5]}
    truth = reference.sinkhorn(t._replace(scores=t.scores.double(), **targets))
    eager = reference.sinkhorn(t._replace(scores=t.scores.float()))
    found: tuple[Tensor, ...] = backend.sinkhorn(t)
    logits = t.scores.float().nan_to_num(neginf=0.0).abs().max().item() / t.epsilon
    for k, (mine, plain, true) in enumerate(zip(found, eager, truth, strict=True)):
        assert mine.dtype == (t.dtype if k == 0 else torch.float32)
        # half a unit of the last place of float32 in every logit, where the scale itself was rounded, too; potentials
        # are differences of logits, and may be 0
        magnitude = max(1.0, 0.02 * logits) * true.abs().max().item() if k == 0 else max(1.0, logits)
        assert_as_accurate(mine, plain, true, mine.dtype, magnitude=magnitude)
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_published_algorithm(small: None, shape: tuple[int, int], dtype: torch.dtype) -> None:
    scores = scores_of(*shape, dtype)
    codes, *_ = check(transport(scores))
    wanted = published(scores.double(), 0.05, 3)
    assert_as_accurate(codes, published(scores.float(), 0.05, 3), wanted, torch.float32)


@pytest.mark.parametrize("iterations", [1, 3, 7])
def test_any_number_of_iterations_in_blocks_of_full_size(iterations: int) -> None:
    scores = scores_of(100, 300)
    codes = F.sinkhorn(scores, iterations=iterations, backend="triton")
    wanted = published(scores.double(), 0.05, iterations)
    assert_as_accurate(codes, published(scores, 0.05, iterations), wanted, torch.float32)
    check(transport(scores, iterations=iterations))


def test_more_parts_than_are_merged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU hundreds of programs share a block of columns; the later ones have the larger scores here."""
    monkeypatch.setattr(sinkhorn_steps, "device_of", lambda device: Device(0, 132, 0))
    scores = scores_of(600, 40)
    scores[540:] += 0.5
    check(transport(scores))


@pytest.mark.parametrize("n_prototypes", [1500, 2500])
def test_rows_spread_over_a_cluster(n_prototypes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is the same, only what is launched differs; beyond the largest cluster rows are streamed."""
    monkeypatch.setattr(sinkhorn_steps, "TILE", 128)
    monkeypatch.setattr(sinkhorn_steps, "device_of", lambda device: Device(90, 1, 0))
    monkeypatch.setattr(sinkhorn_steps, "CLUSTERS", True)
    scores = scores_of(9, n_prototypes)
    assert sinkhorn_steps.sample_block_for(scores) == ((1, 2048, 1, 8) if n_prototypes == 1500 else None)
    check(transport(scores, iterations=2))


def test_which_gpu_holds_which_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def held(n: int, arch: int) -> sinkhorn_steps.SampleBlock | None:
        with launch.recording(arch):
            return sinkhorn_steps.sample_block_for(torch.empty(4096, n, device="meta"))

    monkeypatch.setattr(sinkhorn_steps, "CLUSTERS", True)
    for arch in (80, 90, 120):
        assert held(1, arch) == (16, 32, 1, 1)
        assert held(3000, arch) == (2, 4096, 8, 1)
        assert held(16384, arch) == (1, 16384, 16, 1)
    assert held(16385, 90) == (1, 32768, 8, 4)
    assert held(65536, 100) == (1, 65536, 8, 8)
    assert held(131072, 90) == (1, 131072, 16, 8)
    assert held(131073, 90) is held(16385, 80) is held(16385, 120) is None
    monkeypatch.setattr(sinkhorn_steps, "CLUSTERS", False)
    assert held(16385, 90) is None


@pytest.mark.parametrize("n_prototypes", [64, 600])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_codes_in_the_dtype_of_the_scores(small: None, n_prototypes: int, dtype: torch.dtype) -> None:
    scores = scores_of(20, n_prototypes, dtype)
    narrow, u, v = check(transport(scores, dtype=dtype))
    wide, *potentials = backend.sinkhorn(transport(scores))
    assert torch.equal(narrow, wide.to(dtype))
    assert torch.equal(u, potentials[0])
    assert torch.equal(v, potentials[1])


@pytest.mark.parametrize("n_prototypes", [30, 64, 600])
def test_rows_may_be_far_from_each_other(small: None, n_prototypes: int) -> None:
    scores = scores_of(20, n_prototypes, torch.bfloat16)
    wanted = backend.sinkhorn(transport(scores))
    for step in (1, 8):
        apart = torch.full((20, n_prototypes + step), torch.nan, dtype=scores.dtype)
        apart[:, :n_prototypes] = scores
        found = backend.sinkhorn(transport(apart[:, :n_prototypes]))
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_addresses_beyond_32_bits(small: None) -> None:
    step = 2**30 + 8
    storage = torch.empty(2 * step + 64, dtype=torch.bfloat16)  # committed by the system where it is touched
    far = storage.as_strided((3, 40), (step, 1))
    far.copy_(near := scores_of(3, 40, torch.bfloat16))
    found, wanted = (backend.sinkhorn(transport(scores)) for scores in (far, near))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("n_prototypes", [40, 600])
def test_marginals(small: None, n_prototypes: int) -> None:
    a, m = (torch.rand(n).add(0.01) for n in (30, n_prototypes))
    targets = {"sample_target": (a / a.sum() * 30).log(), "prototype_target": (m / m.sum() * 30).log()}
    check(transport(scores_of(30, n_prototypes), **targets))


@pytest.mark.parametrize("n_prototypes", [50, 600])
def test_a_small_epsilon(small: None, n_prototypes: int) -> None:
    codes, u, v = check(transport(scores_of(30, n_prototypes), epsilon=0.003))
    assert all(t.isfinite().all() for t in (codes, u, v))
    assert_close(codes.sum(1), torch.ones(30))


@pytest.mark.parametrize("n_prototypes", [50, 600])
def test_pairs_that_are_ruled_out(small: None, n_prototypes: int) -> None:
    scores = scores_of(25, n_prototypes)
    ruled_out = torch.rand_like(scores) < 0.7
    ruled_out[:, 0] = ruled_out[0] = False
    codes, *_ = check(transport(scores.masked_fill(ruled_out, -torch.inf)))
    assert (codes[ruled_out] == 0).all()


@pytest.mark.parametrize("n_prototypes", [50, 600])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf], ids=str)
def test_what_is_no_score_is_not_hidden(small: None, poison: float, n_prototypes: int) -> None:
    for iterations in (1, 2):
        scores = scores_of(20, n_prototypes)
        scores[7, 11] = poison
        codes, u, v = backend.sinkhorn(transport(scores, iterations=iterations))
        assert codes[7].isnan().all()
        assert u[7].isnan()
        assert not v[11].isfinite()
    assert codes.isnan().all()
    potential = torch.zeros(n_prototypes)
    assert backend.sinkhorn_columns(transport(scores), potential)[11].isnan()


@pytest.mark.parametrize("n_prototypes", [50, 600])
@pytest.mark.parametrize("dim", [0, 1])
def test_a_row_or_column_with_nothing_in_it(small: None, dim: int, n_prototypes: int) -> None:
    scores = scores_of(20, n_prototypes)
    scores.select(dim, 5).fill_(-torch.inf)
    lse = backend.sinkhorn_columns(transport(scores), None)
    assert_close(lse, reference.sinkhorn_columns(transport(scores), None), rtol=1e-5, atol=1e-5)
    found = backend.sinkhorn(transport(scores, iterations=2))
    for got, wanted in zip(found, reference.sinkhorn(transport(scores, iterations=2)), strict=True):
        assert torch.equal(got.isnan(), wanted.isnan())


@pytest.mark.parametrize("n_prototypes", [50, 600])
def test_ranks_that_share_the_prototypes(small: None, n_prototypes: int) -> None:
    """Any part of the samples, none of them too: log-sum-exps add up to those of all."""
    t = transport(scores_of(60, n_prototypes, torch.bfloat16))
    parts = [t._replace(scores=t.scores[a:b]) for a, b in ((0, 17), (17, 17), (17, 60))]
    v = -backend.sinkhorn_columns(t, None)
    for potential in (None, v):
        together = torch.stack([backend.sinkhorn_columns(part, potential) for part in parts])
        assert (together[1] == -torch.inf).all()
        assert_close(together.logsumexp(0), backend.sinkhorn_columns(t, potential), rtol=2e-6, atol=2e-6)
    codes, u = backend.sinkhorn_codes(parts[1], v)
    assert codes.shape == (0, n_prototypes)
    assert u.shape == (0,)


def test_runs_repeat_bit_by_bit(small: None) -> None:
    for n_prototypes in (300, 600):
        t = transport(scores_of(20, n_prototypes, torch.bfloat16))
        first, second = (backend.sinkhorn(t) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_few_launches() -> None:
    """Two for each iteration, one for the codes."""
    scores = torch.empty(4096, 3000, dtype=torch.bfloat16, device="meta")
    with launch.recording(90) as launches:
        backend.sinkhorn(transport(scores))
    first, later = ["column_lse_kernel", "combine_columns_kernel"], ["sample_step_kernel", "combine_columns_kernel"]
    assert [found.kernel.__name__ for found in launches] == [*first, *2 * later, "sample_step_kernel"]


def test_scores_and_an_epsilon_of_any_size() -> None:
    for factor in (1e-4, 1e4):
        codes = F.sinkhorn(scores_of(12, 9) * factor, epsilon=0.05 * factor, backend="triton")
        assert_close(codes.sum(1), torch.ones(12))
        assert math.isclose(codes.sum(0).max(), 12 / 9, rel_tol=0.5)
