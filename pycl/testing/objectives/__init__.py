# SPDX-License-Identifier: Apache-2.0
"""The table of objectives: for each paper a file with its formulas, straight from the paper, and its rows."""

from __future__ import annotations

from pycl.testing.objectives import (
    fac,
    feature_transformation,
    hiclr,
    mclrec,
    mvcnet,
    pot,
)
from pycl.testing.objectives.row import Objective, Paper, values

PARTS = (fac, feature_transformation, hiclr, mclrec, mvcnet, pot)
OBJECTIVES = {row.name: row for part in PARTS for row in part.ROWS}

__all__ = ["OBJECTIVES", "Objective", "Paper", "values"]
