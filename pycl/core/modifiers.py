# SPDX-License-Identifier: Apache-2.0
"""What may be added to the logit of a pair, as data: where each modifier of a problem finds its own.

A problem holds the data of all its modifiers side by side: integers and numbers of each point, one row a point, and
numbers that all pairs share. A ``Form`` says which columns are whose. What is added is a natural logarithm, and one of
``-inf`` drops a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple
from weakref import WeakValueDictionary

# csrc/cpu/problem.h has them in this order. With the codes a, b of a pair's points, their values p, q, and shared s:
#   label_table  s[a, b]                                                 sizes A, B
#   agreement    s[number of t with a_t == b_t]                          size T
#   pair_mlp     log sigmoid(sum_k s_k tanh(p_k + q_k) + s_h)            size h
#   limit        -inf outside the positives where the logit of the product and the biases is > p_0 or > q_0; with a
#                guide of e features: where <p_1.., q_1..> is             size e, 0 without a guide
#   row_shift    p
#   score_mod    whatever its function makes of the logit and of the points' positions a_0, b_0; s are the function's
#                arguments that are floating point                       sizes handle, number of s
KINDS = ("label_table", "agreement", "pair_mlp", "limit", "row_shift", "score_mod")

WIDTH = 3  # a modifier in Problem.modifiers: its kind and two sizes


class Form(NamedTuple):
    """A modifier's kind, its sizes, and which columns of the problem's tensors are its own."""

    kind: str
    sizes: tuple[int, int]
    codes: slice
    row_values: slice
    col_values: slice
    shared: slice


def _widths(kind: str, first: int, second: int) -> tuple[int, int, int, int]:
    """How many codes, values of a row, values of a column and shared numbers a modifier has."""
    if kind == "label_table":
        return 1, 0, 0, first * second
    if kind == "agreement":
        return first, 0, 0, first + 1
    if kind == "pair_mlp":
        return 0, first, first, first + 1
    if kind == "limit":
        return 0, 1 + first, 1 + first, 0
    if kind == "row_shift":
        return 0, 1, 0, 0
    return 1, 0, 0, second


def forms(modifiers: Sequence[int]) -> Iterator[Form]:
    """The modifiers of a problem, in order."""
    start = [0, 0, 0, 0]
    for k in range(0, len(modifiers), WIDTH):
        kind, first, second = KINDS[modifiers[k]], modifiers[k + 1], modifiers[k + 2]
        stop = [a + b for a, b in zip(start, _widths(kind, first, second), strict=True)]
        yield Form(kind, (first, second), *map(slice, start, stop))
        start = stop


def kinds(modifiers: Sequence[int]) -> tuple[str, ...]:
    return tuple(KINDS[kind] for kind in modifiers[::WIDTH])


def without_handles(modifiers: Sequence[int]) -> tuple[int, ...]:
    """The same on all ranks of a group: the handle of a score_mod is a number of its process."""
    handles = [k + 1 for k in range(0, len(modifiers), WIDTH) if KINDS[modifiers[k]] == "score_mod"]
    return tuple(0 if k in handles else number for k, number in enumerate(modifiers))


class ScoreMod:
    """A function of a tile's logits that crosses to the reference by its handle, and its arguments."""

    _alive: ClassVar[WeakValueDictionary[int, ScoreMod]] = WeakValueDictionary()

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.function, self.arguments = function, arguments
        self.handle = id(self)
        self._alive[self.handle] = self

    @classmethod
    def of(cls, handle: int) -> ScoreMod:
        return cls._alive[handle]


class Modifiers(tuple[int, ...]):
    """``Problem.modifiers`` of a problem with a score_mod, which lives as long as this does."""

    score_mod: ScoreMod
