# SPDX-License-Identifier: Apache-2.0
"""The hardest negative and the hardest positive of every anchor, from one pass over the pairs."""

from __future__ import annotations

import sys
from typing import Literal, NamedTuple, overload

from torch import Tensor

from pycl.core.pairs import Pairs, Points
from pycl.distributed.ranks import Group
from pycl.engine.modifiers import Modified, with_roles_apart
from pycl.engine.reductions import SIDES, backend_of
from pycl.engine.validation import check_choice, problem_of
from pycl.ops.autograd import ExtremesFunction, apply
from pycl.ops.sharded import sharded

if sys.version_info >= (3, 11):
    from typing import Unpack
else:
    from typing_extensions import Unpack


class PairExtremes(NamedTuple):
    """One entry per anchor: logits in float32 (float64 for float64 input), and int64 positions of the candidates."""

    negative: Tensor  # the largest logit of the negatives; -inf without one
    positive: Tensor  # the smallest of the positives; inf without one
    negative_index: Tensor  # -1 without one
    positive_index: Tensor


@overload
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
    sides: Literal["rows"] = "rows",
    normalize: bool = False,
    group: Group | None = None,
    backend: str | None = None,
    **changes: Unpack[Modified],
) -> PairExtremes: ...
@overload
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
    sides: Literal["both"],
    normalize: bool = False,
    group: Group | None = None,
    backend: str | None = None,
    **changes: Unpack[Modified],
) -> tuple[PairExtremes, PairExtremes]: ...
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
    sides: Literal["rows", "both"] = "rows",
    normalize: bool = False,
    group: Group | None = None,
    backend: str | None = None,
    **changes: Unpack[Modified],
) -> PairExtremes | tuple[PairExtremes, PairExtremes]:
    r"""The largest logit of every anchor's negatives and the smallest of its positives, without the matrix.

    .. math:: \max_{j \in \mathrm{negatives}(i)} l_{ij}, \quad \min_{j \in \mathrm{positives}(i)} l_{ij}

    Among equal logits the candidate with the lowest index is chosen. A logit of ``-inf`` is no candidate in either set.
    A NaN counts as larger than every number among negatives and as smaller than every number among positives: it is
    chosen in both. Values are differentiable once, with respect to both ``z``, ``logit_scale``, both biases and what
    modifiers have; the gradient flows to the chosen pairs alone, whose logits are then computed again from gathered
    points, in memory of the size of the points.

    Args:
        negatives: the pair set of the largest logit.
        positives: the pair set of the smallest.
        sides: ``"both"`` returns the extremes of the candidates too, over the anchors that have them in their sets: on
            a CPU from the same sweep. Indices are then positions of anchors, and of equals the lowest is chosen.
        group: the candidates are those of all ranks, in the order of the ranks: a rank's first candidate comes after
            all candidates of the ranks before. Indices are positions in that order, those of a candidate's anchors
            in that of all ranks' anchors, and the rest is as in ``pair_stats``.
        rows: the other arguments, and the errors from them, are those of ``pair_stats``.

    Returns:
        ``PairExtremes`` of [m] each; ``-inf`` or ``inf`` and an index of -1 for an anchor without a candidate. With
        ``sides="both"`` those of the rows and those of the columns, [n] each.
    """
    check_choice("sides", sides, SIDES)
    sets = {"negatives": negatives, "positives": positives}
    args = problem_of(rows, cols, logit_scale, sets, row_bias, col_bias, offset, normalize, group, **changes)
    args = with_roles_apart(args) if sides == "both" else args
    both = sides == "both" and args.cols is not None
    args = args.as_rectangular()
    name = backend_of(args, backend)
    args, shards = sharded(group, "pair_extremes", args, both)
    index, col_index, negative, positive, *of_cols = apply(ExtremesFunction, *args, both, name, shards)
    of_rows = PairExtremes(negative, positive, *index.unbind())
    if sides == "rows":
        return of_rows
    return of_rows, PairExtremes(*of_cols, *col_index.unbind()) if both else of_rows
