# SPDX-License-Identifier: Apache-2.0
"""Formulas of logits and of their losses, and the losses by pycl's engine."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pycl.core.pairs import Pairs, Points
from pycl.distributed.ranks import LOCAL, WORLD, Group, agree, together
from pycl.engine.reduction import share_of
from pycl.engine.reductions import pair_cross_entropy
from pycl.functional import clip, siglip
from pycl.functional._common import Scalar, as_scalar, expand_scalar, no_autocast, widen

from ._lazy import Formula


@dataclass
class Asked:
    """What a forward is to do about losses, and how many it has made."""

    gather: bool
    terms: int = 0


ASKED: ContextVar[Asked] = ContextVar("asked of the forward that runs")

STEPS: Mapping[str, Callable[[Any, Any], Any]] = {
    "mul": operator.mul,
    "div": operator.truediv,
    "add": operator.add,
    "sub": operator.sub,
    "to": Tensor.to,
}


class Product(Formula):
    """Products of all rows of x and y, and what is done to each of them, with one number for all, step by step."""

    def __init__(self, x: Tensor, y: Tensor, first: torch.dtype, steps: tuple[tuple[str, Any], ...] = ()) -> None:
        self.x, self.y, self.first, self.steps = x, y, first, steps
        self.shape, self.device, self.dtype = (len(x), len(y)), x.device, first
        for step, operand in steps:
            like = torch.empty((1, 1), dtype=self.dtype, device=self.device)
            self.dtype = operand if step == "to" else torch.result_type(like, operand)
        self.leaves = (x, y, *(operand for _, operand in steps if isinstance(operand, Tensor)))
        self.upright = self

    def entries(self) -> Tensor:
        if self.upright is not self:
            return self.upright.entries().t()
        with no_autocast(self.x):
            found = self.x.to(self.first) @ self.y.to(self.first).t()
            for step, operand in self.steps:
                found = STEPS[step](found, operand)
        return found

    def dense(self) -> Tensor:
        return super().dense() if self.upright is self else self.upright.dense().t()

    def values(self) -> Tensor:
        return super().values() if self.upright is self else self.upright.values().t()

    def holds(self) -> bool:
        return super().holds() if self.upright is self else self.upright.holds()

    def stepped(self, step: str, operand: Any) -> Product:
        if isinstance(operand, Tensor):
            operand = operand.to(self.device).clone()  # an optimizer may change it before the logits are looked at
        return Product(self.x, self.y, self.first, (*self.steps, (step, operand)))

    def transposed(self) -> Product:
        if self.upright is not self:
            return self.upright
        found = Product(self.y, self.x, self.first, self.steps)
        found.upright = self
        return found

    def rows(self, index: Tensor) -> Product:
        return Product(self.x[index], self.y, self.first, self.steps)

    def affine(self) -> tuple[Scalar, Scalar | None]:
        """The scale of a product, and what is added."""
        scale: Scalar = 1.0
        bias: Scalar | None = None
        for step, operand in self.steps:
            if step == "to":
                continue
            number = as_scalar("logit_scale", operand)
            if step in ("mul", "div"):
                factor = number if step == "mul" else 1 / number
                scale, bias = scale * factor, None if bias is None else bias * factor
            else:
                more = number if step == "add" else -number
                bias = more if bias is None else bias + more
        return scale, bias


class Targets(NamedTuple):
    """The column that belongs to each row; ``own`` where that is the column of its number."""

    labels: Tensor
    own: bool

    @classmethod
    def of(cls, labels: Any, m: int, n: int) -> Targets | None:
        """None where a row has no column, or what the library refuses."""
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != (m,) or m == 0:
            return None
        fresh = not labels.is_inference() and labels._version == 0
        if fresh and getattr(labels, "_pycl_count", None) == m:
            return cls(labels, own=True) if m <= n else None
        if torch.equal(labels, torch.arange(m, device=labels.device)) and m <= n:
            return cls(labels, own=True)
        return cls(labels, own=False) if bool(((labels >= 0) & (labels < n)).all()) else None


class Term(ABC):
    """A loss of logits, the mean over their rows."""

    def __init__(self, product: Product, dtype: torch.dtype) -> None:
        asked = ASKED.get(Asked(gather=False))
        asked.terms += 1
        self.product, self.dtype = product, dtype
        self.group: Group = WORLD if asked.gather else LOCAL
        self._value: Tensor | None = None

    def value(self) -> Tensor:
        wanted = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in self.product.leaves)
        if self._value is None or (wanted and not self._value.requires_grad):
            # the loss of one pair is a constant, which a library's kernel says exactly
            alone = self.product.shape == (1, 1) and self.group == LOCAL
            self._value = (self.of_logits(self.product.dense()) if alone else self.fused()).to(self.dtype)
        return self._value

    @abstractmethod
    def fused(self) -> Tensor:
        """By the engine."""

    @abstractmethod
    def of_logits(self, logits: Tensor) -> Tensor:
        """As the library computes it."""

    def is_transposed(self, other: Term) -> bool:
        """Whether the other is the same loss of the columns of the same logits."""
        return False

    def of_both_sides(self) -> Tensor:
        """The mean of the losses of rows and of columns."""
        raise NotImplementedError


class CrossEntropy(Term):
    """The cross entropy of the logits' rows with a column of each."""

    def __init__(self, product: Product, targets: Targets, smoothing: float) -> None:
        # a cross entropy is float32 under autocast, on every device
        wide = torch.is_autocast_enabled(product.device.type) and product.dtype != torch.float64
        super().__init__(product, torch.float32 if wide else product.dtype)
        self.targets, self.smoothing = targets, smoothing

    def fused(self) -> Tensor:
        if self.smoothing:
            return self.of_logits(self.product.dense())
        scale, bias = self.product.affine()
        square = self.product.shape[0] == self.product.shape[1]
        group = self.group if self.targets.own and square else LOCAL  # FLAVA has gathered its columns itself
        labels = None if self.targets.own else self.targets.labels
        return _cross_entropy(self.product.x, self.product.y, scale, bias, labels, group=group)

    def of_logits(self, logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, self.targets.labels, label_smoothing=self.smoothing)

    def is_transposed(self, other: Term) -> bool:
        return (
            isinstance(other, CrossEntropy)
            and self.product is not other.product
            and self.product.upright is other.product.upright
            and self.targets.own
            and other.targets.own
            and self.smoothing == other.smoothing
            and self.product.shape[0] == self.product.shape[1] > 1
        )

    def of_both_sides(self) -> Tensor:
        product = self.product.upright
        scale, bias = product.affine()
        found = clip(product.x, product.y, scale, bias, label_smoothing=self.smoothing, group=self.group)
        return found.to(self.dtype)


class Sigmoid(Term):
    """Minus the log-sigmoids of logits times 1 on the diagonal and ``other``, -1 or 0, beside it, summed over rows."""

    def __init__(self, product: Product, other: float, dtype: torch.dtype) -> None:
        super().__init__(product, dtype)
        self.other = other

    def fused(self) -> Tensor:
        scale, bias = self.product.affine()
        loss = siglip if self.other else _own_pairs
        return loss(self.product.x, self.product.y, scale, 0.0 if bias is None else bias, group=self.group)

    def of_logits(self, logits: Tensor) -> Tensor:
        own = torch.eye(len(logits), dtype=self.dtype, device=logits.device)
        return -F.logsigmoid((self.other + (1 - self.other) * own) * logits).sum() / len(logits)


class Signed(Formula):
    """Logits times 1 on the diagonal and ``other`` beside it; maybe the log-sigmoid of that."""

    def __init__(self, product: Product, other: float, dtype: torch.dtype, logarithm: bool = False) -> None:
        self.product, self.other, self.logarithm = product, other, logarithm
        self.shape, self.dtype, self.device, self.leaves = product.shape, dtype, product.device, product.leaves

    def entries(self) -> Tensor:
        logits = self.product.dense()
        own = torch.eye(len(logits), dtype=self.dtype, device=self.device)
        found = (self.other + (1 - self.other) * own) * logits
        return F.logsigmoid(found) if self.logarithm else found

    def log_sigmoid(self) -> Signed:
        return Signed(self.product, self.other, self.dtype, logarithm=True)

    def summed(self, dim: Any) -> Formula | None:
        if not self.logarithm or dim not in (None, 1, -1, (1,), (-1,)):
            return None
        term, n = Sigmoid(self.product, self.other, self.dtype), self.shape[0]
        return Losses({term: -float(n)}) if dim is None else Matched(self, term)


class Matched(Formula):
    """The sums of signed logits over each row, times a number: minus the terms of a loss."""

    def __init__(self, signed: Signed, term: Term, factor: float = 1.0) -> None:
        self.signed, self.term, self.factor = signed, term, factor
        self.shape, self.dtype, self.device = signed.shape[:1], signed.dtype, signed.device
        self.leaves = signed.leaves

    def entries(self) -> Tensor:
        return self.factor * self.signed.entries().sum(dim=-1)

    def stepped(self, step: str, number: float) -> Matched:
        return Matched(self.signed, self.term, self.factor * (number if step == "mul" else 1 / number))

    def mean(self) -> Losses:
        return Losses({self.term: -self.factor})

    def summed(self, dim: Any) -> Losses | None:
        return Losses({self.term: -self.factor * self.shape[0]}) if dim is None else None


class Losses(Formula):
    """Losses, each times a number, added."""

    def __init__(self, terms: Mapping[Term, float]) -> None:
        self.terms = dict(terms)
        first = next(iter(self.terms))
        self.shape, self.device, self.dtype = (), first.product.device, first.dtype
        for term in self.terms:
            self.dtype = torch.promote_types(self.dtype, term.dtype)
        leaves = [leaf for term in self.terms for leaf in term.product.leaves]
        self.leaves = tuple({id(leaf): leaf for leaf in leaves}.values())

    @classmethod
    def cross_entropy(cls, product: Product, targets: Targets, smoothing: float) -> Losses:
        return cls({CrossEntropy(product, targets, smoothing): 1.0})

    def stepped(self, step: str, number: float) -> Losses:
        factor = number if step == "mul" else 1 / number
        return Losses({term: factor * weight for term, weight in self.terms.items()})

    def plus(self, other: Losses) -> Losses:
        weights = self.terms.copy()
        for term, weight in other.terms.items():
            weights[term] = weights.get(term, 0.0) + weight
        return Losses(weights)

    def entries(self) -> Tensor:
        return reduce(operator.add, (value * weight for value, weight in self._parts()))

    def _parts(self) -> Iterable[tuple[Tensor, float]]:
        """Values and their weights; the two losses of one matrix, with one weight, in one pass over it."""
        left = dict(self.terms)
        while left:
            term, weight = left.popitem()
            other = next((t for t, w in left.items() if w == weight and term.is_transposed(t)), None)
            if other is None:
                yield term.value(), weight
            else:
                del left[other]
                yield term.of_both_sides(), 2 * weight


@together
def _cross_entropy(
    x: Tensor, y: Tensor, scale: Scalar, bias: Scalar | None, labels: Tensor | None, *, group: Group | None
) -> Tensor:
    """The mean cross entropy of rows, with the column of their number or that of their label."""
    numbers = None if labels is None else torch.arange(len(y), device=y.device)
    return pair_cross_entropy(
        Points(x, labels),
        Points(y, numbers),
        scale,
        denominator=Pairs.ALL,
        positives=Pairs.SELF if labels is None else Pairs.POSITIVE,
        col_bias=None if bias is None else expand_scalar("logit_bias", bias, y),
        offset=0 if labels is None else None,
        reduction="mean",
        group=group,
    )


@together
def _own_pairs(x: Tensor, y: Tensor, scale: Scalar, bias: Scalar, *, group: Group | None) -> Tensor:
    """The mean log-sigmoid loss of each row's own pair; all others have a logit of 0, whatever they are."""
    with no_autocast(x):
        terms = F.softplus(-(scale * (widen(x) * widen(y)).sum(1) + bias))
    everyone = agree(group, x.device, [len(x)], operator="own pairs")
    n = len(x) if everyone is None else everyone.n
    return share_of(terms, "mean", everyone) + (n - 1) * math.log(2)
