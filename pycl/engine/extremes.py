# SPDX-License-Identifier: Apache-2.0
"""The hardest negative and the hardest positive of every anchor, from one pass over the pairs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pycl.backends import registry
from pycl.core.pairs import Pairs, Points
from pycl.core.problem import Problem, accumulation_dtype
from pycl.engine.reductions import wants_gradient
from pycl.engine.validation import problem_of


class PairExtremes(NamedTuple):
    """One entry per anchor: logits in float32 (float64 for float64 input), and int64 positions of the candidates."""

    negative: Tensor  # the largest logit of the negatives; -inf without one
    positive: Tensor  # the smallest of the positives; inf without one
    negative_index: Tensor  # -1 without one
    positive_index: Tensor


def pair_extremes(
    rows: Points,
    cols: Points | None = None,
    logit_scale: float | Tensor = 1.0,
    *,
    negatives: Pairs,
    positives: Pairs,
    row_bias: Tensor | None = None,
    col_bias: Tensor | None = None,
    offset: int | None = 0,
    normalize: bool = False,
    backend: str | None = None,
) -> PairExtremes:
    r"""The largest logit of every anchor's negatives and the smallest of its positives, without the matrix.

    .. math:: \max_{j \in \mathrm{negatives}(i)} l_{ij}, \quad \min_{j \in \mathrm{positives}(i)} l_{ij}

    Among equal logits the candidate with the lowest index is chosen. A logit of ``-inf`` is no candidate in either set.
    A NaN counts as larger than every number among negatives and as smaller than every number among positives: it is
    chosen in both. Values are differentiable with respect to both ``z``, ``logit_scale`` and both biases; the gradient
    flows to the chosen pairs alone, whose logits are then computed again from gathered points, in [m, d] memory.

    Args:
        negatives: the pair set of the largest logit.
        positives: the pair set of the smallest.
        rows: the other arguments, and the errors from them, are those of ``pair_stats``.

    Returns:
        ``PairExtremes`` of [m] each; ``-inf`` or ``inf`` and an index of -1 for an anchor without a candidate.
    """
    sets = {"negatives": negatives, "positives": positives}
    args = problem_of(rows, cols, logit_scale, sets, row_bias, col_bias, offset, normalize).as_rectangular()
    name = registry.choose(backend, rows.z.device.type, args.rows.dtype)
    with torch.no_grad():
        found = PairExtremes(*torch.ops.pycl.pair_extremes(*args, name))
    if not wants_gradient(args):
        return found
    return found._replace(
        negative=_logits_at(args, found.negative_index, found.negative),
        positive=_logits_at(args, found.positive_index, found.positive),
    )


def _logits_at(args: Problem, index: Tensor, found: Tensor) -> Tensor:
    """The logits of row i with candidate ``index[i]``, as ``found`` where there is none."""
    assert args.cols is not None
    none, dtype = index < 0, accumulation_dtype(args.rows.dtype)
    at = index.clamp_min(0)
    # Masked before they are used: a zero gradient times an infinite embedding would be NaN. Wide before they are
    # gathered: the gradients of a candidate that many rows chose add up in that dtype.
    x = args.rows.to(dtype).masked_fill(none[:, None], 0)
    y = args.cols.to(dtype).index_select(0, at).masked_fill(none[:, None], 0)
    if args.normalize:
        x, y = _normalized(x), _normalized(y)
    logits = args.logit_scale.expand(len(x)).masked_fill(none, 0) * (x * y).sum(1)
    if args.row_bias is not None:
        logits = logits + args.row_bias.masked_fill(none, 0)
    if args.col_bias is not None:
        logits = logits + args.col_bias.index_select(0, at).masked_fill(none, 0)
    return torch.where(none, found, logits)


def _normalized(x: Tensor) -> Tensor:
    """``x / max(norm, 1e-12)``; squares of huge and tiny entries leave the range, so the largest becomes 1 first."""
    peak = x.detach().abs().amax(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    x = x / peak
    return x / torch.maximum(x.norm(dim=1, keepdim=True), 1e-12 / peak)
