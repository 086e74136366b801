# SPDX-License-Identifier: Apache-2.0
"""The objectives of papers, one file for each: formula, what the authors' code does differently, and which we follow.

Losses of general use are in :mod:`pycl.functional`. Shared by all of them here: embeddings are float64, float32,
bfloat16 or float16 and are normalised inside with ``max(norm, 1e-12)`` unless a docstring says "as given"; a
temperature is a number or a 0-d tensor, which receives its gradient; the value is a float32 scalar (float64 for float64
input); an empty set of pairs gives 0 and no gradient. "Constant" means that an argument gets no gradient, even if it
asks for one. Nothing holds a matrix of all pairs.
"""

from __future__ import annotations

from pycl.objectives.gcool import deca, gcool_community
from pycl.objectives.meow import PairWeight, ada_meow, meow, proto_nce
from pycl.objectives.pot import grace
from pycl.objectives.simlap import simlap

__all__ = [
    "PairWeight",
    "ada_meow",
    "deca",
    "gcool_community",
    "grace",
    "meow",
    "proto_nce",
    "simlap",
]
