# SPDX-License-Identifier: Apache-2.0
"""MCLRec: its regulariser as the authors write it, ties, one sequence."""

from __future__ import annotations

import pytest
import torch

from pycl.functional import nt_xent
from pycl.objectives import mclrec
from pycl.testing.objectives.mclrec import mclrec as formula
from pycl.testing.objectives.mclrec import sequences


def test_the_regulariser_is_that_of_two_hinges() -> None:
    """mean [p - min(p, n)]+ + mean [max(p, n) - s]+ over the negatives s, the authors' form."""
    x = sequences(9, 6)
    found = mclrec(**x, regularizer=1.0) - mclrec(**x, regularizer=0.0)
    expected = torch.zeros((), dtype=torch.float64)
    for a, b in (("h1", "v2"), ("h2", "v1"), ("v1", "v2")):
        z = torch.cat([x[a], x[b]])
        s, instance = z @ z.T, torch.arange(9).repeat(2)
        p = torch.cat([s.diagonal(9), s.diagonal(-9)])[:, None]
        negatives = s[instance[:, None] != instance].view(18, 16)
        n = negatives.amax(1, keepdim=True)
        expected += (p - torch.minimum(p, n)).mean() + (torch.maximum(p, n) - negatives).relu().mean()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_without_the_regulariser_it_is_three_contrasts() -> None:
    x = sequences(9, 6)
    pairs = ("h1", "v2"), ("h2", "v1"), ("v1", "v2")
    expected = sum(nt_xent((x[a], x[b]), temperature=1.0, normalize=False) for a, b in pairs)
    torch.testing.assert_close(mclrec(**x, regularizer=0.0), expected)


def test_one_sequence_has_no_negatives() -> None:
    x = [torch.randn(1, 4, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    value = mclrec(*x, regularizer=5.0)
    for found in (value, *torch.autograd.grad(value, x)):
        torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-12)


def test_at_ties_the_lowest_index_has_the_gradient_and_the_hinge_has_none() -> None:
    """Positive, hardest and every other negative are equal."""
    x = {name: torch.ones(4, 2, dtype=torch.float64, requires_grad=True) for name in ("h1", "h2", "v1", "v2")}
    values = [function(**x, regularizer=torch.tensor(1.0)) for function in (mclrec, formula)]
    torch.testing.assert_close(*values)
    found, expected = (torch.autograd.grad(value, list(x.values())) for value in values)
    torch.testing.assert_close(found, expected)
    assert found[0][0].abs().max() > 2 * found[0][3].abs().max()  # of each half the first row is the hardest of most


def test_large_scores_stay_finite_in_float16() -> None:
    x = [(100 * torch.randn(6, 8)).half().requires_grad_() for _ in range(4)]
    value = mclrec(*x)
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, x))


def test_what_does_not_fit_is_refused() -> None:
    x = sequences(5, 4)
    with pytest.raises(ValueError, match="h1 and v2 must have one and the same shape"):
        mclrec(**{**x, "v2": torch.randn(4, 4)})
    with pytest.raises(TypeError, match="v1 must be floating point"):
        mclrec(**{**x, "v1": torch.ones(5, 4, dtype=torch.int64)})
    with pytest.raises(TypeError, match="regularizer must be a number"):
        mclrec(**x, regularizer="0.1")
