# SPDX-License-Identifier: Apache-2.0
"""A row of the table of losses, and random views."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

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
