# SPDX-License-Identifier: Apache-2.0
"""The table of losses: one row says what the tests, the benchmarks and the documentation need to know about a loss.

``LOSSES[name]`` has the function, its formula with the whole matrix (:mod:`pycl.testing.formulas`), its module, and how
a batch of views becomes its inputs. Adding a loss is a function, a formula and a row here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pycl import functional as F
from pycl.testing import formulas
from pycl.testing.formulas import unit

Arguments: TypeAlias = tuple[tuple[Tensor, ...], dict[str, Any]]


def _by_position(*inputs: Tensor) -> Arguments:
    return inputs, {}


@dataclass(frozen=True)
class LossRow:
    """A loss, or one form of it.

    Attributes:
        name: unique in the table.
        function: called as ``function(*arguments, **scalars, **options, reduction=...)``.
        formula: called as ``formula(*arguments, **scalars, **options)``; returns the terms.
        inputs_of: from views [V, N, d] and labels [N] to the inputs, which all have gradients unless they are integers.
        arguments_of: from the inputs to the arguments of function and formula, by position and by name. Constants, such
            as a guide's embeddings, come from the inputs here.
        module: name of the class in :mod:`pycl.modules`, in the row of the form that is its default.
        scalars: numbers that may be tensors with a gradient, and a value for each.
        options: arguments that choose the form.
        steepness: by what the scalars multiply a similarity at most; rounding of a logit grows with it.
        n_views: the smallest and the largest V.
        invariants: what leaves the loss as it is: ``rotation`` of all embeddings, a permutation of the ``instances``,
            of the ``views``, or of the ``views_of_each`` instance on its own.
        reducible: takes ``reduction``.
        cosine: normalises inside, so that the length of an embedding does not matter, and stands every extreme.
        engine: runs on the engine, and takes ``backend``.
        replicated: positions of inputs that every rank of a group has whole.
        traced: ``torch.compile`` can look inside.
    """

    name: str
    function: Callable[..., Tensor]
    formula: Callable[..., Tensor]
    inputs_of: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
    module: str | None = None
    arguments_of: Callable[..., Arguments] = _by_position
    scalars: Mapping[str, float] = field(default_factory=lambda: {"temperature": 0.2})
    options: Mapping[str, Any] = field(default_factory=dict)
    steepness: Callable[[Mapping[str, float]], float] = lambda scalars: max(1 / value for value in scalars.values())
    n_views: tuple[int, int] = (2, 64)
    invariants: frozenset[str] = frozenset()
    reducible: bool = True
    cosine: bool = True
    engine: bool = True
    replicated: frozenset[int] = frozenset()
    traced: bool = True

    def __call__(self, inputs: list[Tensor], scalars: Mapping[str, Any], **options: Any) -> Tensor:
        if not self.reducible:
            options.pop("reduction", None)
        if not self.engine:
            options.pop("backend", None)
        given, named = self.arguments_of(*inputs)
        return self.function(*given, **named, **scalars, **self.options, **options)

    def of_views(self, views: Tensor, labels: Tensor | None = None, **options: Any) -> Tensor:
        """The loss of views [V, N, d]; without labels two neighbours have one."""
        if labels is None:
            labels = torch.arange(views.shape[1], device=views.device) // 2
        return self([*self.inputs_of(views, labels)], self.scalars, **options)

    def terms(self, inputs: list[Tensor], scalars: Mapping[str, Any]) -> Tensor:
        given, named = self.arguments_of(*inputs)
        return self.formula(*given, **named, **scalars, **self.options)

    def make(self, n_views: int, n: int, d: int) -> list[Tensor]:
        """Inputs in float64, from torch's global generator."""
        return [*self.inputs_of(make_views(n_views, n, d), torch.randint(0, max(1, n // 3), (n,)))]

    def takes(self, n_views: int) -> bool:
        return self.n_views[0] <= n_views <= self.n_views[1]


def make_views(n_views: int, n: int, d: int) -> Tensor:
    """V noisy views of N random points, float64 [V, N, d]."""
    centres = torch.randn(n, d, dtype=torch.float64)
    return centres + 0.5 * torch.randn(n_views, n, d, dtype=torch.float64)


def _views(views: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    return (views,)


def _labelled(views: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    return views, labels


def _pair(views: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    return views[0], views[1]


def _unit_pair(views: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    return unit(views[0]), unit(views[1])


def _unit_points(views: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    return (unit(views[0]),)


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


def _one_labelled(views: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    return views[0], labels


def _one_view(views: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    return (views[0],)


def _with_bags(views: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Two texts for each video, one of them of nobody."""
    texts = torch.stack([views[1], views[1].flip(-1)], 1)
    return unit(views[0]), unit(texts.flatten(0, 1))


SYMMETRIC = frozenset({"rotation", "instances", "views", "views_of_each"})
SOME = SYMMETRIC - {"views_of_each"}
PAIRED = frozenset({"rotation", "instances"})
TWO = (2, 2)
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


FEATURES: dict[str, Any] = {  # without a temperature, and sensitive to the length of a feature or to equal points
    "scalars": {},
    "steepness": lambda scalars: 1.0,
    "n_views": TWO,
    "cosine": False,
}
_ROWS = (
    LossRow("nt_xent", F.nt_xent, formulas.nt_xent, _views, "NTXentLoss", invariants=SYMMETRIC),
    LossRow("pairwise_nt_xent", F.pairwise_nt_xent, formulas.pairwise_nt_xent, _views, invariants=SOME),
    LossRow("info_nce", F.info_nce, formulas.info_nce, _pair, "InfoNCELoss", n_views=TWO, invariants=PAIRED),
    LossRow(
        "info_nce_symmetric",
        F.info_nce,
        formulas.info_nce,
        _pair,
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
        _pair,
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
    LossRow("guided_info_nce", F.guided_info_nce, formulas.guided_info_nce, _pair, n_views=TWO, invariants=PAIRED),
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
        _pair,
        arguments_of=_taught,
        n_views=TWO,
        invariants=frozenset({"instances"}),
    ),
    LossRow(
        "soft_info_nce_symmetric",
        F.soft_info_nce,
        formulas.soft_info_nce,
        _pair,
        arguments_of=_taught,
        options={"symmetric": True, "teacher_temperature": 0.2},
        n_views=TWO,
        invariants=frozenset({"instances"}),
    ),
    LossRow("clip", F.clip, formulas.clip, _unit_pair, "CLIPLoss", **SIMILARITIES),
    LossRow("clip_smooth", F.clip, formulas.clip, _unit_pair, **SIMILARITIES, options={"label_smoothing": 0.1}),
    LossRow("siglip", F.siglip, formulas.siglip, _unit_pair, "SigLIPLoss", **SIMILARITIES),
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
    LossRow("dcl", F.dcl, formulas.dcl, _views, "DCLLoss", n_views=TWO, invariants=SYMMETRIC),
    LossRow("dclw", F.dclw, formulas.dclw, _views, "DCLWLoss", options={"sigma": 0.5}, n_views=TWO, invariants=SOME),
    LossRow("dhel", F.dhel, formulas.dhel, _views, "DHELLoss", n_views=TWO, invariants=SOME),
    LossRow("mv_dhel", F.mv_dhel, formulas.mv_dhel, _views, "MVDHELLoss", invariants=SOME),
    LossRow("mv_info_nce", F.mv_info_nce, formulas.mv_info_nce, _views, "MVInfoNCELoss", invariants=SYMMETRIC),
    LossRow(
        "mv_info_nce_cross",
        F.mv_info_nce,
        formulas.mv_info_nce,
        _views,
        options={"denominator": "cross_view"},
        invariants=SOME,
    ),
    LossRow("poly_view", F.poly_view, formulas.poly_view, _views, "PolyViewLoss", invariants=SYMMETRIC),
    LossRow(
        "poly_view_arithmetic",
        F.poly_view,
        formulas.poly_view,
        _views,
        options={"mean": "arithmetic"},
        invariants=SYMMETRIC,
    ),
    LossRow("sup_con", F.sup_con, formulas.sup_con, _labelled, "SupConLoss", n_views=(1, 64), invariants=SYMMETRIC),
    LossRow(
        "sup_con_in",
        F.sup_con,
        formulas.sup_con,
        _labelled,
        options={"form": "in"},
        n_views=(1, 64),
        invariants=SYMMETRIC,
    ),
    LossRow(
        "alignment",
        F.alignment,
        formulas.alignment,
        _unit_pair,
        scalars={},
        steepness=lambda scalars: 1.0,
        n_views=TWO,
        invariants=PAIRED,
        cosine=False,
        engine=False,
    ),
    LossRow(
        "uniformity",
        F.uniformity,
        formulas.uniformity,
        _unit_points,
        scalars={"t": 2.0},
        steepness=lambda scalars: 1.0,
        n_views=TWO,
        invariants=PAIRED,
        reducible=False,
        cosine=False,
    ),
    LossRow(
        "hard_negative_nce",
        F.hard_negative_nce,
        formulas.hard_negative_nce,
        _views,
        steepness=lambda scalars: 3 / scalars["temperature"],
        n_views=TWO,
        invariants=SYMMETRIC,
    ),
    LossRow(
        "hard_negative_nce_debiased",
        F.hard_negative_nce,
        formulas.hard_negative_nce,
        _views,
        options={"beta": 0.0, "tau_plus": 0.1},
        n_views=TWO,
        invariants=SYMMETRIC,
    ),
    LossRow(
        "hard_negative_nce_both",
        F.hard_negative_nce,
        formulas.hard_negative_nce,
        _views,
        options={"beta": 0.5, "tau_plus": 0.02},
        steepness=lambda scalars: 2 / scalars["temperature"],
        n_views=TWO,
        invariants=SYMMETRIC,
    ),
    LossRow(  # of the order exp(q / temperature): beyond float32 at a low temperature, so no extremes
        "robust_info_nce",
        F.robust_info_nce,
        formulas.robust_info_nce,
        _pair,
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
    LossRow(
        "multi_similarity",
        F.multi_similarity,
        formulas.multi_similarity,
        _one_labelled,
        scalars={"alpha": 2.0, "beta": 50.0, "base": 0.5},
        steepness=lambda scalars: scalars["beta"],
        n_views=TWO,
        invariants=PAIRED,
    ),
    LossRow(
        "circle",
        F.circle,
        formulas.circle,
        _one_labelled,
        scalars={},
        steepness=lambda scalars: 160.0,
        n_views=TWO,
        invariants=PAIRED,
        traced=False,
    ),
    LossRow("spectral", F.spectral, formulas.spectral, _pair, invariants=PAIRED, reducible=False, **FEATURES),
    LossRow(
        "vicreg",
        F.vicreg,
        formulas.vicreg,
        _pair,
        invariants=frozenset({"instances"}),
        reducible=False,
        **FEATURES,
    ),
    LossRow(
        "barlow_twins",
        F.barlow_twins,
        formulas.barlow_twins,
        _pair,
        invariants=frozenset({"instances"}),
        reducible=False,
        **FEATURES,
    ),
    LossRow("koleo", F.koleo, formulas.koleo, _one_view, invariants=frozenset({"instances"}), **FEATURES),
)
LOSSES = {row.name: row for row in _ROWS}
