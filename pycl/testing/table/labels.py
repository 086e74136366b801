# SPDX-License-Identifier: Apache-2.0
"""Losses of labelled points: their rows."""

from __future__ import annotations

from torch import Tensor

from pycl import functional as F
from pycl.testing import formulas
from pycl.testing.table.inputs import PAIRED, SYMMETRIC, TWO
from pycl.testing.table.row import LossRow


def _labelled(views: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    return views, labels


def _one_labelled(views: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    return views[0], labels


ROWS = (
    LossRow("sup_con", F.sup_con, formulas.sup_con, _labelled, "SupConLoss", n_views=(1, 64), invariants=SYMMETRIC),
    LossRow(
        "sup_con_in",
        F.sup_con,
        formulas.sup_con,
        _labelled,
        options={"form": "in"},
        n_views=(1, 64),
        invariants=SYMMETRIC,
    ),
    LossRow(
        "multi_similarity",
        F.multi_similarity,
        formulas.multi_similarity,
        _one_labelled,
        scalars={"alpha": 2.0, "beta": 50.0, "base": 0.5},
        steepness=lambda scalars: scalars["beta"],
        n_views=TWO,
        invariants=PAIRED,
    ),
    LossRow(
        "circle",
        F.circle,
        formulas.circle,
        _one_labelled,
        scalars={},
        steepness=lambda scalars: 160.0,
        n_views=TWO,
        invariants=PAIRED,
        traced=False,
    ),
)
