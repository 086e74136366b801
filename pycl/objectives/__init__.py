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
from pycl.objectives.fac import moco_cross_format, point_info_nce
from pycl.objectives.feature_transformation import feature_transform, score_statistics
from pycl.objectives.gcool import deca, gcool_community
from pycl.objectives.hiclr import directional_consistency, hiclr
from pycl.objectives.image_text import image_text_sup_con
from pycl.objectives.mclrec import mclrec
from pycl.objectives.meow import PairWeight, ada_meow, meow, proto_nce
from pycl.objectives.mvcnet import mvcnet
from pycl.objectives.pcl_sr import dual_contrastive, paired_info_nce
from pycl.objectives.pot import grace, node_compactness
from pycl.objectives.sep_clr import joint_entropy, sep_clr
from pycl.objectives.simlap import simlap

__all__ = [
    "PairTemperature",
    "PairWeight",
    "ada_meow",
    "amcl",
    "cacr",
    "cacr_momentum",
    "dbl",
    "dbl_scores",
    "deca",
    "directional_consistency",
    "dual_contrastive",
    "feature_transform",
    "gcool_community",
    "grace",
    "hardest_triplet",
    "hiclr",
    "image_text_sup_con",
    "joint_entropy",
    "mclrec",
    "meow",
    "moco_cross_format",
    "mvcnet",
    "node_compactness",
    "paired_info_nce",
    "point_info_nce",
    "proto_nce",
    "score_statistics",
    "sep_clr",
    "simlap",
    "soft_sup_con",
]
