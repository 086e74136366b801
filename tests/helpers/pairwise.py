# SPDX-License-Identifier: Apache-2.0
"""Few cases of many: every pair of parameter values that any case has, one of the chosen has."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping
from itertools import combinations
from typing import Any

Value = tuple[str, Hashable]
Case = Mapping[str, Any]


def cover(cases: Mapping[str, Case]) -> set[str]:
    """Names of the cases to run: the most new pairs first, and of as many the first by name."""
    pairs = {name: pairs_of(case) for name, case in cases.items()}
    met: set[frozenset[Value]] = set()
    chosen: set[str] = set()
    queue = [(-len(new), name) for name, new in pairs.items()]
    heapq.heapify(queue)
    while queue:
        promised, name = heapq.heappop(queue)
        found = len(pairs[name] - met)  # at most what was promised, since others have been chosen meanwhile
        if found == -promised:
            chosen.add(name)
            met |= pairs[name]
        elif found:
            heapq.heappush(queue, (-found, name))
    return chosen


def pairs_of(case: Case) -> set[frozenset[Value]]:
    """Pairs of parameters with their values; of a single parameter, that one."""
    values = [(name, _hashable(value)) for name, value in case.items()]
    return {frozenset(pair) for pair in combinations(values, min(2, len(values)))}


def _hashable(value: Any) -> Hashable:
    """A value as what it is compared by: 1, True and 1.0 are three."""
    try:
        hash(value)
    except TypeError:
        value = repr(value)
    return type(value).__qualname__, value
