# SPDX-License-Identifier: Apache-2.0
"""How the terms of a loss depend on each pair of its points, from gradients.

The gradient of a term is a combination of points. Where these are linearly independent it is so in one way only, and
the coefficient of point c in the gradient to point a is the slope of the term in the pair's similarity: below 0 the
loss pulls the two together, above 0 it pushes them apart, and 0 says that the pair does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

EXACT = 1e-7  # of float64: what is further from 0 is not rounding
STEP = 0.05  # how far a point is moved, in units of its similarity to another


class Inputs(NamedTuple):
    """The arguments of a loss by name, its points, and what these are called."""

    given: dict[str, Any]
    points: dict[str, tuple[str, int]]  # name of a point: its argument, and its row there

    def stacked(self) -> Tensor:
        return torch.stack([self.given[argument].flatten(0, -2)[row] for argument, row in self.points.values()])

    def moved(self, name: str, by: Tensor) -> Inputs:
        """The same with one point elsewhere."""
        argument, row = self.points[name]
        x = self.given[argument].clone(memory_format=torch.contiguous_format)
        x.view(-1, x.shape[-1])[row] += by
        return self._replace(given=self.given | {argument: x})


class Forces:
    """The slopes of a loss, called as ``loss(**given)`` with one term for each anchor or instance, or one for all."""

    def __init__(self, loss: Callable[..., Tensor], inputs: Inputs) -> None:
        self.loss, self.inputs = loss, inputs
        self.of_points = torch.linalg.pinv(inputs.stacked())  # column a: orthogonal to all points but a

    def of(self, anchor: str, inputs: Inputs | None = None) -> dict[str, float]:
        """The slope of the anchor's term in its similarity to each point; nothing for the pairs that do not count."""
        inputs = inputs or self.inputs
        names = sorted({argument for argument, _ in inputs.points.values()})
        leaves = {name: inputs.given[name].detach().requires_grad_() for name in names}
        argument, row = inputs.points[anchor]
        term = self.loss(**inputs.given | leaves).flatten()
        rows = leaves[argument].flatten(0, -2).shape[0]
        at = _term_of(argument, row, rows, len(term))
        (gradient,) = torch.autograd.grad(term[at], leaves[argument], allow_unused=True, materialize_grads=True)
        slopes = gradient.flatten(0, -2)[row] @ torch.linalg.pinv(inputs.stacked())
        least = EXACT * float(slopes.abs().max())
        return {
            name: x for name, x in zip(inputs.points, slopes.tolist(), strict=True) if abs(x) > least and name != anchor
        }

    def weakens(self, anchor: str, positive: str, negatives: Sequence[str]) -> bool:
        """Whether the similarity of anchor and positive changes how the negatives are pushed, as in one denominator.

        The positive is moved so that its similarity to the anchor is the only one of the anchor's that changes.
        """
        if not negatives:
            return False
        at = list(self.inputs.points).index(anchor)
        before = self.of(anchor)
        after = self.of(anchor, self.inputs.moved(positive, STEP * self.of_points[:, at]))
        return any(abs(after.get(n, 0.0) / before[n] - 1) > 1e-4 for n in negatives)


def _term_of(argument: str, row: int, rows: int, terms: int) -> int:
    """The term of a point: its own, that of its instance, or the only one. Views follow one another."""
    if rows == terms or terms == 1:
        return row if rows == terms else 0
    return row % terms if argument == "views" else row // (rows // terms)
