# SPDX-License-Identifier: Apache-2.0
"""Weights, limits and maps of pairs that are measured, and the dense forms they compete with.

Every modifier changes the same step, the loss of CLIP. G is that step of pycl without it, so a figure in G is what the
modifier costs. Each dense form is the fastest spelling that was tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import logsigmoid

import pycl
import pycl.functional
from pycl import Pairs, Points
from pycl.engine import Agreement, LabelTable, Limit, PairMLP, pair_extremes

from .losses import LOGIT_SCALE, LOSS_WORKLOADS
from .workload import Function, Workload, step_of

LABELS = 64
AGREEING = 2  # labels of a point
HIDDEN = 16
SLOPE = 1e-3  # of a logit in the distance of positions
NEIGHBOURS = 32  # among which the limit of a point is
MARGIN = 0.2

Draw = Callable[[Sequence[Tensor], torch.Generator], list[Tensor]]


# ---- what the modifiers take, drawn for points


def learned(*tensors: Tensor) -> list[Tensor]:
    return [x.requires_grad_() for x in tensors]


def uniform(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=draw, device=draw.device)


def normal(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=draw, device=draw.device)


def labels(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randint(LABELS, shape, generator=draw, device=draw.device)


def draw_label_table(points: Sequence[Tensor], draw: torch.Generator) -> list[Tensor]:
    n = len(points[0])
    return [*learned(uniform(draw, LABELS, LABELS) + 0.1), labels(draw, n), labels(draw, n)]


def draw_symmetric_table(points: Sequence[Tensor], draw: torch.Generator) -> list[Tensor]:
    table, n = uniform(draw, LABELS, LABELS) + 0.1, len(points[0])
    return [*learned(table * table.T), labels(draw, 2 * n)]


def draw_agreement(points: Sequence[Tensor], draw: torch.Generator) -> list[Tensor]:
    n = len(points[0])
    return [*learned(uniform(draw, AGREEING + 1) + 0.1), labels(draw, AGREEING, n), labels(draw, AGREEING, n)]


def gaps(x: Tensor, y: Tensor) -> Tensor:
    """Of each row the middle of the widest gap among its largest products: which are above, no rounding decides."""
    found = []
    for part in x.double().split(1024):
        top = (part @ y.double().T).topk(min(NEIGHBOURS, len(y))).values
        at = (top[:, :-1] - top[:, 1:]).argmax(1, keepdim=True)
        found.append((top.gather(1, at) + top.gather(1, at + 1))[:, 0] / 2)
    return torch.cat(found)


def draw_limit(points: Sequence[Tensor], draw: torch.Generator) -> list[Tensor]:
    return [(LOGIT_SCALE * gaps(*(x.detach() for x in points))).to(points[0].dtype)]


def draw_guide(points: Sequence[Tensor], draw: torch.Generator) -> list[Tensor]:
    g, h = (F.normalize(x.detach() + 0.5 * normal(draw, *x.shape) / x.shape[1] ** 0.5).to(x.dtype) for x in points)
    return [gaps(g, h).to(g.dtype), g, h]


def draw_pair_mlp(points: Sequence[Tensor], draw: torch.Generator) -> list[Tensor]:
    n = len(points[0])
    shapes = (n, HIDDEN), (n, HIDDEN), (HIDDEN,), ()
    return learned(*(normal(draw, *shape) for shape in shapes))


def draw_slope(points: Sequence[Tensor], draw: torch.Generator) -> list[Tensor]:
    return learned(torch.tensor(SLOPE, device=draw.device))


def draw_col_scale(points: Sequence[Tensor], draw: torch.Generator) -> list[Tensor]:
    return learned(uniform(draw, len(points[0])) + 0.5)


def draw_network(points: Sequence[Tensor], draw: torch.Generator) -> list[Tensor]:
    d = points[0].shape[1]
    return learned(normal(draw, HIDDEN, d), *(normal(draw, *shape) for shape in ((HIDDEN,), (HIDDEN,), ())))


def draw_values(points: Sequence[Tensor], draw: torch.Generator) -> list[Tensor]:
    return learned(normal(draw, *points[0].shape))


def draw_labels(points: Sequence[Tensor], draw: torch.Generator) -> list[Tensor]:
    return [labels(draw, len(points[0]))]


def draw_nothing(points: Sequence[Tensor], draw: torch.Generator) -> list[Tensor]:
    return []


# ---- ours


def clip(x: Tensor, y: Tensor, backend: str | None = None, **changes: Any) -> Tensor:
    return pycl.pair_cross_entropy(
        Points(x),
        Points(y),
        LOGIT_SCALE,
        denominator=Pairs.OTHERS,
        positives=Pairs.POSITIVE,
        offset=None,
        sides="both",
        reduction="mean",
        backend=backend,
        **changes,
    )


def prefixes_of(x: Tensor) -> list[int]:
    return [x.shape[1] // part for part in (8, 4, 2, 1)]


def matryoshka(x: Tensor, y: Tensor, backend: str | None = None) -> Tensor:
    loss = partial(pycl.functional.clip, logit_scale=LOGIT_SCALE, backend=backend)
    return pycl.functional.matryoshka(loss, x, y, dims=prefixes_of(x))


def a_pass_each(x: Tensor, y: Tensor) -> Tensor:
    """Ours without what the prefixes share."""
    parts = [clip(x[:, :d], y[:, :d], normalize=True) for d in prefixes_of(x)]
    return torch.stack(parts).sum()


def label_table(x: Tensor, y: Tensor, table: Tensor, a: Tensor, b: Tensor, backend: str | None = None) -> Tensor:
    return clip(x, y, backend, modifiers=[LabelTable(table, a, b)])


def nt_xent(x: Tensor, y: Tensor, backend: str | None = None, **changes: Any) -> Tensor:
    return pycl.pair_cross_entropy(
        pycl.stack_views((x, y))[0],
        logit_scale=LOGIT_SCALE,
        denominator=Pairs.OTHERS,
        positives=Pairs.POSITIVE,
        reduction="mean",
        backend=backend,
        **changes,
    )


def symmetric_table(x: Tensor, y: Tensor, table: Tensor, a: Tensor, backend: str | None = None) -> Tensor:
    return nt_xent(x, y, backend, modifiers=[LabelTable(table, a, a)])


def agreement(x: Tensor, y: Tensor, weights: Tensor, a: Tensor, b: Tensor, backend: str | None = None) -> Tensor:
    return clip(x, y, backend, modifiers=[Agreement(a, b, weights)])


def limit(x: Tensor, y: Tensor, rows: Tensor, backend: str | None = None) -> Tensor:
    return clip(x, y, backend, modifiers=[Limit(rows)])


def guided(x: Tensor, y: Tensor, rows: Tensor, g: Tensor, h: Tensor, backend: str | None = None) -> Tensor:
    return clip(x, y, backend, modifiers=[Limit(rows, guide=(g, h))])


def pair_mlp(x: Tensor, y: Tensor, p: Tensor, q: Tensor, w2: Tensor, b2: Tensor, backend: str | None = None) -> Tensor:
    return clip(x, y, backend, modifiers=[PairMLP(p, q, w2, b2)])


def decayed(logits: Tensor, rows: Tensor, cols: Tensor, slope: Tensor) -> Tensor:
    return logits - slope * (rows - cols).abs()


def score_mod(x: Tensor, y: Tensor, slope: Tensor, backend: str | None = None) -> Tensor:
    return clip(x, y, backend, score_mod=decayed, score_mod_args=(slope,))


def col_scale(x: Tensor, y: Tensor, factor: Tensor, backend: str | None = None) -> Tensor:
    return clip(x, y, backend, col_scale=factor)


def infonce(x: Tensor, y: Tensor, backend: str | None = None, **changes: Any) -> Tensor:
    """One direction; the positive is not modified."""
    s = pycl.pair_stats(
        Points(x), Points(y), LOGIT_SCALE, denominator=Pairs.OTHERS, offset=None, backend=backend, **changes
    )
    loss: Tensor = s.lse.mean() - LOGIT_SCALE * (x * y).sum(1).mean()
    return loss


def ada_meow(
    x: Tensor, y: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, backend: str | None = None
) -> Tensor:
    return infonce(x, y, backend, modifiers=[PairMLP(F.linear(x, w1), F.linear(y, w1, b1), w2, b2)])


def average(x: Tensor, y: Tensor, values: Tensor, backend: str | None = None) -> Tensor:
    return (x * pycl.pair_average(Points(x), Points(y), values, LOGIT_SCALE, backend=backend)).sum(1).mean()


def extremes(x: Tensor, y: Tensor, ids: Tensor, backend: str | None = None) -> Tensor:
    found = pair_extremes(
        Points(x, ids),
        Points(y, ids),
        negatives=Pairs.NEGATIVE,
        positives=Pairs.POSITIVE,
        offset=None,
        backend=backend,
    )
    return torch.cat([found.negative, found.positive])


def hinges(x: Tensor, y: Tensor, backend: str | None = None) -> Tensor:
    return summed(x, y, "relu", row_bias=MARGIN - (x * y).sum(1), backend=backend)


def summed(
    x: Tensor,
    y: Tensor,
    map: Literal["square", "relu", "exp"],
    row_bias: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    return pycl.pair_sum(
        Points(x),
        Points(y),
        negatives=Pairs.NEGATIVE,
        row_bias=row_bias,
        map=map,
        reduction="mean",
        backend=backend,
    )


# ---- dense


def cross_entropy(logits: Tensor) -> Tensor:
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def product(x: Tensor, y: Tensor) -> Tensor:
    return LOGIT_SCALE * x @ y.T


def dense_matryoshka(x: Tensor, y: Tensor) -> Tensor:
    parts = [cross_entropy(product(F.normalize(x[:, :d]), F.normalize(y[:, :d]))) for d in prefixes_of(x)]
    return torch.stack(parts).sum()


def dense_label_table(x: Tensor, y: Tensor, table: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return cross_entropy(product(x, y) + table.log().index_select(0, a).index_select(1, b))


def dense_symmetric_table(x: Tensor, y: Tensor, table: Tensor, a: Tensor) -> Tensor:
    z = torch.cat([x, y])
    logits = product(z, z) + table.log().index_select(0, a).index_select(1, a)
    partner = torch.arange(len(z), device=z.device).roll(len(x))
    return F.cross_entropy(logits.fill_diagonal_(-torch.inf), partner)


def dense_agreement(x: Tensor, y: Tensor, weights: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A choice among T + 1 numbers: an index would add up its gradient entry by entry."""
    first, second = (a[t][:, None] == b[t] for t in range(AGREEING))
    none, one, both = weights.log().unbind()
    return cross_entropy(product(x, y) + torch.where(first & second, both, torch.where(first | second, one, none)))


def dense_limit(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
    logits = product(x, y)
    return cross_entropy(logits.masked_fill((logits > rows[:, None]).fill_diagonal_(False), -torch.inf))


def dense_guided(x: Tensor, y: Tensor, rows: Tensor, g: Tensor, h: Tensor) -> Tensor:
    above = (g @ h.T > rows[:, None]).fill_diagonal_(False)
    return cross_entropy(product(x, y).masked_fill(above, -torch.inf))


def network(p: Tensor, q: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return logsigmoid(torch.tanh(p[:, None] + q) @ w2 + b2)


def dense_pair_mlp(x: Tensor, y: Tensor, p: Tensor, q: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return cross_entropy(product(x, y) + network(p, q, w2, b2))


def dense_score_mod(x: Tensor, y: Tensor, slope: Tensor) -> Tensor:
    at = torch.arange(len(x), device=x.device)
    return cross_entropy(decayed(product(x, y), at[:, None], at, slope))


def dense_col_scale(x: Tensor, y: Tensor, factor: Tensor) -> Tensor:
    return cross_entropy(product(x, factor[:, None] * y))


def one_direction(logits: Tensor, added: Tensor) -> Tensor:
    return (logits + added).logsumexp(1).mean() - logits.diagonal().mean()


def dense_ada_meow(x: Tensor, y: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return one_direction(product(x, y), network(F.linear(x, w1), F.linear(y, w1, b1), w2, b2))


def official_ada_meow(x: Tensor, y: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """The network on the sum of every pair, [N, N, d], as published."""
    hidden = torch.tanh(F.linear(x[:, None] + y, w1, b1))
    return one_direction(product(x, y), logsigmoid(hidden @ w2 + b2))


def dense_average(x: Tensor, y: Tensor, values: Tensor) -> Tensor:
    return (x * (product(x, y).softmax(1) @ values)).sum(1).mean()


def sdpa(x: Tensor, y: Tensor, values: Tensor) -> Tensor:
    """torch's own attention, which stores no matrix either."""
    found = F.scaled_dot_product_attention(x[None, None], y[None, None], values[None, None], scale=LOGIT_SCALE)
    return (x * found[0, 0]).sum(1).mean()


def dense_extremes(x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
    logits, same = x @ y.T, ids[:, None] == ids
    return torch.cat([logits.masked_fill(same, -torch.inf).amax(1), logits.masked_fill(~same, torch.inf).amin(1)])


def dense_sum(x: Tensor, y: Tensor, map: Function) -> Tensor:
    mapped = map(x @ y.T)
    return (mapped.sum() - mapped.diagonal().sum()) / len(x)


def dense_hinges(x: Tensor, y: Tensor) -> Tensor:
    logits = x @ y.T
    terms = F.relu(logits + (MARGIN - logits.diagonal())[:, None])
    return terms.sum() / len(x) - MARGIN


# ---- workloads


@dataclass(frozen=True)
class OnPairs(Workload):
    """Takes the points of CLIP, and then what ``draw`` makes for them."""

    draw: Draw = field(kw_only=True)
    what = "Other reductions over pairs, forward and backward; sdpa is torch's own attention"

    def inputs(self, size: int, dim: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
        points = [
            x.detach().requires_grad_(self.backward) for x in LOSS_WORKLOADS["clip"].inputs(size, dim, dtype, device)
        ]
        made = self.draw(points, torch.Generator(device).manual_seed(size + 1))
        wide = torch.promote_types(dtype, torch.float32)
        return points + [
            x.detach().to(wide).requires_grad_(x.requires_grad) if x.is_floating_point() else x for x in made
        ]

    def shape(self, size: int | str, dim: int) -> str:
        return f"{size}, d = {dim}"

    def matrix(self, size: int, dim: int) -> tuple[int, int]:
        return size, size


class Extremes(OnPairs):
    what = f"The hardest pairs of every anchor among {LABELS} labels, forward"
    value = "extremes"
    backward: ClassVar[bool] = False


class Modified(OnPairs):
    what = (
        f"CLIP with one modifier, forward and backward, with the gradients of its parameters; LabelTable {LABELS} x "
        f"{LABELS}, Agreement of {AGREEING} labels, Limit of the rows, its guide as wide as the points, PairMLP "
        f"{HIDDEN} wide, score_mod a learned slope times the distance of positions"
    )
    bare = "our step without it"

    def bare_step(self, size: int, dim: int, dtype: torch.dtype) -> Callable[[], Any]:
        return step_of(clip, self.inputs(size, dim, dtype)[:2])


class OfPrefixes(Modified):
    what = (
        "CLIP summed over four prefixes of the features, of an eighth of them to all, each normalised, forward and "
        "backward; separate is our step for each prefix, one after the other"
    )
    bare = "our step of CLIP with all features"


class OfViews(Modified):
    """Two views of each point, which all meet each other."""

    what = f"NT-Xent of two views with a learned symmetric LabelTable {LABELS} x {LABELS}, forward and backward"

    def shape(self, size: int | str, dim: int) -> str:
        return f"{size} x 2 views, d = {dim}"

    def matrix(self, size: int, dim: int) -> tuple[int, int]:
        return 2 * size, 2 * size

    def bare_step(self, size: int, dim: int, dtype: torch.dtype) -> Callable[[], Any]:
        return step_of(nt_xent, self.inputs(size, dim, dtype)[:2])


class Wide(Modified):
    """Its dense form stores a vector of every pair, in three copies at once where there are six of a matrix."""

    def matrix(self, size: int, dim: int) -> tuple[int, int]:
        return size, HIDDEN // 2 * size


class AdaMeow(Wide):
    what = (
        "AdaMEOW, forward and backward; eager is the factorised form, which stores [N, N, 16], official the published "
        "one, which stores [N, N, d]"
    )

    def bare_step(self, size: int, dim: int, dtype: torch.dtype) -> Callable[[], Any]:
        return step_of(infonce, self.inputs(size, dim, dtype)[:2])


MODIFIER_WORKLOADS: dict[str, Workload] = {
    "LabelTable": Modified(label_table, dense_label_table, draw=draw_label_table),
    "LabelTable, NT-Xent": OfViews(symmetric_table, dense_symmetric_table, draw=draw_symmetric_table),
    "Agreement": Modified(agreement, dense_agreement, draw=draw_agreement),
    "Limit": Modified(limit, dense_limit, draw=draw_limit),
    "Limit, guide": Modified(guided, dense_guided, draw=draw_guide),
    "PairMLP": Wide(pair_mlp, dense_pair_mlp, draw=draw_pair_mlp),
    "col_scale": Modified(col_scale, dense_col_scale, draw=draw_col_scale),
    "score_mod": Modified(score_mod, dense_score_mod, draw=draw_slope, modifiers=("score_mod",)),
    "matryoshka": OfPrefixes(matryoshka, dense_matryoshka, draw=draw_nothing, others={"separate": a_pass_each}),
    "AdaMEOW": AdaMeow(ada_meow, dense_ada_meow, draw=draw_network, others={"official": official_ada_meow}),
    "pair_average": OnPairs(average, dense_average, draw=draw_values, others={"sdpa": sdpa}),
    "pair_sum, square": OnPairs(partial(summed, map="square"), partial(dense_sum, map=torch.square), draw=draw_nothing),
    "pair_sum, relu": OnPairs(hinges, dense_hinges, draw=draw_nothing),
    "pair_sum, exp": OnPairs(partial(summed, map="exp"), partial(dense_sum, map=torch.exp), draw=draw_nothing),
    "pair_extremes": Extremes(extremes, dense_extremes, draw=draw_labels),
}
