# SPDX-License-Identifier: Apache-2.0
"""Candidates of each anchor's own, beside those of the batch; and as many features as a prototype head has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from pycl import Pairs, Points
from pycl.engine import own_logits, pair_stats


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("m", [1, 9])
@pytest.mark.parametrize("own", [0, 1, 5])
def test_a_softmax_over_both(own: int, m: int, dtype: torch.dtype, backend: str) -> None:
    shapes = (m, 6), (7, 6), (m, own, 6), (m,)
    leaves = [
        torch.randn(shape).to(dtype if k < 3 else torch.float64).requires_grad_() for k, shape in enumerate(shapes)
    ]
    x, y, z, scale = leaves
    exact = [t.detach().double().requires_grad_() for t in leaves]
    u, v, w = (t / t.norm(dim=-1, keepdim=True) for t in exact[:3])
    wanted = (exact[3][:, None] * torch.cat([u @ v.T, (u[:, None] * w).sum(2)], 1)).logsumexp(1)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    given: dict[str, Any] = {"normalize": True}
    stats = pair_stats(
        Points(x), Points(y), scale.to(wide), denominator=Pairs.ALL, offset=None, **given, backend=backend
    )
    found = torch.logaddexp(stats.lse, own_logits(Points(x), z, scale.to(wide), **given).logsumexp(1))
    assert found.dtype == wide
    half = dtype in (torch.bfloat16, torch.float16)
    assert_close(found.double(), wanted, rtol=0, atol=3e-2 if half else 3e-6)
    gradients = [torch.autograd.grad(t.double().square().sum(), of) for t, of in ((found, leaves), (wanted, exact))]
    for got, want in zip(*gradients, strict=True):
        assert_close(
            got.double(), want, rtol=0, atol=(5e-2 if half else 2e-5) * max(1, *want.abs().flatten().tolist(), 1)
        )


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
def test_norms_of_any_size(size: float) -> None:
    """Squares of such numbers are not in the range of float32; below 1e-12 it is that which divides."""
    leaves = [torch.randn(shape).mul(size).requires_grad_() for shape in ((3, 6), (3, 2, 6))]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    unit = [t / t.norm(dim=-1, keepdim=True).clamp_min(1e-12) for t in exact]
    wanted = (unit[0][:, None] * unit[1]).sum(2)
    found = own_logits(Points(leaves[0]), leaves[1], normalize=True)
    assert_close(found.double(), wanted, rtol=0, atol=1e-6)
    gradients = [torch.autograd.grad(t.double().sum(), of) for t, of in ((found, leaves), (wanted, exact))]
    for got, want in zip(*gradients, strict=True):
        assert_close(got.double(), want, rtol=1e-5, atol=1e-6 / size)


@pytest.mark.parametrize(
    ("own", "error", "message"),
    [
        (torch.zeros(4, 5, 3), ValueError, r"own must have shape \[4, M, 2\].*\(4, 5, 3\)"),
        (torch.zeros(3, 5, 2), ValueError, r"own must have shape \[4, M, 2\].*\(3, 5, 2\)"),
        (torch.zeros(4, 2), ValueError, r"own must have shape \[4, M, 2\].*\(4, 2\)"),
        (torch.zeros(4, 5, 2).long(), TypeError, "own must be a floating-point tensor, got torch.int64"),
        (None, TypeError, "own must be a floating-point tensor, got NoneType"),
        (torch.zeros(4, 5, 2, device="meta"), ValueError, "own must be on cpu as rows.z is, got meta"),
    ],
)
def test_refused(own: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        own_logits(Points(torch.zeros(4, 2)), own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_65536_features(dtype: torch.dtype, backend: str) -> None:
    x, y = (torch.randn(n, 65536).to(dtype).requires_grad_() for n in (70, 50))
    rows, cols = pair_stats(
        Points(x), Points(y), 1 / 256, denominator=Pairs.ALL, offset=None, sides="both", backend=backend
    )
    u, v = (t.detach().double().requires_grad_() for t in (x, y))
    logits = u @ v.T / 256
    assert_close(rows.lse.double(), logits.logsumexp(1), rtol=0, atol=2e-5)
    assert_close(cols.lse.double(), logits.logsumexp(0), rtol=0, atol=2e-5)
    found = torch.autograd.grad(rows.lse.sum() + cols.lse.sum(), [x, y])
    wanted = torch.autograd.grad(logits.logsumexp(1).sum() + logits.logsumexp(0).sum(), [u, v])
    for got, want in zip(found, wanted, strict=True):
        digits = 1e-2 if dtype == torch.bfloat16 else 1e-4
        assert_close(got.double(), want, rtol=0, atol=digits * want.abs().max().item())
