# SPDX-License-Identifier: Apache-2.0
"""Losses of queries and keys, images and texts: their rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pycl import functional as F
from pycl.testing import formulas
from pycl.testing.formulas import unit
from pycl.testing.table.inputs import FEATURES, PAIRED, TWO, pair, unit_pair
from pycl.testing.table.row import Arguments, LossRow


def _with_negatives(views: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Embeddings with their features in reverse are nobody's keys."""
    return views[0], views[1], views.flip(-1).flatten(0, 1)


def _with_own_negatives(views: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Negatives [M, N, d], the M of each query one after the other, so that instances are where views have them."""
    return views[0], views[1], views.flip(-1)


def _own_negatives(query: Tensor, key: Tensor, negatives: Tensor) -> Arguments:
    return (query, key, negatives.transpose(0, 1)), {}


def _half(x: Tensor) -> Tensor:
    """What another model might make of the same instances: features of another number and other cosines."""
    return x[..., : (x.shape[-1] + 1) // 2]


def _guided(query: Tensor, key: Tensor, negatives: Tensor) -> Arguments:
    names = ("guide_query", "guide_key", "guide_negatives")
    return (query, key, negatives), dict(zip(names, map(_half, (query, key, negatives)), strict=True))


def _guided_own(query: Tensor, key: Tensor, negatives: Tensor) -> Arguments:
    return _guided(query, key, negatives.transpose(0, 1))


def _taught(query: Tensor, key: Tensor) -> Arguments:
    return (query, key, _half(query), _half(key)), {}


def _labelled_unit_pair(views: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    return unit(views[0]), unit(views[1]), labels


def _several_texts(image: Tensor, text: Tensor, labels: Tensor) -> Arguments:
    """Image i and text i may have different ids."""
    return (image, text), {"ids": (labels, labels // 2)}


def _with_bags(views: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Two texts for each video, one of them of nobody."""
    texts = torch.stack([views[1], views[1].flip(-1)], 1)
    return unit(views[0]), unit(texts.flatten(0, 1))


SIMILARITIES: dict[str, Any] = {  # of unit vectors, with a scale and a bias that the model owns
    "scalars": {"logit_scale": 10.0, "logit_bias": -3.0},
    "steepness": lambda scalars: scalars["logit_scale"],
    "n_views": TWO,
    "invariants": PAIRED,
    "cosine": False,
}

OWN_NEGATIVES: dict[str, Any] = {
    "inputs_of": _with_own_negatives,
    "arguments_of": _own_negatives,
    "n_views": TWO,
    "invariants": PAIRED,
}

# a margin that drops some of random negatives, and that no pair of equal or of opposite embeddings is near
FAR = -0.7


ROWS = (
    LossRow("info_nce", F.info_nce, formulas.info_nce, pair, "InfoNCELoss", n_views=TWO, invariants=PAIRED),
    LossRow(
        "info_nce_symmetric",
        F.info_nce,
        formulas.info_nce,
        pair,
        options={"symmetric": True},
        n_views=TWO,
        invariants=PAIRED,
    ),
    LossRow("info_nce_shared", F.info_nce, formulas.info_nce, _with_negatives, n_views=TWO),
    LossRow(
        "info_nce_shared_in_batch",
        F.info_nce,
        formulas.info_nce,
        _with_negatives,
        options={"in_batch": True},
        n_views=TWO,
    ),
    LossRow("info_nce_own", F.info_nce, formulas.info_nce, **OWN_NEGATIVES),
    LossRow("info_nce_own_in_batch", F.info_nce, formulas.info_nce, **OWN_NEGATIVES, options={"in_batch": True}),
    LossRow(
        "info_nce_smooth",
        F.info_nce,
        formulas.info_nce,
        pair,
        options={"symmetric": True, "label_smoothing": 0.1},
        n_views=TWO,
        invariants=PAIRED,
    ),
    LossRow(
        "info_nce_own_smooth",
        F.info_nce,
        formulas.info_nce,
        **OWN_NEGATIVES,
        options={"in_batch": True, "label_smoothing": 0.1},
    ),
    LossRow("guided_info_nce", F.guided_info_nce, formulas.guided_info_nce, pair, n_views=TWO, invariants=PAIRED),
    LossRow(
        "guided_info_nce_margin",
        F.guided_info_nce,
        formulas.guided_info_nce,
        **OWN_NEGATIVES,
        options={"margin": FAR, "query_negatives": True, "key_negatives": True},
    ),
    LossRow(
        "guided_info_nce_guide",
        F.guided_info_nce,
        formulas.guided_info_nce,
        _with_negatives,
        arguments_of=_guided,
        options={"margin": FAR, "query_negatives": True, "key_negatives": True},
        n_views=TWO,
    ),
    LossRow(
        "guided_info_nce_guide_own",
        F.guided_info_nce,
        formulas.guided_info_nce,
        _with_own_negatives,
        arguments_of=_guided_own,
        options={"margin": FAR},
        n_views=TWO,
        invariants=frozenset({"instances"}),
    ),
    LossRow(
        "soft_info_nce",
        F.soft_info_nce,
        formulas.soft_info_nce,
        pair,
        arguments_of=_taught,
        n_views=TWO,
        invariants=frozenset({"instances"}),
    ),
    LossRow(
        "soft_info_nce_symmetric",
        F.soft_info_nce,
        formulas.soft_info_nce,
        pair,
        arguments_of=_taught,
        options={"symmetric": True, "teacher_temperature": 0.2},
        n_views=TWO,
        invariants=frozenset({"instances"}),
    ),
    LossRow("clip", F.clip, formulas.clip, unit_pair, "CLIPLoss", **SIMILARITIES),
    LossRow("clip_smooth", F.clip, formulas.clip, unit_pair, **SIMILARITIES, options={"label_smoothing": 0.1}),
    LossRow("siglip", F.siglip, formulas.siglip, unit_pair, "SigLIPLoss", **SIMILARITIES),
    LossRow("siglip_ids", F.siglip, formulas.siglip, _labelled_unit_pair, arguments_of=_several_texts, **SIMILARITIES),
    LossRow(
        "siglip_ids_per_anchor",
        F.siglip,
        formulas.siglip,
        _labelled_unit_pair,
        arguments_of=_several_texts,
        options={"per_anchor": True},
        **SIMILARITIES,
    ),
    LossRow(  # of the order exp(q / temperature): beyond float32 at a low temperature, so no extremes
        "robust_info_nce",
        F.robust_info_nce,
        formulas.robust_info_nce,
        pair,
        n_views=TWO,
        invariants=PAIRED,
        cosine=False,
    ),
    LossRow("mil_nce", F.mil_nce, formulas.mil_nce, _with_bags, options={"bag_size": 2}, **FEATURES),
    LossRow(
        "nearest_neighbour_nce",
        F.nearest_neighbour_nce,
        formulas.nearest_neighbour_nce,
        _with_negatives,
        n_views=TWO,
        replicated=frozenset({2}),
    ),
)
