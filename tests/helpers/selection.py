# SPDX-License-Identifier: Apache-2.0
"""What ``make test`` runs, and what it leaves to ``make test-all``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from helpers.pairwise import cover


def left_out(items: Iterable[Any]) -> set[Any]:
    """Tests that are ``thorough``, and cases of Triton kernels whose pairs of values other cases of the test have.

    The kernels' interpreter takes a tenth of a second for a loss.
    """
    products: dict[str, dict[str, Any]] = defaultdict(dict)
    left = set()
    for item in items:
        case = item.callspec.params if hasattr(item, "callspec") else {}
        if any(has(case, mark.kwargs) for mark in item.iter_markers("thorough")):
            left.add(item)
        elif "triton" in (case.get("backend"), case.get("sinkhorn_backend")):
            products[item.nodeid.partition("[")[0]][item.nodeid] = item
    for cases in products.values():
        chosen = cover({name: item.callspec.params for name, item in cases.items()})
        left |= {item for name, item in cases.items() if name not in chosen}
    return left


def has(case: dict[str, Any], values: dict[str, Any]) -> bool:
    return all(case[name] == value for name, value in values.items())
