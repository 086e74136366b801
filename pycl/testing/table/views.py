# SPDX-License-Identifier: Apache-2.0
"""Losses of two and more views: their rows."""

from __future__ import annotations

from torch import Tensor

from pycl import functional as F
from pycl.testing import formulas
from pycl.testing.formulas import unit
from pycl.testing.table.inputs import PAIRED, SYMMETRIC, TWO, unit_pair
from pycl.testing.table.row import LossRow


def _views(views: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    return (views,)


def _unit_points(views: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    return (unit(views[0]),)


SOME = SYMMETRIC - {"views_of_each"}
ROWS = (
    LossRow("nt_xent", F.nt_xent, formulas.nt_xent, _views, "NTXentLoss", invariants=SYMMETRIC),
    LossRow("pairwise_nt_xent", F.pairwise_nt_xent, formulas.pairwise_nt_xent, _views, invariants=SOME),
    LossRow("dcl", F.dcl, formulas.dcl, _views, "DCLLoss", n_views=TWO, invariants=SYMMETRIC),
    LossRow("dclw", F.dclw, formulas.dclw, _views, "DCLWLoss", options={"sigma": 0.5}, n_views=TWO, invariants=SOME),
    LossRow("dhel", F.dhel, formulas.dhel, _views, "DHELLoss", n_views=TWO, invariants=SOME),
    LossRow("mv_dhel", F.mv_dhel, formulas.mv_dhel, _views, "MVDHELLoss", invariants=SOME),
    LossRow("mv_info_nce", F.mv_info_nce, formulas.mv_info_nce, _views, "MVInfoNCELoss", invariants=SYMMETRIC),
    LossRow(
        "mv_info_nce_cross",
        F.mv_info_nce,
        formulas.mv_info_nce,
        _views,
        options={"denominator": "cross_view"},
        invariants=SOME,
    ),
    LossRow("poly_view", F.poly_view, formulas.poly_view, _views, "PolyViewLoss", invariants=SYMMETRIC),
    LossRow(
        "poly_view_arithmetic",
        F.poly_view,
        formulas.poly_view,
        _views,
        options={"mean": "arithmetic"},
        invariants=SYMMETRIC,
    ),
    LossRow(
        "alignment",
        F.alignment,
        formulas.alignment,
        unit_pair,
        scalars={},
        steepness=lambda scalars: 1.0,
        n_views=TWO,
        invariants=PAIRED,
        cosine=False,
        engine=False,
    ),
    LossRow(
        "uniformity",
        F.uniformity,
        formulas.uniformity,
        _unit_points,
        scalars={"t": 2.0},
        steepness=lambda scalars: 1.0,
        n_views=TWO,
        invariants=PAIRED,
        reducible=False,
        cosine=False,
    ),
    LossRow(
        "hard_negative_nce",
        F.hard_negative_nce,
        formulas.hard_negative_nce,
        _views,
        steepness=lambda scalars: 3 / scalars["temperature"],
        n_views=TWO,
        invariants=SYMMETRIC,
    ),
    LossRow(
        "hard_negative_nce_debiased",
        F.hard_negative_nce,
        formulas.hard_negative_nce,
        _views,
        options={"beta": 0.0, "tau_plus": 0.1},
        n_views=TWO,
        invariants=SYMMETRIC,
    ),
    LossRow(
        "hard_negative_nce_both",
        F.hard_negative_nce,
        formulas.hard_negative_nce,
        _views,
        options={"beta": 0.5, "tau_plus": 0.02},
        steepness=lambda scalars: 2 / scalars["temperature"],
        n_views=TWO,
        invariants=SYMMETRIC,
    ),
)
