# SPDX-License-Identifier: Apache-2.0
"""The suite "modifiers", on a CPU."""

from __future__ import annotations

from .case import Case

MODIFIER_CASES = (
    Case("label_table", "LabelTable", 8192, 128),
    Case("label_table-views", "LabelTable, NT-Xent", 4096, 128),
    Case("agreement", "Agreement", 8192, 128),
    Case("limit", "Limit", 8192, 128),
    Case("limit-guide", "Limit, guide", 8192, 128),
    Case("pair_mlp", "PairMLP", 8192, 128),
    Case("col_scale", "col_scale", 8192, 128),
    Case("score_mod", "score_mod", 8192, 128),
    Case("matryoshka", "matryoshka", 8192, 512),
    Case("ada_meow", "AdaMEOW", 4019, 64),  # the nodes and features of the graph ACM
    Case("average", "pair_average", 8192, 128),
    Case("squares", "pair_sum, square", 2048, 128),
    Case("hinges", "pair_sum, relu", 2048, 128),
    Case("exponentials", "pair_sum, exp", 2048, 128),
    Case("extremes", "pair_extremes", 8192, 128),
    Case("ada_meow-memory", "AdaMEOW", 4019, 64, measure="memory"),
    Case("limit-guide-memory", "Limit, guide", 16384, 128, measure="memory"),
    Case("pair_mlp-memory", "PairMLP", 16384, 128, measure="memory"),
)
