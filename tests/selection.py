# SPDX-License-Identifier: Apache-2.0
"""What ``make test`` runs, and what it leaves to ``make test-all``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from pairwise import cover


def left_out(items: Iterable[Any]) -> set[Any]:
    """Tests that are marked ``thorough``, and cases of ``pairwise`` ones whose pairs of values others have.

    Every test is pairwise on Triton kernels: their interpreter takes a tenth of a second for a loss.
    """
    products: dict[tuple[str, ...], dict[str, Any]] = defaultdict(dict)
    left = set()
    for item in items:
        case = item.callspec.params if hasattr(item, "callspec") else {}
        test = item.nodeid.partition("[")[0]
        if any(is_met(mark.kwargs, case) for mark in item.iter_markers("thorough")):
            left.add(item)
        elif "triton" in (case.get("backend"), case.get("sinkhorn_backend")):
            products[test, "triton"][item.nodeid] = item
        elif item.get_closest_marker("pairwise"):
            products[test,][item.nodeid] = item
    for cases in products.values():
        chosen = cover({name: item.callspec.params for name, item in cases.items()})
        left |= {item for name, item in cases.items() if name not in chosen}
    return left


def is_met(wanted: dict[str, Any], case: dict[str, Any]) -> bool:
    """Whether a case has these values, each given as it is or as a function that tells."""
    return all(value(case[name]) if callable(value) else value == case[name] for name, value in wanted.items())
