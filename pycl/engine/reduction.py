# SPDX-License-Identifier: Apache-2.0
"""From statistics to the terms of a loss, and from those to its value."""

from __future__ import annotations

import torch
from torch import Tensor

from pycl.distributed.ranks import Agreement, Group, agree
from pycl.engine.validation import check_choice

REDUCTIONS = ("mean", "sum", "none")


def check_reduction(reduction: str) -> None:
    """Raise ValueError unless the reduction has a known name."""
    check_choice("reduction", reduction, REDUCTIONS)


def reduce(terms: Tensor, reduction: str, group: Group | None = None) -> Tensor:
    """Mean, sum or the terms themselves; ``group`` is what :func:`pycl.together` handed the loss.

    On the ranks of a group, each rank returns a share: the average of the ranks' shares is the mean or the sum over all
    ranks' terms.
    """
    check_reduction(reduction)
    return share_of(terms, reduction, agree(group, terms.device, [terms.shape[-1]], reduction=reduction))


def share_of(terms: Tensor, reduction: str, agreement: Agreement | None) -> Tensor:
    """``reduce`` for ranks that have agreed on how many terms each of them has."""
    if reduction == "none":
        return terms
    if reduction == "sum":
        return terms.sum() if agreement is None else terms.sum() * agreement.ranks.size
    return terms.mean() if agreement is None or agreement.weight == 1 else terms.mean() * agreement.weight


def by_view(terms: Tensor, n_views: int) -> Tensor:
    """Terms of several views, a row for each; a value as it is."""
    return terms if terms.dim() == 0 else terms.view(n_views, -1)


def zero_if_empty(lse: Tensor) -> Tensor:
    """The log-sum-exp of an empty set counts as 0 and passes no gradient."""
    return lse.masked_fill(lse == -torch.inf, 0.0)
