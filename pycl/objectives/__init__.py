# SPDX-License-Identifier: Apache-2.0
"""The objectives of papers, one file for each: formula, what the authors' code does differently, and which we follow.

Losses of general use are in :mod:`pycl.functional`. Shared by all of them here: embeddings are float64, float32,
bfloat16 or float16 and are normalised inside with ``max(norm, 1e-12)`` unless a docstring says "as given"; a
temperature is a number or a 0-d tensor, which receives its gradient; the value is a float32 scalar (float64 for float64
input); an empty set of pairs gives 0 and no gradient. "Constant" means that an argument gets no gradient, even if it
asks for one. Nothing holds a matrix of all pairs.
"""

from __future__ import annotations

from pycl.objectives.amcl import PairTemperature, amcl
from pycl.objectives.bacon import soft_sup_con
from pycl.objectives.cacr import cacr, cacr_momentum
from pycl.objectives.dbl import dbl, dbl_scores, hardest_triplet
from pycl.objectives.image_text import image_text_sup_con
from pycl.objectives.pcl_sr import dual_contrastive, paired_info_nce
from pycl.objectives.pot import grace
from pycl.objectives.sep_clr import joint_entropy, sep_clr

__all__ = [
    "PairTemperature",
    "amcl",
    "cacr",
    "cacr_momentum",
    "dbl",
    "dbl_scores",
    "dual_contrastive",
    "grace",
    "hardest_triplet",
    "image_text_sup_con",
    "joint_entropy",
    "paired_info_nce",
    "sep_clr",
    "soft_sup_con",
]
