# SPDX-License-Identifier: Apache-2.0
"""The table of objectives: for each paper a file with its formulas, straight from the paper, and its rows."""

from __future__ import annotations

from pycl.testing.objectives import (
    amcl,
    bacon,
    cacr,
    dbl,
    fac,
    feature_transformation,
    gcool,
    hiclr,
    image_text,
    mclrec,
    meow,
    mvcnet,
    pcl_sr,
    pot,
    sep_clr,
    simlap,
)
from pycl.testing.objectives.outside import OUTSIDE
from pycl.testing.objectives.row import Objective, Paper, values

PARTS = (
    amcl,
    bacon,
    cacr,
    dbl,
    fac,
    feature_transformation,
    gcool,
    hiclr,
    image_text,
    mclrec,
    meow,
    mvcnet,
    pcl_sr,
    pot,
    sep_clr,
    simlap,
)
OBJECTIVES = {row.name: row for part in PARTS for row in part.ROWS}

__all__ = ["OBJECTIVES", "OUTSIDE", "Objective", "Paper", "values"]
