# SPDX-License-Identifier: Apache-2.0
"""What is left to ``make test-all``: the marked, and of Triton's cases what adds no pair of values."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from helpers.selection import left_out


class Item(SimpleNamespace):
    """A test as far as the selection looks at it."""

    def __hash__(self) -> int:
        return hash(self.nodeid)

    def iter_markers(self, name: str) -> list[Any]:
        return [mark for mark in self.marks if mark.name == name]


def items(*marks: pytest.MarkDecorator, **values: list[Any]) -> list[Item]:
    """A case for each place in the lists of values."""
    cases = [dict(zip(values, case, strict=True)) for case in zip(*values.values(), strict=True)]
    return [
        Item(nodeid=f"test[{case}]", marks=[mark.mark for mark in marks], callspec=SimpleNamespace(params=case))
        for case in cases
    ]


def test_thorough_tests_are_left() -> None:
    bare = Item(nodeid="test", marks=[pytest.mark.thorough.mark])
    assert left_out([bare, Item(nodeid="other", marks=[])]) == {bare}


def test_thorough_cases_are_left() -> None:
    marks = pytest.mark.thorough(backend="cpu", n=2), pytest.mark.thorough(n=3)
    cases = items(*marks, backend=["cpu", "cpu", "reference", "reference"], n=[1, 2, 2, 3])
    assert left_out(cases) == {cases[1], cases[3]}


@pytest.mark.parametrize("argument", ["backend", "sinkhorn_backend"])
def test_triton_runs_pairs_and_the_others_the_product(argument: str) -> None:
    a, b, c = ([k >> place & 1 for k in range(8)] for place in range(3))
    for backend, few in (("triton", True), ("cpu", False)):
        cases = items(**{argument: [backend] * 8}, a=a, b=b, c=c)
        left = left_out(cases)
        assert (4 <= len(cases) - len(left) <= 5) if few else not left


def test_what_is_thorough_stands_for_no_pair() -> None:
    """The pairs of a case that does not run have to be met by others."""
    cases = items(pytest.mark.thorough(a=0, b=0, c=0), backend=["triton"] * 8, a=[0, 0, 0, 0, 1, 1, 1, 1],
                  b=[0, 0, 1, 1, 0, 0, 1, 1], c=[0, 1, 0, 1, 0, 1, 0, 1])  # fmt: skip
    runs = [case.callspec.params for case in cases if case not in left_out(cases)]
    assert {(case["a"], case["b"]) for case in runs} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert {(case["b"], case["c"]) for case in runs} == {(0, 0), (0, 1), (1, 0), (1, 1)}
