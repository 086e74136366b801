# SPDX-License-Identifier: Apache-2.0
"""The objectives of papers, one file for each: formula, what the authors' code does differently, and which we follow.

Losses of general use are in :mod:`pycl.functional`. Shared by all of them here: embeddings are float64, float32,
bfloat16 or float16 and are normalised inside with ``max(norm, 1e-12)`` unless a docstring says "as given"; a
temperature is a number or a 0-d tensor, which receives its gradient; the value is a float32 scalar (float64 for float64
input); an empty set of pairs gives 0 and no gradient. "Constant" means that an argument gets no gradient, even if it
asks for one. Nothing holds a matrix of all pairs.
"""

from __future__ import annotations

from pycl.objectives.fac import moco_cross_format, point_info_nce
from pycl.objectives.feature_transformation import feature_transform, score_statistics
from pycl.objectives.hiclr import directional_consistency, hiclr
from pycl.objectives.mclrec import mclrec
from pycl.objectives.mvcnet import mvcnet
from pycl.objectives.pot import grace, node_compactness

__all__ = [
    "directional_consistency",
    "feature_transform",
    "grace",
    "hiclr",
    "mclrec",
    "moco_cross_format",
    "mvcnet",
    "node_compactness",
    "point_info_nce",
    "score_statistics",
]
