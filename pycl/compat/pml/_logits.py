# SPDX-License-Identifier: Apache-2.0
"""Similarities and distances of pytorch-metric-learning as logits of pycl's engine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pycl.core.pairs import Points
from pycl.functional._common import Scalar, unit, widen

from ._pairs import Compared
from ._parts import COSINES, kind_of


def why_no_logits(distance: Any, *, squares: bool = False, roots: bool = False) -> str:
    """Why a distance cannot be the engine's logits, or nothing; squared Euclidean ones and their roots on request."""
    kind = kind_of(distance)
    if kind == "LpDistance" and (squares or roots):
        powers = [power for power, taken in ((1, roots), (2, squares)) if taken]
        if distance.p != 2 or distance.power not in powers:
            return f"distance=LpDistance(p={distance.p}, power={distance.power})"
        if distance.is_inverted:
            return "a distance with is_inverted=True"
    elif kind not in COSINES:
        return f"distance={type(distance).__name__}"
    elif distance.power != 1:
        return f"a distance of power={distance.power}"
    elif not distance.is_inverted:
        return "a similarity with is_inverted=False"
    return "collect_stats=True" if distance.collect_stats else ""


def logits(problem: Compared, distance: Any, factor: Scalar) -> dict[str, Any]:
    """The engine's arguments for ``factor`` times what a distance gives for every pair; for the cosine without one.

    With ``x_i`` normalised or not, ``factor |x_i - y_j|^2 = -2 factor <x_i, y_j> + factor |x_i|^2 + factor |y_j|^2``.
    """
    rows, cols, offset = problem
    normalize = distance is None or bool(distance.normalize_embeddings)
    if distance is not None and (distance.p != 2 or not distance.is_inverted):
        rows = rows._replace(z=as_compared(rows.z, distance))
        cols = None if cols is None else cols._replace(z=as_compared(cols.z, distance))
        normalize = False
    found: dict[str, Any] = {"rows": rows, "cols": cols, "offset": offset, "normalize": normalize}
    if distance is None or distance.is_inverted:
        return found | {"logit_scale": factor}
    row_bias = factor * _squares(rows)
    col_bias = row_bias if cols is None else factor * _squares(cols)
    return found | {"logit_scale": -2 * factor, "row_bias": row_bias, "col_bias": col_bias}


def roots(problem: Compared, distance: Any) -> dict[str, Any]:
    """The engine's arguments for minus a distance that is not squared, and for that of positives without the minus.

    A root is a ``score_mod``, in plain torch on tiles, of which one does for both pair sets.
    """
    ids, ref_ids = problem.rows.ids, (problem.cols or problem.rows).ids
    assert ids is not None
    assert ref_ids is not None

    def signed(squares: Tensor, i: Tensor, j: Tensor) -> Tensor:
        root = _root(squares)
        return torch.where(ids[i] == ref_ids[j], root, -root)

    return logits(problem, distance, 1.0) | {"score_mod": signed}


def as_compared(z: Tensor, distance: Any) -> Tensor:
    """Embeddings in at least float32 as a distance compares them: at unit length unless it does not normalise."""
    if distance.normalize_embeddings and distance.p != 2:
        return distance.normalize(widen(z))  # type: ignore[no-any-return]  # the library has no types
    return unit(z, bool(distance.normalize_embeddings))


def _squares(points: Points) -> Tensor:
    return (points.z * points.z).sum(1)


def _root(squares: Tensor) -> Tensor:
    """Its slope at 0 is 0, as that of ``torch.cdist``; rounding makes some squares negative."""
    apart = squares > 0
    return squares.where(apart, squares.new_ones(())).sqrt().where(apart, squares.new_zeros(()))
