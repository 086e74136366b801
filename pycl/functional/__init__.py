# SPDX-License-Identifier: Apache-2.0
"""The losses as functions; each is a sentence about pair sets on :func:`pycl.engine.pair_stats`.

Shared by all of them: ``views`` is a tensor ``[V, N, d]`` or a sequence of V tensors ``[N, d]``; ``temperature`` is
a number or a 0-d tensor, which receives its gradient when it requires one. Losses on the engine take the keyword
arguments of :class:`Options` besides their own. Losses and statistics are float32
(float64 for float64 input), gradients have the dtype of the input. ``reduction="none"`` returns one term per anchor
or, where the formula has one term per instance, per instance.
"""

from __future__ import annotations

from pycl.functional._options import Options
from pycl.functional.alignment import alignment, uniformity
from pycl.functional.circle import circle
from pycl.functional.clip import clip, siglip
from pycl.functional.dcl import dcl, dclw
from pycl.functional.dhel import dhel, mv_dhel
from pycl.functional.guided import guided_info_nce
from pycl.functional.hard_negative import hard_negative_nce
from pycl.functional.info_nce import info_nce
from pycl.functional.koleo import koleo
from pycl.functional.matryoshka import matryoshka
from pycl.functional.mil_nce import mil_nce
from pycl.functional.multi_similarity import multi_similarity
from pycl.functional.multi_view import mv_info_nce, poly_view
from pycl.functional.multimodal import multimodal
from pycl.functional.nearest_neighbour import nearest_neighbour_nce
from pycl.functional.nt_xent import nt_xent, pairwise_nt_xent
from pycl.functional.redundancy import barlow_twins, vicreg
from pycl.functional.robust import robust_info_nce
from pycl.functional.similarity import similarity, similarity_histogram, similarity_topk
from pycl.functional.sinkhorn import dino_codes, sinkhorn, sinkhorn_potentials
from pycl.functional.soft import soft_info_nce
from pycl.functional.spectral import spectral
from pycl.functional.sup_con import sup_con
from pycl.functional.swav import swav

__all__ = [
    "Options",
    "alignment",
    "barlow_twins",
    "circle",
    "clip",
    "dcl",
    "dclw",
    "dhel",
    "dino_codes",
    "guided_info_nce",
    "hard_negative_nce",
    "info_nce",
    "koleo",
    "matryoshka",
    "mil_nce",
    "multi_similarity",
    "multimodal",
    "mv_dhel",
    "mv_info_nce",
    "nearest_neighbour_nce",
    "nt_xent",
    "pairwise_nt_xent",
    "poly_view",
    "robust_info_nce",
    "siglip",
    "similarity",
    "similarity_histogram",
    "similarity_topk",
    "sinkhorn",
    "sinkhorn_potentials",
    "soft_info_nce",
    "spectral",
    "sup_con",
    "swav",
    "uniformity",
    "vicreg",
]
