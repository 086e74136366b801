# SPDX-License-Identifier: Apache-2.0
"""PCL-SR: empty sets, extreme logits, pixels, bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pycl.objectives import dual_contrastive, paired_info_nce

MAP = torch.randn(3, 4, 2, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("positives", "negatives"), [([MAP], []), ([], [MAP]), ([], [])])
def test_an_empty_list_gives_zero(positives: list[Tensor], negatives: list[Tensor]) -> None:
    anchor = torch.randn_like(MAP).requires_grad_()
    value = paired_info_nce(anchor, positives, negatives)
    assert value == 0
    assert not torch.autograd.grad(value, anchor)[0].any()


def test_every_pixel_counts_alike_however_long_its_features() -> None:
    anchor, positive, negative = torch.randn(3, 2, 4, 3, 3, dtype=torch.float64)
    s, t = (F.cosine_similarity(anchor, x, dim=1).mean((1, 2)) for x in (positive, negative))
    brightness = torch.rand(2, 1, 3, 3) * 9 + 1
    found = paired_info_nce(anchor * brightness, [positive], [negative / brightness])
    torch.testing.assert_close(found, F.softplus(t - s).mean())


def test_every_positive_has_a_term_of_its_own() -> None:
    anchor, a, b, negative = torch.randn(4, 2, 4, 3, 3)
    alone = [paired_info_nce(anchor, [x], [negative]) for x in (a, b)]
    torch.testing.assert_close(paired_info_nce(anchor, [a, b], [negative]), (alone[0] + alone[1]) / 2)


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
def test_no_logits_give_zero(n: int, m: int) -> None:
    real, fake = torch.randn(n, requires_grad=True), torch.randn(m, requires_grad=True)
    value = dual_contrastive(real, fake)
    assert value == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(value, (real, fake)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("size", "expected"), [(3e4, 0.0), (-3e4, 4 * 3e4)])
def test_extreme_logits(size: float, expected: float, dtype: torch.dtype) -> None:
    real, fake = (torch.tensor([x], dtype=dtype, requires_grad=True) for x in (size, -size))
    value = dual_contrastive(real, fake)
    torch.testing.assert_close(value.double(), torch.tensor(expected).double(), rtol=1e-2, atol=0)
    slopes = torch.autograd.grad(value, (real, fake))
    assert [slope.item() for slope in slopes] == ([-2.0, 2.0] if expected else [0.0, 0.0])


def test_one_logit_each_is_twice_the_logistic_loss() -> None:
    real, fake = torch.randn(1), torch.randn(1)
    torch.testing.assert_close(dual_contrastive(real, fake), 2 * F.softplus(fake - real)[0])


R = torch.randn(4)
BAD: list[tuple[Callable[..., Tensor], tuple[Any, ...], type[Exception], str]] = [
    (paired_info_nce, (MAP, MAP, [MAP]), TypeError, "positives must be a list of tensors, got Tensor"),
    (paired_info_nce, (MAP, [MAP], [MAP[:1]]), ValueError, r"negatives\[0\] must have the shape \(3, 4, 2, 5\)"),
    (paired_info_nce, (MAP, [MAP, MAP.long()], []), TypeError, r"positives\[1\] must be floating point"),
    (paired_info_nce, (MAP[0], [MAP[0]], []), ValueError, r"anchor must have shape \[B, c, h, w\]"),
    (paired_info_nce, (MAP, [None], []), TypeError, r"positives\[0\] must be a tensor, got NoneType"),
    (dual_contrastive, (R, R[:, None]), ValueError, r"fake must have shape \[n\], got \(4, 1\)"),
    (dual_contrastive, (R.long(), R), TypeError, "real must be floating point"),
    (dual_contrastive, (R.to("meta"), R), ValueError, "fake must be on meta as real is"),
]


@pytest.mark.parametrize(("function", "inputs", "error", "message"), BAD, ids=range(len(BAD)))
def test_bad_input_is_refused(
    function: Callable[..., Tensor], inputs: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        function(*inputs)
