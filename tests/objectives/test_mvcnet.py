# SPDX-License-Identifier: Apache-2.0
"""MVCNet: without augmented views, with one signal, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from pycl.functional import nt_xent
from pycl.objectives import mvcnet


def test_without_augmented_views_there_is_no_cross_view_loss() -> None:
    cnn, transformer = (torch.randn(1, 5, 4, requires_grad=True) for _ in range(2))
    cross_view, cross_model = mvcnet(cnn, transformer)
    assert cross_view == 0
    assert not cross_view.requires_grad
    torch.testing.assert_close(cross_model, nt_xent((cnn[0], transformer[0]), temperature=0.2))


def test_branches_that_agree_make_both_losses_one() -> None:
    """With one augmented view both sets of points are the same four, paired differently: equal where branches agree."""
    cnn = torch.randn(2, 5, 4)
    cross_view, cross_model = mvcnet(cnn[:1].expand(2, 5, 4), cnn[1:].expand(2, 5, 4))
    assert cross_view < cross_model
    cross_view, cross_model = mvcnet(cnn, cnn)
    assert cross_view > cross_model


def test_a_view_that_is_repeated_changes_no_mean() -> None:
    cnn, transformer = torch.randn(2, 2, 5, 4)
    once, _ = mvcnet(cnn, transformer)
    twice, _ = mvcnet(cnn[[0, 1, 1, 1]], transformer[[0, 1, 1, 1]])
    torch.testing.assert_close(once, twice)


def test_types_of_branches_may_differ() -> None:
    cnn, transformer = torch.randn(2, 3, 5, 4)
    found = mvcnet(cnn, transformer.bfloat16())
    expected = mvcnet(cnn, transformer.bfloat16().float())
    torch.testing.assert_close(found, expected)


def test_what_does_not_fit_is_refused() -> None:
    cnn = torch.randn(3, 5, 4)
    with pytest.raises(ValueError, match=r"transformer must have shape \[1 \+ V, N, d\], got \(5, 4\)"):
        mvcnet(cnn, cnn[0])
    with pytest.raises(ValueError, match=r"cnn and transformer must have one and the same shape \[1 \+ V, N, d\]"):
        mvcnet(cnn, torch.randn(5, 3, 4))
    with pytest.raises(TypeError, match=r"cnn must be floating point, got torch\.int64"):
        mvcnet(cnn.long(), cnn)
    with pytest.raises(TypeError, match="cnn must be a tensor, got list"):
        mvcnet([cnn], cnn)
    with pytest.raises(ValueError, match="cnn must have shape"):
        mvcnet(cnn[:, :0], cnn[:, :0])
