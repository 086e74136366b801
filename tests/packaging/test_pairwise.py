# SPDX-License-Identifier: Apache-2.0
"""The selection of cases: no pair of values is lost, it is small, and the same in whatever order cases come."""

from __future__ import annotations

from itertools import product
from typing import Any

from helpers.pairwise import cover, pairs_of
from hypothesis import given
from hypothesis import strategies as st

SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=5)


def full(sizes: list[int]) -> dict[str, dict[str, Any]]:
    return {
        "-".join(map(str, values)): {f"p{k}": value for k, value in enumerate(values)}
        for values in product(*map(range, sizes))
    }


def met(cases: Any) -> set[Any]:
    return {pair for case in cases for pair in pairs_of(case)}


@given(sizes=SIZES, data=st.data())
def test_every_pair_that_occurs_is_met(sizes: list[int], data: st.DataObject) -> None:
    cases = full(sizes)
    kept = data.draw(st.lists(st.sampled_from(sorted(cases)), min_size=1, unique=True), label="not all of a product")
    for some in (cases, {name: cases[name] for name in kept}):
        chosen = cover(some)
        assert chosen <= some.keys()
        assert met(some[name] for name in chosen) == met(some.values())


@given(sizes=SIZES, data=st.data())
def test_order_does_not_matter(sizes: list[int], data: st.DataObject) -> None:
    cases = full(sizes)
    shuffled = data.draw(st.permutations(list(cases)), label="order")
    assert cover({name: dict(reversed(cases[name].items())) for name in shuffled}) == cover(cases)


def test_a_product_shrinks_to_about_its_two_largest_factors() -> None:
    assert len(cover(full([4, 4, 4, 4]))) <= 24  # of 256; 16 is the least
    assert len(cover(full([10, 3, 3, 2]))) <= 34  # of 180; 30 is the least
    assert len(cover(full([7]))) == 7
    assert len(cover(full([7, 5]))) == 35
    assert cover({}) == set()
    assert cover({"only": {}}) == {"only"}


def test_values_that_are_equal_differ_by_type() -> None:
    cases: dict[str, dict[str, Any]] = {name: {"p": value} for name, value in zip("abc", (1, 1.0, True), strict=True)}
    assert cover(cases) == {"a", "b", "c"}


def test_values_that_cannot_be_hashed() -> None:
    cases: dict[str, dict[str, Any]] = {"a": {"p": [1]}, "b": {"p": [2]}, "c": {"p": [1]}}
    assert cover(cases) == {"a", "b"}
