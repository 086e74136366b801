# SPDX-License-Identifier: Apache-2.0
"""The hardest negative and the hardest positive of every anchor, from one pass over the pairs."""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch
from torch import Tensor

from pycl.backends.reference_modifiers import Data, modify
from pycl.core.pairs import Pairs, Points
from pycl.core.problem import Problem, accumulation_dtype
from pycl.engine.modifiers import Modified, normalized
from pycl.engine.reductions import backend_of, wants_gradient
from pycl.engine.validation import problem_of

if sys.version_info >= (3, 11):
    from typing import Unpack
else:
    from typing_extensions import Unpack


CHUNK = 64  # rows whose chosen pairs are modified in one tile


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
    **changes: Unpack[Modified],
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
    args = problem_of(rows, cols, logit_scale, sets, row_bias, col_bias, offset, normalize, **changes).as_rectangular()
    name = backend_of(args, backend)
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
        x, y = normalized(x), normalized(y)
    logits = args.logit_scale.expand(len(x)).masked_fill(none, 0) * (x * y).sum(1)
    if args.row_bias is not None:
        logits = logits + args.row_bias.masked_fill(none, 0)
    if args.col_bias is not None:
        logits = logits + args.col_bias.index_select(0, at).masked_fill(none, 0)
    if args.modifiers:
        logits = torch.cat([_modified_at(args, part, logits[part], at[part]) for part in _chunks(len(x))])
    return torch.where(none, found, logits)


def _modified_at(args: Problem, i: slice, logits: Tensor, at: Tensor) -> Tensor:
    """The logits of rows ``i`` with one candidate each after the modifiers, which take tiles: this is a diagonal."""
    of_rows = (None if x is None else x[i] for x in (args.row_codes, args.row_values))
    of_cols = (None if x is None else x.index_select(0, at) for x in (args.col_codes, args.col_values))
    (row_codes, row_values), (col_codes, col_values) = of_rows, of_cols
    data = Data(row_codes, col_codes, row_values, col_values, args.shared)
    rows, tile = torch.arange(i.start, i.stop, device=at.device), logits[:, None].expand(-1, len(at))
    return modify(args.modifiers, data, tile, None, rows, at).diagonal()


def _chunks(n: int) -> list[slice]:
    return [slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]
