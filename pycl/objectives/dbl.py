# SPDX-License-Identifier: Apache-2.0
"""VSE++'s triplet loss with the hardest negatives, and DBL's boosting of a score by the score of an anchor model."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pycl.core.pairs import Pairs, Points
from pycl.distributed.ranks import Group, of_the_batch
from pycl.engine.extremes import PairExtremes, pair_extremes
from pycl.engine.reduction import check_reduction, reduce
from pycl.engine.validation import check_choice
from pycl.functional._common import Scalar, as_scalar, check_matched, unit, widen

FORMS = ("relative", "absolute")


@of_the_batch
def hardest_triplet(
    image: Tensor,
    text: Tensor,
    *,
    margin: Scalar = 0.2,
    reduction: str = "sum",
    group: Group | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""VSE++: hinges of every pair against its hardest wrong text and its hardest wrong image.

    With ``s_ij = <u_i, v_j>`` the cosine of image i and text j, ``[x]+ = max(x, 0)``::

        term_i = [ margin + max_{j != i} s_ij - s_ii ]+  +  [ margin + max_{j != i} s_ji - s_ii ]+

    Of equal maxima the one with the lowest index gets the gradient; the slope of ``[x]+`` at 0 is 0. The gradient flows
    through at most three pairs a term. One instance has no negatives and gives 0 with zero gradient.

    Args:
        image, text: ``[N, d]``, text i describes image i; float64, float32, bfloat16 or float16.
        margin: a number or 0-d tensor.
        reduction: ``"sum"`` as in the paper, ``"mean"`` over the N pairs, or ``"none"`` for the terms ``[N]``.
        group: ranks that share the batch, each with pairs of its own: see :mod:`pycl.distributed`.
        backend: name of the backend to run on; None picks one.

    Raises:
        TypeError: embeddings that are not floating point, a margin that is no number.
        ValueError: differing shapes or devices, an empty batch, an unknown reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Faghri et al., "VSE++: Improving Visual-Semantic Embeddings with Hard Negatives", arXiv 1707.05612, equation 6. The
    authors' normalisation divides a zero row by 0; here it stays 0.
    """
    check_reduction(reduction)
    margin = as_scalar("margin", margin)
    check_matched(image=image, text=text)
    if group is None:
        of_rows, of_cols, own = _hardest(unit(image), unit(text), backend)
    else:
        rows, cols = _extremes(image, text, normalize=True, group=group, backend=backend)
        of_rows, of_cols, own = rows.negative, cols.negative, rows.positive
    return reduce(F.relu(margin + of_rows - own) + F.relu(margin + of_cols - own), reduction, group)


def dbl(
    image: Tensor,
    text: Tensor,
    anchor_image: Tensor,
    anchor_text: Tensor,
    *,
    margin: Scalar = 0.2,
    form: str = "relative",
    positive_share: float = 0.5,
    backend: str | None = None,
) -> Tensor:
    r"""Deep boosting learning, the boost term: this model's scores are to be better than an anchor model's by a margin.

    With ``D_ij = <u_i, v_j> - <a_i, b_j>``, unit vectors, those of the anchor model constant; g the positive share::

        relative:  sum_i [ margin + max_{j != i} D_ij - D_ii ]+  and the same by columns
        absolute:  2 sum_i [ g margin - D_ii ]+  +  sum_i [ (1 - g) margin + max_{j != i} D_ij ]+  and the latter by
                   columns

    The hardest negative is that of D, not of the scores. ``D`` is one product of the vectors ``(u, a)`` and ``(v, -b)``
    and is never stored. Ties and the slope at 0 are those of :func:`hardest_triplet`, whose value on the scores the
    papers add. One instance has no negatives: only ``2 [ g margin - D_ii ]+`` of the absolute form remains.

    Args:
        image, text: ``[N, d]``, text i describes image i; float64, float32, bfloat16 or float16.
        anchor_image, anchor_text: ``[N, e]``, the same pairs from the anchor model; constant.
        margin: a number or 0-d tensor; the paper's scale beta of it is 1.
        form: ``"relative"`` or ``"absolute"``.
        positive_share: from 0 to 1, of the absolute form only.
        backend: name of the backend to run on; None picks one.

    Raises:
        TypeError: embeddings that are not floating point, a margin or share that is no number.
        ValueError: differing shapes or devices, an empty batch, a share outside 0 to 1, an unknown form or backend.
        RuntimeError: the backend asked for is not built.

    Diao et al., "Deep Boosting Learning: A Brand-new Cooperative Approach for Image-Text Matching", arXiv 2404.18114,
    as released: the maximum form with a fixed g.
    """
    options = _checked(margin, form, positive_share)
    check_matched(image=image, text=text)
    check_matched(anchor_image=anchor_image, anchor_text=anchor_text)
    if len(anchor_image) != len(image) or anchor_image.device != image.device:
        raise ValueError(
            f"anchor_image must have the {len(image)} instances of image and be on {image.device}, got "
            f"{len(anchor_image)} on {anchor_image.device}"
        )
    anchors = unit(anchor_image.detach()), unit(anchor_text.detach()).neg_()
    return _boost(*_hardest(unit(image), unit(text), backend, anchors), *options)


def dbl_scores(
    scores: Tensor,
    anchor_scores: Tensor,
    *,
    margin: Scalar = 0.2,
    form: str = "relative",
    positive_share: float = 0.5,
) -> Tensor:
    r"""The boost term of :func:`dbl` on matrices of scores, as of models whose score is no product of two vectors.

    Args:
        scores: ``[N, N]``, image i and text j; float64, float32, bfloat16 or float16.
        anchor_scores: ``[N, N]`` of the anchor model; constant.
        margin, form, positive_share: as in :func:`dbl`.

    Raises:
        TypeError: scores that are not floating point, a margin or share that is no number.
        ValueError: scores that are not square or empty, differing shapes or devices, a share outside 0 to 1, an unknown
            form.

    Diao et al., arXiv 2404.18114.
    """
    options = _checked(margin, form, positive_share)
    check_matched(scores=scores, anchor_scores=anchor_scores)
    if scores.shape[0] != scores.shape[1]:
        raise ValueError(f"scores must have shape [N, N], got {tuple(scores.shape)}")
    d = widen(scores) - widen(anchor_scores.detach())
    negatives = d.masked_fill(torch.eye(len(d), dtype=torch.bool, device=d.device), -torch.inf)
    return _boost(negatives.max(1).values, negatives.max(0).values, d.diagonal(), *options)  # max: the first of equals


def _hardest(
    u: Tensor, v: Tensor, backend: str | None, constant: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The largest negative of every row and of every column of the scores, and the scores of the pairs.

    Scores are products of u and v, plus constant products. The chosen ones are computed again here: at N = 512 the
    gradient of ``pair_extremes`` would take half of a step.
    """
    factors = [(u, v)] if constant is None else [(u, v), constant]
    with torch.no_grad():
        x, y = (side[0] if len(side) == 1 else torch.cat(side, 1) for side in zip(*factors, strict=True))
        of_rows, of_cols = (found.negative_index for found in _extremes(x, y, backend=backend))
    parts = [(_products(x, y, of_rows), _products(y, x, of_cols), (x * y).sum(1)) for x, y in factors]
    return parts[0] if constant is None else tuple(a + b for a, b in zip(*parts, strict=True))


def _products(x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    """``<x_i, y_index(i)>``, -inf where there is none."""
    return (x * F.embedding(index.clamp_min(0), y)).sum(1).masked_fill(index < 0, -torch.inf)


def _extremes(x: Tensor, y: Tensor, **options: Any) -> tuple[PairExtremes, PairExtremes]:
    """The hardest negatives of rows and of columns; the positive of a row is its own pair."""
    return pair_extremes(Points(x), Points(y), negatives=Pairs.OTHERS, positives=Pairs.SELF, sides="both", **options)


def _checked(margin: Scalar, form: str, positive_share: float) -> tuple[Scalar, str, Scalar]:
    check_choice("form", form, FORMS)
    share = as_scalar("positive_share", positive_share)
    if not isinstance(share, Tensor) and not 0.0 <= share <= 1.0:
        raise ValueError(f"positive_share must be from 0 to 1, got {share}")
    return as_scalar("margin", margin), form, share


def _boost(of_rows: Tensor, of_cols: Tensor, own: Tensor, margin: Scalar, form: str, positive_share: Scalar) -> Tensor:
    if form == "relative":
        return F.relu(margin + of_rows - own).sum() + F.relu(margin + of_cols - own).sum()
    of_own = positive_share * margin
    rest = margin - of_own
    return 2 * F.relu(of_own - own).sum() + F.relu(rest + of_rows).sum() + F.relu(rest + of_cols).sum()
