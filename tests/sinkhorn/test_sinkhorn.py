# SPDX-License-Identifier: Apache-2.0
"""Codes from stored scores: the published algorithm at every number of iterations, on every backend and dtype."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from helpers.oracle import assert_as_accurate
from helpers.sinkhorn_reference import published
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pycl.backends import registry
from pycl.functional import dino_codes, sinkhorn

HALVES = torch.bfloat16, torch.float16
DTYPES = torch.float64, torch.float32, *HALVES
SHAPES = [(1, 1), (1, 7), (7, 1), (33, 16), (64, 65), (130, 37), (257, 1100)]


def scores_of(n_samples: int, n_prototypes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.rand(n_samples, n_prototypes) * 2 - 1).to(dtype)


@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_published(sinkhorn_backend: str, dtype: torch.dtype, shape: tuple[int, int], iterations: int) -> None:
    scores = scores_of(*shape, dtype)
    truth = published(scores.double(), iterations=iterations)
    eager = published(scores.float() if dtype in HALVES else scores, iterations=iterations).to(dtype)
    got = sinkhorn(scores, iterations=iterations, backend=sinkhorn_backend)
    assert got.dtype == dtype
    assert_as_accurate(got, eager, truth, dtype, magnitude=truth.max().item())
    wide = sinkhorn(scores, iterations=iterations, dtype=torch.float32, backend=sinkhorn_backend)
    assert wide.dtype == torch.float32
    narrow = torch.float64 if dtype == torch.float64 else torch.float32
    assert_as_accurate(wide, eager.float(), truth, torch.float32 if narrow == torch.float64 else narrow)


def test_many_samples_and_prototypes(sinkhorn_backend: str) -> None:
    """Several workers, blocks and chunks of columns; sums of thousands of terms stay accurate."""
    for shape in ((3001, 130), (65, 9001)):
        scores = scores_of(*shape)
        truth = published(scores.double())
        got = sinkhorn(scores, backend=sinkhorn_backend)
        assert_as_accurate(got, published(scores), truth, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_epsilon_is_finite(sinkhorn_backend: str, dtype: torch.dtype) -> None:
    """The linear domain overflows here; a fixed point in float64 with one shift for all is what to compare with."""
    scores = scores_of(60, 23, dtype)
    with torch.no_grad():
        exact = scores.double() / 0.003
        u = torch.zeros(60, 1, dtype=torch.float64)
        for _ in range(3):
            v = -(exact + u).logsumexp(0)
            u = -(exact + v).logsumexp(1, keepdim=True)
        truth = (exact + u + v).exp()
    got = sinkhorn(scores, epsilon=0.003, backend=sinkhorn_backend)
    assert got.isfinite().all()
    # logits reach 333, whose last bit in float32 is 3e-5, and an entry may be any number of them away from its shift
    slack = {torch.float64: 1e-11, torch.float32: 2e-4}.get(dtype, 8e-3)
    torch.testing.assert_close(got.double(), truth, rtol=0, atol=slack)
    torch.testing.assert_close(got.double().sum(1), torch.ones(60).double(), rtol=0, atol=slack)


def test_extreme_scores(sinkhorn_backend: str) -> None:
    """Outputs without normalisation, hundreds of units apart, and whole rows and columns far from the others."""
    scores = scores_of(40, 12) * 100
    scores[3] += 4e3
    scores[:, 5] -= 9e3
    got = sinkhorn(scores, epsilon=0.05, backend=sinkhorn_backend)
    assert got.isfinite().all()
    torch.testing.assert_close(got.sum(1), torch.ones(40), rtol=0, atol=1e-5)


@pytest.mark.thorough(sinkhorn_backend="triton")  # hundreds of iterations
def test_rows_and_columns_of_the_fixed_point(sinkhorn_backend: str) -> None:
    scores = scores_of(48, 12, torch.float32)
    codes = sinkhorn(scores, epsilon=0.2, iterations=300, backend=sinkhorn_backend)
    torch.testing.assert_close(codes.sum(1), torch.ones(48), rtol=0, atol=1e-5)
    torch.testing.assert_close(codes.sum(0), torch.full((12,), 4.0), rtol=0, atol=1e-4)
    once_more = sinkhorn(scores, epsilon=0.2, iterations=301, backend=sinkhorn_backend)
    torch.testing.assert_close(once_more, codes, rtol=0, atol=1e-5)


def test_closed_forms(sinkhorn_backend: str) -> None:
    flat = sinkhorn(torch.zeros(6, 4), backend=sinkhorn_backend)
    torch.testing.assert_close(flat, torch.full((6, 4), 0.25))
    # scores that are a sum over rows and columns carry no preference once they are balanced
    rows, cols = torch.randn(6, 1), torch.randn(4)
    torch.testing.assert_close(sinkhorn(rows + cols, epsilon=0.5, backend=sinkhorn_backend), flat)
    # one cluster each: with scores far apart the codes are the permutation
    order = torch.randperm(9)
    codes = sinkhorn(torch.eye(9)[order], epsilon=0.01, backend=sinkhorn_backend)
    torch.testing.assert_close(codes, torch.eye(9)[order], rtol=0, atol=1e-6)
    # 2 x 2 at convergence: the plan's cross ratio is that of the scores
    s = torch.tensor([[0.3, -0.2], [0.1, 0.4]])
    p = sinkhorn(s, epsilon=0.5, iterations=100, backend=sinkhorn_backend).double()
    ratio = (p[0, 0] * p[1, 1] / (p[0, 1] * p[1, 0])).log().item()
    assert ratio == pytest.approx((0.3 + 0.4 + 0.2 - 0.1) / 0.5, rel=1e-5)
    assert p[0, 0].item() == pytest.approx(p[1, 1].item(), rel=1e-5)


def test_shift_of_all_scores_changes_nothing_of_each_samples_does(sinkhorn_backend: str) -> None:
    """A per-sample maximum, which some codes subtract for stability, is another algorithm at three iterations."""
    scores = scores_of(64, 40) * 3
    codes = sinkhorn(scores, backend=sinkhorn_backend)
    torch.testing.assert_close(sinkhorn(scores + 7.0, backend=sinkhorn_backend), codes, rtol=0, atol=1e-4)
    shifted = scores - scores.amax(1, keepdim=True)
    assert (sinkhorn(shifted, backend=sinkhorn_backend) - codes).abs().max() > 0.05
    torch.testing.assert_close(
        sinkhorn(shifted, backend=sinkhorn_backend), published(shifted.double()).float(), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_marginals(sinkhorn_backend: str, dtype: torch.dtype) -> None:
    scores = scores_of(50, 20, dtype)
    a, m = (torch.rand(n, dtype=dtype) + 0.1 for n in (50, 20))
    a, m = a / a.sum(), m / m.sum()
    got = sinkhorn(scores, sample_marginal=a, prototype_marginal=m, backend=sinkhorn_backend)
    truth = published(scores.double(), sample_marginal=a.double(), prototype_marginal=m.double())
    assert_as_accurate(got, published(scores, sample_marginal=a, prototype_marginal=m), truth, dtype)
    options = {"epsilon": 1.0, "sample_marginal": a, "prototype_marginal": m}
    settled = sinkhorn(scores, iterations=20, backend=sinkhorn_backend, **options)
    torch.testing.assert_close(a @ settled, m, rtol=1e-4, atol=1e-6)
    uniform = torch.full((50,), 1 / 50, dtype=dtype), torch.full((20,), 1 / 20, dtype=dtype)
    same = sinkhorn(scores, sample_marginal=uniform[0], prototype_marginal=uniform[1], backend=sinkhorn_backend)
    torch.testing.assert_close(same, sinkhorn(scores, backend=sinkhorn_backend), rtol=1e-5, atol=1e-7)


def test_ruled_out_pairs(sinkhorn_backend: str) -> None:
    scores = scores_of(30, 9).masked_fill(torch.rand(30, 9) < 0.3, -torch.inf)
    scores[:, 0], scores[0] = 0.1, 0.2
    got = sinkhorn(scores, backend=sinkhorn_backend)
    torch.testing.assert_close(got, published(scores.double()).float(), rtol=0, atol=1e-5)
    assert (got[scores == -torch.inf] == 0).all()


def test_layouts(sinkhorn_backend: str) -> None:
    scores = scores_of(37, 21)
    expected = sinkhorn(scores, backend=sinkhorn_backend)
    padded = torch.full((37, 40), torch.nan)
    padded[:, 5:26] = scores
    for layout in (scores.T.contiguous().T, padded[:, 5:26], scores.repeat(2, 1)[:37], scores.double().float()):
        assert torch.equal(sinkhorn(layout, backend=sinkhorn_backend), expected)
    rows = torch.full((74, 21), torch.nan)
    rows[::2] = scores
    assert torch.equal(sinkhorn(rows[::2], backend=sinkhorn_backend), expected)
    one = scores[:, :1].clone()[:, ::1]
    assert torch.equal(sinkhorn(one, backend=sinkhorn_backend), torch.ones(37, 1))


def test_constants_and_determinism(sinkhorn_backend: str) -> None:
    scores = scores_of(37, 21).requires_grad_()
    codes = sinkhorn(scores, backend=sinkhorn_backend)
    assert not codes.requires_grad
    assert all(torch.equal(sinkhorn(scores, backend=sinkhorn_backend), codes) for _ in range(3))


@given(st.data())
def test_drawn(data: st.DataObject) -> None:
    names = registry.installed("cpu", torch.float32, registry.SINKHORN)
    draw = functools.partial(data.draw)
    shape = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    epsilon, iterations = draw(st.floats(0.02, 2.0)), draw(st.integers(1, 6))
    torch.manual_seed(draw(st.integers(0, 99)))
    scores = scores_of(*shape)
    order, columns = torch.randperm(shape[0]), torch.randperm(shape[1])
    truth = published(scores.double(), epsilon, iterations)
    for name in names:
        codes = sinkhorn(scores, epsilon=epsilon, iterations=iterations, backend=name)
        torch.testing.assert_close(codes.double(), truth, rtol=0, atol=3e-5)
        permuted = sinkhorn(scores[order][:, columns], epsilon=epsilon, iterations=iterations, backend=name)
        torch.testing.assert_close(permuted, codes[order][:, columns], rtol=0, atol=1e-5)


def test_dino(sinkhorn_backend: str) -> None:
    output = torch.randn(2, 9, 17).to(torch.bfloat16)
    rows = output.view(18, 17)
    codes = dino_codes(output, 0.07, backend=sinkhorn_backend)
    assert codes.dtype == torch.float32
    assert codes.shape == output.shape
    torch.testing.assert_close(codes.view(18, 17), published(rows.double(), 0.07).float(), rtol=0, atol=3e-5)
    count = torch.tensor([18])
    again = dino_codes(rows, 0.07, n_masked_patches_tensor=count, n_iterations=2, backend=sinkhorn_backend)
    torch.testing.assert_close(again, published(rows.double(), 0.07, 2).float(), rtol=0, atol=3e-5)


NAN, INF = torch.nan, torch.inf


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epsilon": 0.0}, ValueError, "epsilon must be positive and finite, got 0"),
        ({"epsilon": -1.0}, ValueError, "epsilon must be positive"),
        ({"epsilon": NAN}, ValueError, "epsilon must be positive"),
        ({"epsilon": "a"}, TypeError, "epsilon must be a number"),
        ({"iterations": 0}, ValueError, "iterations must be at least 1, got 0"),
        ({"iterations": 2.0}, TypeError, "iterations must be an integer, got float"),
        ({"scores": torch.zeros(0, 4)}, ValueError, r"B, K >= 1, got \(0, 4\)"),
        ({"scores": torch.zeros(4, 0)}, ValueError, r"B, K >= 1, got \(4, 0\)"),
        ({"scores": torch.zeros(4)}, ValueError, r"\[B, K\]"),
        ({"scores": torch.zeros(4, 4, dtype=torch.int64)}, TypeError, "scores must be one of"),
        ({"scores": [[1.0]]}, TypeError, "scores must be a tensor, got list"),
        ({"scores": torch.tensor([[0.0, NAN], [0, 0]])}, ValueError, r"nan at \[0, 1\]"),
        ({"scores": torch.tensor([[0.0, 0], [INF, 0]])}, ValueError, r"inf at \[1, 0\]"),
        ({"scores": torch.tensor([[0.0, 0], [-INF, -INF]])}, ValueError, "row 1 has only -inf"),
        ({"scores": torch.tensor([[-INF, 0.0], [-INF, 0]])}, ValueError, "column 0 has only -inf"),
        ({"scores": torch.full((2, 2), 3e38), "epsilon": 1e-3}, ValueError, "beyond the range of its dtype"),
        (
            {"prototype_marginal": torch.tensor([0.5, 0.6, 0.2])},
            ValueError,
            "prototype_marginal must sum to 1, got 1.3",
        ),
        ({"prototype_marginal": torch.tensor([0.5, 0.5, 0.0])}, ValueError, "positive, finite entries, got 0"),
        ({"prototype_marginal": torch.tensor([0.5, 0.7, -0.2])}, ValueError, "positive, finite entries, got -0.2"),
        ({"prototype_marginal": torch.ones(2) / 2}, ValueError, r"prototype_marginal must have shape \[3\]"),
        ({"sample_marginal": torch.ones(3) / 3}, ValueError, r"sample_marginal must have shape \[4\]"),
        ({"sample_marginal": [0.5, 0.5]}, TypeError, "sample_marginal must be a floating-point tensor, got list"),
        ({"dtype": torch.float16}, ValueError, "dtype must be None, torch.float32 or that of the scores"),
        ({"group": 3}, TypeError, "group must be None, 'world', 'local' or a .*, got int"),
        ({"backend": "abacus"}, ValueError, "backend must be None or one of"),
    ],
)
def test_bad_input(options: dict[str, Any], error: type[Exception], message: str) -> None:
    scores = options.pop("scores", torch.zeros(4, 3))
    with pytest.raises(error, match=message):
        sinkhorn(scores, **options)


def test_bad_dino_input() -> None:
    with pytest.raises(ValueError, match="teacher_temp must be positive"):
        dino_codes(torch.zeros(2, 3), 0.0)
    with pytest.raises(ValueError, match=r"teacher_output must have shape \[\.\.\., K\]"):
        dino_codes(torch.zeros(3), 0.1)


def test_a_backend_without_the_operator_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = registry.load(registry.installed("cpu")[0])
    monkeypatch.delattr(cpu, "sinkhorn")
    registry.why_not.cache_clear()
    with pytest.raises(registry.BackendUnavailable, match="has no sinkhorn; leave the choice"):
        sinkhorn(torch.zeros(2, 2), backend=registry.installed("cpu")[0])
    monkeypatch.undo()
    registry.why_not.cache_clear()


def test_out(sinkhorn_backend: str) -> None:
    """Codes go where they are told to, and may take the place of the scores."""
    scores = scores_of(257, 1100)
    expected = sinkhorn(scores, backend=sinkhorn_backend)
    out = torch.full_like(scores, torch.nan)
    assert sinkhorn(scores, out=out, backend=sinkhorn_backend) is out
    assert torch.equal(out, expected)
    half, wide = scores.to(torch.bfloat16), torch.empty_like(scores)
    expected_wide = sinkhorn(half, dtype=torch.float32, backend=sinkhorn_backend)
    assert torch.equal(sinkhorn(half, out=wide, backend=sinkhorn_backend), expected_wide)
    assert sinkhorn(scores, out=scores, backend=sinkhorn_backend) is scores
    assert torch.equal(scores, expected)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (torch.zeros(3, 4), r"out must be contiguous with shape \(4, 3\), got \(3, 4\)"),
        (torch.zeros(3, 4).T, "out must be contiguous"),
        (torch.zeros(4, 3, dtype=torch.float16), "out must be one of torch.float32, got torch.float16"),
        (torch.zeros(4, 3, device="meta"), "out must be on cpu as scores is, got meta"),
    ],
)
def test_bad_out(out: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sinkhorn(torch.zeros(4, 3), out=out)


def test_out_that_overlaps() -> None:
    memory = torch.zeros(5, 3)
    with pytest.raises(ValueError, match="out must be scores itself or share no memory"):
        sinkhorn(memory[:4], out=memory[1:])
    memory[1, 1] = NAN
    with pytest.raises(ValueError, match="out=scores has overwritten where"):
        sinkhorn(memory, out=memory)
