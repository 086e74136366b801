# SPDX-License-Identifier: Apache-2.0
"""What losses are made of: reductions over the logits of all pairs of points, which are never stored."""

from __future__ import annotations

from pycl.core.pairs import Pairs, Points
from pycl.distributed.ranks import together
from pycl.engine import average, extremes, prefixes, reductions
from pycl.engine.extremes import PairExtremes
from pycl.engine.matrix import pair_logits, pair_top
from pycl.engine.modifiers import Agreement, LabelTable, Limit, Modified, PairMLP
from pycl.engine.own import own_logits
from pycl.engine.reduction import by_view, reduce
from pycl.engine.reductions import PairStats
from pycl.engine.views import stack_views

__all__ = [
    "Agreement",
    "LabelTable",
    "Limit",
    "Modified",
    "PairExtremes",
    "PairMLP",
    "PairStats",
    "Pairs",
    "Points",
    "by_view",
    "own_logits",
    "pair_average",
    "pair_cross_entropy",
    "pair_extremes",
    "pair_logits",
    "pair_stats",
    "pair_sum",
    "pair_top",
    "prefix_stats",
    "reduce",
    "stack_views",
]

# The library's own losses call those of the modules, with what `together` has made of their group.
pair_stats = together(reductions.pair_stats)
pair_cross_entropy = together(reductions.pair_cross_entropy)
pair_sum = together(reductions.pair_sum)
pair_average = together(average.pair_average)
pair_extremes = together(extremes.pair_extremes)
prefix_stats = together(prefixes.prefix_stats)
