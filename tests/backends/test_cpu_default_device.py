# SPDX-License-Identifier: Apache-2.0
"""The CPU backend allocates beside its points, whatever the default device is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pycl import Pairs, Points, engine, functional
from pycl.backends.registry import why_not

if reason := why_not("cpu", "cpu"):
    pytest.skip(reason, allow_module_level=True)

SETS = {"negatives": Pairs.NEGATIVE, "positives": Pairs.SELF}
CALLS: dict[str, Callable[[Points, Points], Any]] = {
    "pair_stats": lambda x, y: engine.pair_stats(x, y, denominator=Pairs.ALL, sides="both"),
    "pair_cross_entropy": lambda x, y: engine.pair_cross_entropy(
        x, y, denominator=Pairs.ALL, positives=Pairs.SELF, reduction="mean"
    ),
    "pair_sum": lambda x, y: engine.pair_sum(x, y, **SETS, map="relu", return_counts=True),
    "pair_sum_fused": lambda x, y: engine.pair_sum(x, y, **SETS, reduction="sum"),
    "pair_average": lambda x, y: engine.pair_average(x, y, y.z),
    "pair_extremes": lambda x, y: engine.pair_extremes(x, y, **SETS, sides="both"),
    "pair_top": lambda x, y: engine.pair_top(x, y, 3),
    "pair_logits": lambda x, y: engine.pair_logits(x, y),
    "prefix_stats": lambda x, y: engine.prefix_stats(x, y, prefixes=[4, 8], denominator=Pairs.ALL),
    "swav": lambda x, y: functional.swav((x.z, y.z), x.z[:5]),
}


def value_and_gradients(name: str) -> list[Tensor]:
    x, y = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(0), device="cpu").requires_grad_().unbind()
    found = [t for t in tree_leaves(CALLS[name](Points(x), Points(y))) if isinstance(t, Tensor)]
    of = sum(t.square().sum() for t in found if t.requires_grad)
    return [*found, *(torch.autograd.grad(of, (x, y)) if isinstance(of, Tensor) else ())]


@pytest.mark.parametrize("name", CALLS)
def test_results_are_beside_the_points(name: str) -> None:
    """On ``meta`` nothing has data; on a GPU the kernels would write to an address that is not theirs."""
    expected = value_and_gradients(name)
    with torch.device("meta"):
        found = value_and_gradients(name)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
