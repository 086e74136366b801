# SPDX-License-Identifier: Apache-2.0
"""Sinkhorn problems for kernels, and the published algorithm on dense float64 matrices as their truth."""

from __future__ import annotations

import torch
from torch import Tensor

from helpers.oracle import assert_as_accurate
from pycl.backends import reference_sinkhorn
from pycl.core.problem import SinkhornProblem, accumulation_dtype


def problem(
    n_samples: int,
    n_prototypes: int,
    dtype: torch.dtype = torch.bfloat16,
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    codes: torch.dtype | None = None,
    marginals: bool = False,
    holes: float = 0.0,
    stride: int | None = None,
) -> SinkhornProblem:
    """Cosine-like scores, a share of them ruled out; around rows of a stride of their own lies NaN."""
    values = (torch.randn(n_samples, n_prototypes) * 0.3).clamp(-1, 1).to(dtype)
    if holes:
        gone = torch.rand(values.shape) < holes
        gone[torch.arange(max(values.shape)) % n_samples, torch.arange(max(values.shape)) % n_prototypes] = False
        values[gone] = -torch.inf
    scores = values
    if stride is not None:
        scores = torch.full((n_samples + 2, stride), torch.nan, dtype=dtype)[1:-1, :n_prototypes]
        scores.copy_(values)
    wide = accumulation_dtype(dtype)
    a, m = (torch.rand(n) + 0.1 if marginals else torch.ones(n) for n in (n_samples, n_prototypes))
    a, m = ((n_samples * x / x.sum()).log().to(wide) for x in (a, m))
    return SinkhornProblem(scores, epsilon, iterations, a if marginals else None, m, dtype if codes is None else codes)


def dense(t: SinkhornProblem) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, u and v of the plan ``x_b exp(scores_bk / epsilon) y_k``, without a logarithm in the iterations."""
    kernel = (t.scores.double() / t.epsilon).exp()
    rows = 1.0 if t.sample_target is None else t.sample_target.double().exp()
    columns = t.prototype_target.double().exp()
    x = kernel.new_ones(len(kernel))
    for _ in range(t.iterations):
        y = columns / (kernel.T @ x)
        x = rows / (kernel @ y)
    codes = kernel * y
    return codes / codes.sum(1, keepdim=True), x.log(), y.log()


def check(found: tuple[Tensor, Tensor, Tensor], t: SinkhornProblem) -> None:
    """Codes and potentials against float64, with the error of plain torch in the same dtype as the budget."""
    truth, eager = dense(t), reference_sinkhorn.sinkhorn(t)
    logits = t.scores[t.scores.isfinite()].abs().max().item() / t.epsilon  # potentials are differences of such
    narrow, wide = t.dtype, accumulation_dtype(t.scores.dtype)
    rest = zip((narrow, wide, wide), (0.0, logits, logits), strict=True)
    for got, plain, exact, (dtype, magnitude) in zip(found, eager, truth, rest, strict=True):
        assert got.dtype == plain.dtype
        assert_as_accurate(got, plain, exact, dtype, magnitude=magnitude)
