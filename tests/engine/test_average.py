# SPDX-License-Identifier: Apache-2.0
"""The engine's softmax-weighted mean of values, against dense attention in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers.oracle import assert_as_accurate, between_logits, widest
from torch import Tensor
from torch.nn.functional import normalize

from pycl import Pairs, Points, pair_average


def dense(
    x: Tensor, y: Tensor, values: Tensor, scale: float, allowed: Tensor | None, bias: tuple[Tensor, Tensor] | None
) -> Tensor:
    logits = scale * (x @ y.T)
    if bias is not None:
        logits = logits + bias[0][:, None] + bias[1]
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    weights = logits.softmax(1).nan_to_num(0.0)  # a row without pairs
    return weights @ values


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("m", "n", "d", "dv"), [(1, 1, 1, 1), (33, 70, 16, 5), (130, 45, 40, 64)])
def test_dense(backend: str, dtype: torch.dtype, m: int, n: int, d: int, dv: int) -> None:
    x, y, values = (torch.randn(*shape).to(dtype) for shape in ((m, d), (n, d), (n, dv)))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    scale, bias = 2.0 / d**0.5, (torch.randn(m, dtype=wide), torch.randn(n, dtype=wide))
    cotangent = torch.randn(m, dv, dtype=torch.float64)

    def run(dtype: torch.dtype, ours: bool) -> tuple[Tensor, Tensor]:
        a, b = (z.to(dtype) for z in (x, y))
        v = values.to(dtype).requires_grad_()
        if ours:
            options: dict[str, Any] = {"row_bias": bias[0], "col_bias": bias[1], "offset": None, "backend": backend}
            out = pair_average(Points(a), Points(b), v, scale, **options)
        else:
            out = dense(a, b, v, scale, None, (bias[0].to(dtype), bias[1].to(dtype)))
        (gradient,) = torch.autograd.grad((out.double() * cotangent).sum(), v)
        return out.detach(), gradient

    truth, eager, got = run(torch.float64, False), run(dtype, False), run(dtype, True)
    assert got[0].dtype == wide
    assert got[1].dtype == dtype
    for mine, plain, true in zip(got, eager, truth, strict=True):
        assert_as_accurate(mine, plain, true, dtype, magnitude=3.0)


def test_pair_sets_normalisation_and_self(backend: str) -> None:
    dtype = widest(backend)
    x, values = torch.randn(40, 8, dtype=dtype) * 4, torch.randn(40, 3, dtype=dtype)
    ids, views = torch.randint(0, 9, (40,)), torch.randint(0, 2, (40,))
    ids[0], views[0] = 99, 7  # nobody's positive
    points, unit = Points(x, ids, views), normalize(x.double(), dim=1)
    same = ids[:, None] == ids
    other_view = views[:, None] != views
    eye = torch.eye(40, dtype=torch.bool)
    tolerance = {"rtol": 0.0, "atol": 1e-5}
    for pairs, allowed in (
        (Pairs.OTHERS, ~eye),
        (Pairs.POSITIVE, same & ~eye),
        (Pairs.NEG_OTHER_VIEW, ~same & other_view),
        (Pairs.ALL, None),
    ):
        got = pair_average(points, None, values, 3.0, pairs=pairs, normalize=True, backend=backend)
        truth = dense(unit, unit, values.double(), 3.0, allowed, None)
        torch.testing.assert_close(got.double(), truth, **tolerance)
    assert (pair_average(points, None, values, pairs=Pairs.POSITIVE, backend=backend)[0] == 0).all()
    shifted = pair_average(Points(x[5:25]), Points(x), values, pairs=Pairs.SELF, offset=5, backend=backend)
    torch.testing.assert_close(shifted, values[5:25], **tolerance)


def test_gradient_of_an_offset_sweep(backend: str) -> None:
    """The backward runs the transposed problem, with labels, biases and the offset of the other side."""
    dtype = widest(backend)
    x, y = torch.randn(9, 4, dtype=dtype), torch.randn(14, 4, dtype=dtype)
    values = torch.randn(14, 2, dtype=dtype, requires_grad=True)
    allowed = torch.arange(9)[:, None] + 3 != torch.arange(14)
    out = pair_average(Points(x), Points(y), values, 0.7, pairs=Pairs.OTHERS, offset=3, backend=backend)
    (got,) = torch.autograd.grad(out.square().sum(), values)
    exact = values.detach().double().requires_grad_()
    (true,) = torch.autograd.grad(dense(x.double(), y.double(), exact, 0.7, allowed, None).square().sum(), exact)
    torch.testing.assert_close(got.double(), true, rtol=0, atol=1e-5)


def test_large_logits(backend: str) -> None:
    """Where the anchor itself takes all the weight, its value comes back, off by what two sweeps see of one logit."""
    x, values = torch.randn(20, 8), torch.randn(20, 3)
    got = pair_average(Points(x), None, values, 1e4, normalize=True, backend=backend)
    torch.testing.assert_close(got, values, rtol=math.expm1(between_logits(1e4, 8)), atol=0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"values": torch.zeros(3, 2)}, ValueError, r"values must have shape \[4, dv\]"),
        ({"values": torch.zeros(4)}, ValueError, r"values must have shape \[4, dv\]"),
        ({"values": torch.zeros(4, 2, dtype=torch.int64)}, TypeError, "values must be a floating-point tensor"),
        ({"logit_scale": torch.ones(5)}, ValueError, "logit_scale must be one number for all rows here"),
        ({"col_bias": torch.ones(4, requires_grad=True)}, ValueError, "col_bias must not require a gradient"),
        ({"rows": Points(torch.ones(5, 3, requires_grad=True))}, ValueError, "rows.z must not require a gradient"),
    ],
)
def test_bad_input(options: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"rows": Points(torch.zeros(5, 3)), "cols": Points(torch.zeros(4, 3)), "values": torch.zeros(4, 2)}
    with pytest.raises(error, match=message):
        pair_average(**(arguments | {"offset": None} | options))  # type: ignore[arg-type]  # of mixed types
