# SPDX-License-Identifier: Apache-2.0
"""MIL-NCE: bags, the positive that counts twice, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pycl.functional as F

VIDEO, TEXT = torch.randn(5, 4).double(), torch.randn(15, 4).double()


def test_a_video_alone_has_its_bag_twice(backend: str) -> None:
    found = F.mil_nce(VIDEO[:1].float(), TEXT[:3].float(), 3, backend=backend)
    torch.testing.assert_close(found, torch.tensor(2.0).log())


def test_bags_of_one_are_both_directions_in_one_logarithm() -> None:
    x = VIDEO @ TEXT[:5].T
    expected = torch.cat([x, x.T], 1).logsumexp(1) - x.diagonal()
    torch.testing.assert_close(F.mil_nce(VIDEO, TEXT[:5], 1, reduction="none"), expected)


def test_the_order_within_a_bag_does_not_matter() -> None:
    shuffled = TEXT.view(5, 3, 4)[:, torch.tensor([2, 0, 1])].flatten(0, 1)
    torch.testing.assert_close(F.mil_nce(VIDEO, shuffled, 3), F.mil_nce(VIDEO, TEXT, 3))


def test_large_features_do_not_overflow() -> None:
    video, text = (30 * x.float().requires_grad_() for x in (VIDEO, TEXT))
    value = F.mil_nce(video, text, 3)
    assert value.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, [video, text]))


@pytest.mark.parametrize(
    ("text", "bag_size", "error", "message"),
    [
        (TEXT, 2, ValueError, "text must have 10 rows, bag_size=2 for each video, got 15"),
        (TEXT, 0, ValueError, "bag_size must be at least 1"),
        (TEXT, 3.0, TypeError, "bag_size must be an integer"),
        (TEXT[:, :3], 3, ValueError, "text must have 4 features"),
        (TEXT.long(), 3, TypeError, "text must be floating point"),
    ],
)
def test_bad_input(text: Any, bag_size: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        F.mil_nce(VIDEO, text, bag_size)
