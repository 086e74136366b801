# SPDX-License-Identifier: Apache-2.0
"""SepCLR: limits of the joint entropy, empty sets, features of any length, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pycl.functional import alignment, uniformity
from pycl.objectives import joint_entropy, sep_clr
from pycl.testing.objectives.sep_clr import joint_entropy as formula


def batch(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def two_views(n: int = 9) -> dict[str, Tensor]:
    return {"common": batch(2, n, 6), "salient": batch(2, n, 4), "is_target": torch.arange(n) % 3 > 0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_apart_it_is_minus_log_n(dtype: torch.dtype) -> None:
    """Self distances from products would be 0.01 and more for rows of this length."""
    salient = (20 * batch(64, 32)).to(dtype)
    value = joint_entropy(batch(64, 8).to(dtype), salient)
    torch.testing.assert_close(value, torch.tensor(-math.log(64), dtype=dtype), rtol=0, atol=1e-6)


def test_all_alike_it_is_zero() -> None:
    common, salient = batch(1, 6).expand(9, 6), batch(1, 4).expand(9, 4)
    assert joint_entropy(common, salient).abs() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_one_instance_is_zero(dtype: torch.dtype) -> None:
    common, salient = batch(1, 6).to(dtype).requires_grad_(), batch(1, 4).to(dtype).requires_grad_()
    value = joint_entropy(common, salient)
    assert value == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(value, (common, salient)))


def test_where_salient_features_lie_does_not_matter() -> None:
    """They are measured from their mean: 3,000 off, products of float32 would be wrong by one and more."""
    common, salient = batch(40, 6).float(), (3000 + batch(40, 4)).float().requires_grad_()
    wide = salient.detach().double().requires_grad_()
    value, expected = joint_entropy(common, salient), formula(common.double(), wide, 0.5)
    torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-5)
    gradients = (torch.autograd.grad(v, x)[0].double() for v, x in ((value, salient), (expected, wide)))
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)


def test_rows_of_the_background_are_alike_however_large_the_others_are() -> None:
    """Measured from the mean, those rows would have products of 1e8, and distances that are off by 10."""
    common, salient = batch(40, 6), 2e4 * batch(40, 4)
    salient[::2] = 0.0
    expected = formula(common, salient, 0.5)
    torch.testing.assert_close(joint_entropy(common.float(), salient.float()).double(), expected, rtol=0, atol=1e-6)


def test_it_is_the_sum_of_its_terms() -> None:
    given = two_views()
    c, s, chosen = torch.nn.functional.normalize(given["common"], dim=-1), given["salient"], given["is_target"]
    t = s * chosen[:, None]
    terms = (
        alignment(*c) / 0.6 + sum(uniformity(x, t=1 / 0.6) for x in c),
        alignment(*s[:, chosen]) / 0.6 + sum(uniformity(x, t=1 / 0.6) for x in t),
        s[:, ~chosen].square().sum(-1).mean() / 0.6,
        sum(joint_entropy(x, y, temperature=0.3) for x, y in zip(given["common"], t, strict=True)) / 2,
    )
    expected = terms[0] + 5 * terms[1] + 7 * terms[2] + 11 * terms[3]
    found = sep_clr(**given, temperature=0.3, salient_weight=5.0, null_weight=7.0, entropy_weight=11.0)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("everyone", [True, False])
def test_an_empty_set_gives_nothing(everyone: bool) -> None:
    """Without targets nothing is left of the salient term, without background nothing of the null term."""
    given = {**two_views(), "is_target": torch.full((9,), everyone)}
    salient = given["salient"].requires_grad_()
    weight = {"null_weight" if everyone else "salient_weight": torch.tensor(1e3, requires_grad=True)}
    value = sep_clr(**given, **weight)
    gradient, of_weight = torch.autograd.grad(value, (salient, *weight.values()))
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert of_weight.abs() < 1e-6
    torch.testing.assert_close(value, sep_clr(**given, **dict.fromkeys(weight, 0.0)))


def test_background_rows_get_the_gradient_of_the_null_term_alone() -> None:
    given = two_views()
    salient = given["salient"].requires_grad_()
    gradient = torch.autograd.grad(sep_clr(**given, null_weight=2.0), salient)[0]
    background = ~given["is_target"]
    expected = 2.0 * 2 * salient[:, background] / (2 * background.sum())  # over two views, 2 T = 1
    torch.testing.assert_close(gradient[:, background], expected.detach())


def test_one_instance_has_no_pairs() -> None:
    given = {**two_views(1), "is_target": torch.tensor([True])}
    expected = alignment(*torch.nn.functional.normalize(given["common"], dim=-1)) + 3.0 * alignment(*given["salient"])
    torch.testing.assert_close(sep_clr(**given, salient_weight=3.0), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_points_far_apart_and_rows_without_length_are_finite(dtype: torch.dtype) -> None:
    """Far apart, the logarithm of a mean of exponentials would be -inf."""
    given = two_views()
    common, salient = given["common"].to(dtype), (1000 * given["salient"]).to(dtype)
    common[:, 2] = salient[:, 2] = 0.0
    leaves = common.requires_grad_(), salient.requires_grad_()
    value = sep_clr(*leaves, given["is_target"], temperature=0.01)
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value, leaves) if dtype.itemsize > 2)


def test_products_are_not_autocast() -> None:
    given = {name: x.float() if x.is_floating_point() else x for name, x in two_views(16).items()}
    expected = sep_clr(**given)
    with torch.autocast("cpu", torch.bfloat16):
        assert sep_clr(**given) == expected


@pytest.mark.parametrize("wide", ["common", "salient"])
def test_the_wider_dtype_counts(wide: str) -> None:
    given = two_views()
    expected = sep_clr(**{name: x.float().double() if x.is_floating_point() else x for name, x in given.items()})
    mixed = {name: x if name == "is_target" else x.float() for name, x in given.items()}
    mixed[wide] = mixed[wide].double()
    found = sep_clr(**mixed)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"common": batch(9, 6)}, ValueError, r"common must have shape \[2, N, d\]"),
        ({"common": batch(3, 9, 6)}, ValueError, r"common must have shape \[2, N, d\]"),
        ({"salient": batch(2, 8, 4)}, ValueError, "one row per instance of common, which are 9"),
        ({"salient": batch(2, 9, 4).long()}, TypeError, "salient must be floating point"),
        ({"is_target": torch.ones(8, dtype=torch.bool)}, ValueError, "one row per instance of common, which are 9"),
        ({"is_target": torch.ones(9)}, TypeError, "is_target must be a bool tensor"),
        ({"is_target": [True] * 9}, TypeError, "is_target must be a bool tensor"),
        ({"null_weight": -1.0}, ValueError, "null_weight must be at least 0"),
        ({"salient_weight": math.inf}, ValueError, "salient_weight must be at least 0 and finite"),
        ({"entropy_weight": "10"}, TypeError, "entropy_weight must be a number"),
    ],
)
def test_sep_clr_refuses(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sep_clr(**{**two_views(), **changes})


@pytest.mark.parametrize(
    ("common", "salient", "error", "message"),
    [
        (batch(9, 6), batch(8, 4), ValueError, "one row per instance"),
        (batch(2, 9, 6), batch(9, 4), ValueError, r"common must have shape \[n, d\]"),
        (batch(9, 6), batch(9, 0), ValueError, r"salient must have shape \[n, d\]"),
        (batch(9, 6).int(), batch(9, 4), TypeError, "common must be floating point"),
    ],
)
def test_joint_entropy_refuses(common: Tensor, salient: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        joint_entropy(common, salient)
