# SPDX-License-Identifier: Apache-2.0
"""The loss table: one row per loss, shared by the tests and the benches.

A row holds the loss, a dense reference written straight from the formula (it shares no code with pycl and returns
the terms of ``reduction="none"``), a maker of inputs, and the invariants the loss has. References run in the dtype of
their inputs: in float64 they are the truth, in a narrower one the eager baseline. An empty negative set counts as 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

import pycl.functional as F


@dataclass(frozen=True)
class Loss:
    name: str
    function: Callable[..., Tensor]  # function(*inputs, *scalars, reduction=...)
    reference: Callable[..., Tensor]  # reference(*inputs, *scalars) -> terms
    make: Callable[[int, int, int], list[Tensor]]  # V, N, d -> inputs in float64
    scalars: dict[str, float] = field(default_factory=lambda: {"temperature": 0.2})
    n_views: tuple[int, int] = (2, 64)  # smallest and largest V
    invariants: frozenset[str] = frozenset()  # rotation, instances, views, views_of_each (see test_properties.py)
    reducible: bool = True
    cosine: bool = True  # normalises inside, so the length of an embedding does not matter
    engine: bool = True  # runs on the engine, so it takes a backend

    def __call__(self, inputs: list[Tensor], scalars: dict[str, Any], **options: Any) -> Tensor:
        if not self.reducible:
            options.pop("reduction", None)
        if not self.engine:
            options.pop("backend", None)
        return self.function(*inputs, **scalars, **options)

    def terms(self, inputs: list[Tensor], scalars: dict[str, Any]) -> Tensor:
        return self.reference(*inputs, **scalars)

    def takes(self, n_views: int) -> bool:
        return self.n_views[0] <= n_views <= self.n_views[1]


# ---- pieces of formulas


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def log_sum(logits: Tensor, allowed: Tensor) -> Tensor:
    """log sum exp over the allowed entries of each row; 0 where there is none."""
    empty = ~allowed.any(-1, keepdim=True)
    return logits.masked_fill(~allowed & ~empty, -torch.inf).logsumexp(-1).masked_fill(empty.squeeze(-1), 0)


def others(n: int) -> Tensor:
    return ~torch.eye(n, dtype=torch.bool)


def every(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool)


# ---- dense references


def ref_nt_xent(views: Tensor, temperature: Any) -> Tensor:
    n_views, n, _ = views.shape
    z = unit(views.flatten(0, 1))
    s = z @ z.T / temperature
    instance = torch.arange(n).repeat(n_views)
    positive = (instance[:, None] == instance) & others(n_views * n)
    mean_positive = torch.where(positive, s, 0).sum(1) / positive.sum(1)
    return (log_sum(s, others(n_views * n)) - mean_positive).view(n_views, n)


def ref_pairwise_nt_xent(views: Tensor, temperature: Any) -> Tensor:
    u, (n_views, n, _) = unit(views), views.shape
    terms = views.new_zeros(n_views, n)
    for a, b in combinations(range(n_views), 2):
        terms = terms.index_add(0, torch.tensor([a, b]), ref_nt_xent(torch.stack([u[a], u[b]]), temperature))
    return terms / (n_views - 1)


def ref_info_nce(query: Tensor, key: Tensor, temperature: Any, symmetric: bool = False) -> Tensor:
    s, own = unit(query) @ unit(key).T / temperature, torch.arange(len(query))
    terms = cross_entropy(s, own, reduction="none")
    return (terms + cross_entropy(s.T, own, reduction="none")) / 2 if symmetric else terms


def ref_info_nce_shared(query: Tensor, key: Tensor, negatives: Tensor, temperature: Any) -> Tensor:
    q = unit(query)
    s = torch.cat([(q * unit(key)).sum(1, keepdim=True), q @ unit(negatives).T], 1) / temperature
    return cross_entropy(s, torch.zeros(len(q), dtype=torch.long), reduction="none")


def ref_clip(image: Tensor, text: Tensor, logit_scale: Any, logit_bias: Any) -> Tensor:
    s, own = logit_scale * image @ text.T + logit_bias, torch.arange(len(image))
    return (cross_entropy(s, own, reduction="none") + cross_entropy(s.T, own, reduction="none")) / 2


def ref_siglip(image: Tensor, text: Tensor, logit_scale: Any, logit_bias: Any) -> Tensor:
    s = logit_scale * image @ text.T + logit_bias
    return -logsigmoid(s * (2 * torch.eye(len(s), dtype=s.dtype) - 1)).sum(1)


def ref_dcl(views: Tensor, temperature: Any, sigma: float | None = None) -> Tensor:
    (u, v), n = unit(views), views.shape[1]
    positive = (u * v).sum(1)
    weight = 1.0 if sigma is None else 2 - n * (positive / sigma).softmax(0).detach()
    terms = []
    for a, b in ((u, v), (v, u)):
        s = torch.cat([a @ a.T, a @ b.T], 1) / temperature
        terms.append(log_sum(s, others(n).repeat(1, 2)) - weight * positive / temperature)
    return torch.stack(terms)


def ref_dhel(views: Tensor, temperature: Any) -> Tensor:
    (u, v), free = unit(views), others(views.shape[1])
    energy = log_sum(u @ u.T / temperature, free) + log_sum(v @ v.T / temperature, free)
    return energy - (u * v).sum(1) / temperature


def ref_mv_dhel(views: Tensor, temperature: Any) -> Tensor:
    u, (n_views, n, _) = unit(views), views.shape
    aligned = torch.stack([(u[a] * u[b]).sum(1) / temperature for a, b in combinations(range(n_views), 2)])
    return sum(log_sum(w @ w.T / temperature, others(n)) for w in u) - aligned.logsumexp(0)


def ref_mv_info_nce(views: Tensor, temperature: Any, cross_view: bool = False) -> Tensor:
    u, (n_views, n, _) = unit(views), views.shape
    top, bottom, allowed = [], [], []
    for a in range(n_views):
        for b in range(n_views):
            if a != b:
                top.append((u[a] * u[b]).sum(1) / temperature)
            elif cross_view:
                continue
            bottom.append(u[a] @ u[b].T / temperature)
            allowed.append(every(n) if a != b else others(n))
    return log_sum(torch.cat(bottom, 1), torch.cat(allowed, 1)) - torch.stack(top).logsumexp(0)


def ref_poly_view(views: Tensor, temperature: Any, arithmetic: bool = False) -> Tensor:
    u, (n_views, n, _) = unit(views), views.shape
    terms = []
    for a in range(n_views):
        losses = []
        for b in range(n_views):
            if b == a:
                continue
            negatives = torch.cat([u[a] @ w.T for w in u], 1) / temperature
            positive = ((u[a] * u[b]).sum(1, keepdim=True)) / temperature
            allowed = torch.cat([torch.ones(n, 1, dtype=torch.bool), others(n).repeat(1, n_views)], 1)
            losses.append(log_sum(torch.cat([positive, negatives], 1), allowed) - positive.squeeze(1))
        ell = torch.stack(losses)
        mean_p = ell.neg().logsumexp(0) - math.log(n_views - 1)
        terms.append(-mean_p if arithmetic else ell.mean(0))
    return torch.stack(terms)


def ref_sup_con(views: Tensor, labels: Tensor, temperature: Any, inside: bool = False) -> Tensor:
    n_views, n, _ = views.shape
    z, y = unit(views.flatten(0, 1)), labels.repeat(n_views)
    s = z @ z.T / temperature
    positive = (y[:, None] == y) & others(len(y))
    count = positive.sum(1)
    mean_positive = torch.where(positive, s, 0).sum(1) / count.clamp(min=1)
    if inside:
        mean_positive = log_sum(s, positive) - count.clamp(min=1).to(s.dtype).log()
    return (log_sum(s, others(len(y))) - mean_positive).masked_fill(count == 0, 0).view(n_views, n)


def ref_alignment(x: Tensor, y: Tensor) -> Tensor:
    return ((x - y) ** 2).sum(1)


def ref_uniformity(x: Tensor, t: Any) -> Tensor:
    if len(x) == 1:
        return 0 * t * x.sum()
    distance = ((x[:, None] - x) ** 2).sum(-1)
    return (-t * distance[others(len(x))]).logsumexp(0) - math.log(len(x) * (len(x) - 1))


# ---- inputs, float64 on the CPU from torch's global generator


def make_views(n_views: int, n: int, d: int) -> list[Tensor]:
    centres = torch.randn(n, d, dtype=torch.float64)
    return [centres + 0.5 * torch.randn(n_views, n, d, dtype=torch.float64)]


def make_labelled(n_views: int, n: int, d: int) -> list[Tensor]:
    return [*make_views(n_views, n, d), torch.randint(0, max(1, n // 3), (n,))]


def make_pair(n_views: int, n: int, d: int) -> list[Tensor]:
    return list(make_views(2, n, d)[0])


def make_unit_pair(n_views: int, n: int, d: int) -> list[Tensor]:
    return [unit(x) for x in make_pair(n_views, n, d)]


def make_queue(n_views: int, n: int, d: int) -> list[Tensor]:
    return [*make_pair(n_views, n, d), torch.randn(2 * n + 3, d, dtype=torch.float64)]


def make_single(n_views: int, n: int, d: int) -> list[Tensor]:
    return make_unit_pair(n_views, n, d)[:1]


SYMMETRIC = frozenset({"rotation", "instances", "views", "views_of_each"})
SOME = SYMMETRIC - {"views_of_each"}
PAIRED = frozenset({"rotation", "instances"})
TWO = (2, 2)
SCALE = {"logit_scale": 10.0, "logit_bias": -3.0}

LOSSES = {
    row.name: row
    for row in (
        Loss("nt_xent", F.nt_xent, ref_nt_xent, make_views, invariants=SYMMETRIC),
        Loss("pairwise_nt_xent", F.pairwise_nt_xent, ref_pairwise_nt_xent, make_views, invariants=SOME),
        Loss("info_nce", F.info_nce, ref_info_nce, make_pair, n_views=TWO, invariants=PAIRED),
        Loss(
            "info_nce_symmetric",
            partial(F.info_nce, symmetric=True),
            partial(ref_info_nce, symmetric=True),
            make_pair,
            n_views=TWO,
            invariants=PAIRED,
        ),
        Loss("info_nce_shared", F.info_nce, ref_info_nce_shared, make_queue, n_views=TWO),
        Loss("clip", F.clip, ref_clip, make_unit_pair, SCALE, TWO, PAIRED, cosine=False),
        Loss("siglip", F.siglip, ref_siglip, make_unit_pair, SCALE, TWO, PAIRED, cosine=False),
        Loss("dcl", F.dcl, ref_dcl, make_views, n_views=TWO, invariants=SYMMETRIC),
        Loss("dclw", partial(F.dclw, sigma=0.5), partial(ref_dcl, sigma=0.5), make_views, n_views=TWO, invariants=SOME),
        Loss("dhel", F.dhel, ref_dhel, make_views, n_views=TWO, invariants=SOME),
        Loss("mv_dhel", F.mv_dhel, ref_mv_dhel, make_views, invariants=SOME),
        Loss("mv_info_nce", F.mv_info_nce, ref_mv_info_nce, make_views, invariants=SYMMETRIC),
        Loss(
            "mv_info_nce_cross",
            partial(F.mv_info_nce, denominator="cross_view"),
            partial(ref_mv_info_nce, cross_view=True),
            make_views,
            invariants=SOME,
        ),
        Loss("poly_view", F.poly_view, ref_poly_view, make_views, invariants=SYMMETRIC),
        Loss(
            "poly_view_arithmetic",
            partial(F.poly_view, mean="arithmetic"),
            partial(ref_poly_view, arithmetic=True),
            make_views,
            invariants=SYMMETRIC,
        ),
        Loss("sup_con", F.sup_con, ref_sup_con, make_labelled, n_views=(1, 64), invariants=SYMMETRIC),
        Loss(
            "sup_con_in",
            partial(F.sup_con, form="in"),
            partial(ref_sup_con, inside=True),
            make_labelled,
            n_views=(1, 64),
            invariants=SYMMETRIC,
        ),
        Loss("alignment", F.alignment, ref_alignment, make_unit_pair, {}, TWO, PAIRED, cosine=False, engine=False),
        Loss(
            "uniformity",
            F.uniformity,
            ref_uniformity,
            make_single,
            {"t": 2.0},
            TWO,
            PAIRED,
            reducible=False,
            cosine=False,
        ),
    )
}
