# SPDX-License-Identifier: Apache-2.0
"""The mean of the logits under their own softmax, against dense float64."""

from __future__ import annotations

import pytest
import torch
from helpers.oracle import assert_as_accurate, widest
from torch import Tensor
from torch.nn.functional import normalize

from pycl import Pairs, Points
from pycl.engine.average import mean_logit

# rows, columns, features, scale, the position of the first row among the columns; bounds of logits above 35 and below
SHAPES = {
    "one": (1, 1, 1, 1.0, None),
    "few columns": (150, 6, 40, 2.0, None),
    "others": (101, 131, 17, 1.8, 3),
    "steep": (40, 70, 9, 90.0, None),
    "flat": (60, 60, 33, 1e-5, 0),
    "wide": (20, 33, 300, 14.0, None),
}


def leaves_of(m: int, n: int, d: int, scale: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(m + n)
    x, y = (normalize(torch.randn(k, d, dtype=torch.float64, generator=generator), dim=1) for k in (m, n))
    return {
        "x": x,
        "y": y,
        "scale": torch.tensor(scale, dtype=torch.float64),
        "col_bias": -scale / 2 * torch.rand(n, dtype=torch.float64, generator=generator),
    }


def logits_of(leaves: dict[str, Tensor], offset: int | None) -> tuple[Tensor, Tensor]:
    """All logits, and which pairs count: not a point with itself."""
    logits = leaves["scale"] * leaves["x"] @ leaves["y"].T + leaves["col_bias"]
    m, n = logits.shape
    others = torch.ones(m, n, dtype=torch.bool)
    if offset is not None:
        others[torch.arange(m)[:, None] + offset == torch.arange(n)] = False
    return logits, others


def formula(leaves: dict[str, Tensor], offset: int | None) -> Tensor:
    logits, others = logits_of(leaves, offset)
    return (logits.masked_fill(~others, -torch.inf).softmax(1) * logits).sum(1)


def ours(leaves: dict[str, Tensor], offset: int | None, backend: str) -> Tensor:
    points = Points(leaves["x"]), Points(leaves["y"])
    options = {"col_bias": leaves["col_bias"], "offset": offset, "backend": backend}
    return mean_logit(*points, leaves["scale"], pairs=Pairs.OTHERS, **options)


def with_gradients(value: Tensor, leaves: dict[str, Tensor], slope: Tensor) -> list[Tensor]:
    return [value.detach(), *torch.autograd.grad((value.double() * slope).sum(), list(leaves.values()))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape: str, dtype: torch.dtype, backend: str) -> None:
    m, n, d, scale, offset = SHAPES[shape]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    given = {k: t.to(dtype if k in "xy" else wide).requires_grad_() for k, t in leaves_of(m, n, d, scale).items()}
    exact = {k: t.detach().double().requires_grad_() for k, t in given.items()}
    plain = {k: t.detach().to(dtype).requires_grad_() for k, t in given.items()}
    slope = torch.randn(m, dtype=torch.float64)
    truth = with_gradients(formula(exact, offset), exact, slope)
    eager = with_gradients(formula(plain, offset), plain, slope)
    found = with_gradients(ours(given, offset, backend), given, slope)
    logits, others = logits_of(exact, offset)
    p = logits.detach().masked_fill(~others, -torch.inf).softmax(1)
    spread = p * slope.abs()[:, None] * (1 + 2 * logits.detach().abs())  # of a logit's gradient, without cancellation
    sizes = [
        logits.abs().max().item(),
        *(scale * (spread @ exact["y"].detach().abs()).max().item(), scale * spread.sum(0).max().item()),
        (spread * logits.detach().abs()).sum().item() / scale,
        spread.sum(0).max().item(),
    ]
    for mine, rounded, right, size in zip(found, eager, truth, sizes, strict=True):
        assert_as_accurate(mine, rounded, right, dtype, magnitude=size)


@pytest.mark.parametrize("shape", SHAPES)
def test_instruction_sets(shape: str, isa: str) -> None:
    *sizes, scale, offset = SHAPES[shape]
    leaves = {k: t.requires_grad_() for k, t in leaves_of(*sizes, scale).items()}
    slope = torch.randn(sizes[0], dtype=torch.float64)
    found, truth = (with_gradients(x, leaves, slope) for x in (ours(leaves, offset, "cpu"), formula(leaves, offset)))
    for mine, right in zip(found, truth, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-9, atol=1e-10 * max(1.0, scale))


@pytest.mark.float64
@pytest.mark.parametrize("offset", [None, 2])
def test_gradcheck(offset: int | None, backend: str) -> None:
    leaves = {k: t.requires_grad_() for k, t in leaves_of(7, 11, 4, 3.0).items()}
    torch.autograd.gradcheck(lambda *t: ours(dict(zip(leaves, t, strict=True)), offset, backend), (*leaves.values(),))


@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_a_row_without_pairs_and_dropped_pairs(scale: float, backend: str) -> None:
    """No pairs: 0 and no gradient. A column with a bias of -inf is in no mean."""
    leaves = {k: t.to(widest(backend)).requires_grad_() for k, t in leaves_of(1, 1, 4, scale).items()}
    alone = with_gradients(ours(leaves, 0, backend), leaves, torch.ones(1))
    assert all((t == 0).all() for t in alone)
    some = leaves_of(20, 12, 4, scale) | {"col_bias": torch.zeros(12, dtype=torch.float64)}
    dropped = {k: t.to(widest(backend)) for k, t in some.items()}
    dropped["col_bias"][8:] = -torch.inf
    left = {k: t[:8] if k in ("y", "col_bias") else t for k, t in some.items()}
    found, wanted = ours(dropped, None, backend), formula(left, None)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_a_nan_stays_in_its_row(backend: str) -> None:
    leaves = {k: t.to(widest(backend)) for k, t in leaves_of(50, 30, 4, 2.0).items()}
    leaves["x"][3] = torch.nan
    assert ours(leaves, None, backend).isnan().nonzero().tolist() == [[3]]


def test_the_gradient_of_equal_logits(backend: str) -> None:
    """All weights are equal and the mean is every logit: each gets the gradient 1 / n."""
    y = torch.ones(9, 3, dtype=widest(backend), requires_grad=True)
    mean_logit(Points(y.detach()[:2]), Points(y), 0.5, offset=None, backend=backend).sum().backward()
    torch.testing.assert_close(y.grad, torch.full_like(y, 2 * 0.5 / 9))
