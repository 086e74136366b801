# SPDX-License-Identifier: Apache-2.0
"""What tests, benchmarks and the documentation need to know about the objective of a paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Values = Tensor | tuple[Tensor | None, ...]
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Paper:
    """A line of the table in ``docs/objectives.md``.

    Attributes:
        title: of the paper, short.
        link: the address of its abstract.
        equation: which of its equations, or what part of its loss.
        engine: the calls that the function is made of.
        official: the bytes of tensors of all pairs that the authors' code at least holds at once, in float32, for n
            instances of d features; None where no code was released, or where it stores nothing of note.
        differs: where paper and code disagree, and which we follow.
    """

    title: str
    link: str
    equation: str
    engine: str
    official: Callable[[int, int], int] | None = None
    differs: str = ""


@dataclass(frozen=True)
class Objective:
    """A function of :mod:`pycl.objectives`, or one form of it.

    Attributes:
        name: unique in the table.
        function: called as ``function(**arguments, **scalars, **options)``.
        formula: called with the same arguments: the whole matrix in plain torch, in the dtype of its arguments. It
            shares no code with the function.
        make: from n and d to the arguments: float64 tensors, integers, lists of tensors, modules; from torch's global
            generator.
        scalars: numbers that may be tensors with a gradient, and a value for each.
        options: arguments that choose the form.
        constants: arguments that never get a gradient.
        batch: the axis of the instances in each argument that has one, of a function that takes ``group``.
        backend: takes ``backend``: it runs on the engine.
        steepness: by what a similarity is multiplied at most; rounding of a logit grows with it.
        cosine: normalises inside, so that the length of an embedding does not matter.
        paper: in the row of the form that is the default.
    """

    name: str
    function: Callable[..., Any]
    formula: Callable[..., Any]
    make: Callable[[int, int], Arguments]
    scalars: Mapping[str, float] = field(default_factory=lambda: {"temperature": 0.2})
    options: Mapping[str, Any] = field(default_factory=dict)
    constants: frozenset[str] = frozenset()
    batch: Mapping[str, int] = field(default_factory=dict)
    backend: bool = True
    steepness: float = 5.0
    cosine: bool = True
    paper: Paper | None = None

    def __call__(self, arguments: Arguments, scalars: Mapping[str, Any], **options: Any) -> tuple[Tensor, ...]:
        """The values of the function; ``backend`` is left out where it takes none."""
        if not self.backend:
            options.pop("backend", None)
        return values(self.function(**arguments, **scalars, **self.options, **options))

    def truth(self, arguments: Arguments, scalars: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The values of the formula."""
        return values(self.formula(**arguments, **scalars, **self.options))


def values(found: Values) -> tuple[Tensor, ...]:
    """What a function returned, as a tuple of tensors."""
    several = found if isinstance(found, tuple) else (found,)
    return tuple(x for x in several if x is not None)
