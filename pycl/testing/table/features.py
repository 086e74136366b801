# SPDX-License-Identifier: Apache-2.0
"""Losses without a softmax over pairs: their rows."""

from __future__ import annotations

from torch import Tensor

from pycl import functional as F
from pycl.testing import formulas
from pycl.testing.table.inputs import FEATURES, PAIRED, pair
from pycl.testing.table.row import LossRow


def _one_view(views: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    return (views[0],)


ROWS = (
    LossRow("spectral", F.spectral, formulas.spectral, pair, invariants=PAIRED, reducible=False, **FEATURES),
    LossRow(
        "vicreg",
        F.vicreg,
        formulas.vicreg,
        pair,
        invariants=frozenset({"instances"}),
        reducible=False,
        **FEATURES,
    ),
    LossRow(
        "barlow_twins",
        F.barlow_twins,
        formulas.barlow_twins,
        pair,
        invariants=frozenset({"instances"}),
        reducible=False,
        **FEATURES,
    ),
    LossRow("koleo", F.koleo, formulas.koleo, _one_view, invariants=frozenset({"instances"}), **FEATURES),
)
