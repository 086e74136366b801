# SPDX-License-Identifier: Apache-2.0
"""A loss of your own: NT-Xent that weights hard negatives, its formula with the whole matrix, and the comparison."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import pycl
from pycl import Pairs
from pycl.testing import assert_ddp_equivalent


@pycl.together
def hard_nt_xent(
    views: Tensor | Sequence[Tensor],
    *,
    temperature: float | Tensor = 0.5,
    beta: float = 1.0,
    reduction: str = "mean",
    normalize: bool = True,
    group: pycl.distributed.Group | None = None,
    backend: str | None = None,
) -> Tensor:
    """NT-Xent on two views, with every negative weighted by ``exp(beta s)``.

    With ``s_ij = <u_i, u_j> / temperature``, the positive p and the n negatives j of anchor i::

        term_i = log( exp s_ip  +  n sum_j exp((1 + beta) s_ij) / sum_j exp(beta s_ij) )  -  s_ip

    ``beta = 0`` is NT-Xent. One instance has no negatives and gives 0 with zero gradient.

    Robinson et al., "Contrastive Learning with Hard Negative Samples", arXiv 2010.04592, with tau+ = 0.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    points, n_views = pycl.stack_views(views)
    if n_views != 2:
        raise ValueError(f"views: hard_nt_xent is defined for exactly two views, got {n_views}")
    hard = pycl.pair_stats(
        points,
        logit_scale=(1 + beta) / temperature,
        denominator=Pairs.NEGATIVE,
        positives=Pairs.POS_OTHER_VIEW,
        normalize=normalize,
        group=group,
        backend=backend,
    )
    weights = pycl.pair_stats(
        points,
        logit_scale=beta / temperature,
        denominator=Pairs.NEGATIVE,
        positives=Pairs.NEGATIVE,  # for their number, on all ranks
        normalize=normalize,
        group=group,
        backend=backend,
    )
    n_negatives = weights.pos_count
    of_weights = weights.lse.masked_fill(n_negatives == 0, 0)  # -inf - -inf would be NaN
    negatives = hard.lse - of_weights + n_negatives.clamp(min=1).log()
    positive = hard.pos_sum / (1 + beta)
    terms = -F.logsigmoid(positive - negatives)  # log(exp positive + exp negatives) - positive
    return pycl.reduce(pycl.by_view(terms, n_views), reduction, group)


def formula(views: Tensor, temperature: float | Tensor, beta: float) -> Tensor:
    """The terms [2, N] from the whole matrix."""
    n = views.shape[1]
    u = F.normalize(views.flatten(0, 1), dim=1)
    s = u @ u.T / temperature
    instance = torch.arange(n).repeat(2)
    weights = (beta * s).exp() * (instance[:, None] != instance)
    negatives = (2 * n - 2) * (weights * s.exp()).sum(1) / weights.sum(1)
    positive = torch.cat([s.diagonal(n), s.diagonal(-n)])
    return (torch.log(positive.exp() + negatives) - positive).view(2, n)


def compare(backend: str | None = None) -> None:
    """Values and gradients of the loss against those of the formula, in float64."""
    views = torch.randn(2, 12, 8, dtype=torch.float64, requires_grad=True)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    for beta in (0.0, 1.0, 2.5):
        terms = hard_nt_xent(views, temperature=temperature, beta=beta, reduction="none", backend=backend)
        expected = formula(views, temperature, beta)
        torch.testing.assert_close(terms, expected)
        of_terms = torch.randn_like(expected)  # each term with a weight of its own, or errors could cancel
        found = torch.autograd.grad(terms, (views, temperature), of_terms)
        torch.testing.assert_close(found, torch.autograd.grad(expected, (views, temperature), of_terms))


def on_all_ranks(z1: Tensor, z2: Tensor) -> Tensor:
    return hard_nt_xent((z1, z2), group="world")


if __name__ == "__main__":
    compare()
    assert_ddp_equivalent(on_all_ranks)
    print("hard_nt_xent is its formula, on one process and on two")
