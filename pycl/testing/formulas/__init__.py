# SPDX-License-Identifier: Apache-2.0
"""The formula of every loss, straight from its paper, with the whole matrix in plain torch.

A formula has the name and the options of its function in :mod:`pycl.functional`, shares no code with it and returns the
terms of ``reduction="none"``. It runs in the dtype of its inputs: in float64 it is the truth, in a narrower one it
shows what rounding does to plain torch. An empty negative set counts as 0.
"""

from __future__ import annotations

from pycl.testing.formulas.features import barlow_twins, koleo, spectral, vicreg
from pycl.testing.formulas.labels import circle, multi_similarity, sup_con
from pycl.testing.formulas.retrieval import (
    clip,
    guided_info_nce,
    info_nce,
    mil_nce,
    nearest_neighbour_nce,
    robust_info_nce,
    siglip,
    soft_info_nce,
)
from pycl.testing.formulas.shared import Number, diagonal, log_sum, others, unit
from pycl.testing.formulas.views import (
    alignment,
    dcl,
    dclw,
    dhel,
    hard_negative_nce,
    mv_dhel,
    mv_info_nce,
    nt_xent,
    pairwise_nt_xent,
    poly_view,
    uniformity,
)

__all__ = [
    "Number",
    "alignment",
    "barlow_twins",
    "circle",
    "clip",
    "dcl",
    "dclw",
    "dhel",
    "diagonal",
    "guided_info_nce",
    "hard_negative_nce",
    "info_nce",
    "koleo",
    "log_sum",
    "mil_nce",
    "multi_similarity",
    "mv_dhel",
    "mv_info_nce",
    "nearest_neighbour_nce",
    "nt_xent",
    "others",
    "pairwise_nt_xent",
    "poly_view",
    "robust_info_nce",
    "siglip",
    "soft_info_nce",
    "spectral",
    "sup_con",
    "uniformity",
    "unit",
    "vicreg",
]
