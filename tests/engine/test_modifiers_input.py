# SPDX-License-Identifier: Apache-2.0
"""What modifiers refuse: an error that names the argument, what was given and what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pycl import Pairs, Points
from pycl.engine import (
    Agreement,
    LabelTable,
    Limit,
    PairMLP,
    pair_average,
    pair_cross_entropy,
    pair_extremes,
    pair_stats,
    pair_sum,
)

X, Y = torch.randn(4, 3), torch.randn(5, 3)
TABLE, A, B = torch.ones(2, 3), torch.tensor([0, 1, 1, 0]), torch.tensor([0, 2, 1, 2, 0])
IDS = torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 5, dtype=torch.int64)
P, Q, W2, B2 = torch.zeros(4, 6), torch.zeros(5, 6), torch.zeros(6), torch.zeros(())

WRONG: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: LabelTable(torch.ones(2, 3).long(), A, B), TypeError, "LabelTable.table .* floating-point .*int64"),
    (lambda: LabelTable(torch.ones(3), A, B), ValueError, r"LabelTable.table .* \[A, B\].*\(3,\)"),
    (lambda: LabelTable(torch.ones(0, 3), A, B), ValueError, r"LabelTable.table .* not be empty, got \(0, 3\)"),
    (lambda: LabelTable(-TABLE, A, B), ValueError, "LabelTable.table must be finite and at least 0, got .* -1.0"),
    (lambda: LabelTable(TABLE * torch.inf, A, B), ValueError, "LabelTable.table must be finite .* inf"),
    (lambda: LabelTable(TABLE * torch.nan, A, B), ValueError, "LabelTable.table must be finite"),
    (lambda: LabelTable(TABLE, A + 1, B), ValueError, "LabelTable.row_labels .* less than 2.* from 1 to 2"),
    (lambda: LabelTable(TABLE, A, B - 1), ValueError, "LabelTable.col_labels must be at least 0 .* from -1 to 1"),
    (
        lambda: LabelTable(TABLE, A.float(), B),
        TypeError,
        "LabelTable.row_labels must be an integer tensor, got .*float32",
    ),
    (lambda: LabelTable(TABLE, A > 0, B), TypeError, "LabelTable.row_labels must be an integer tensor, got .*bool"),
    (lambda: LabelTable(TABLE, B, B), ValueError, r"LabelTable.row_labels must have shape \[4\].*\(5,\)"),
    (lambda: LabelTable(TABLE, A, B.to("meta")), ValueError, "LabelTable.col_labels must be on cpu .* got meta"),
    (lambda: Agreement(*IDS, torch.ones(2)), ValueError, r"Agreement.row_ids must have shape \[1, 4\].*\(2, 4\)"),
    (lambda: Agreement(IDS[0], IDS[0], torch.ones(3)), ValueError, r"Agreement.col_ids .* \[2, 5\].*\(2, 4\)"),
    (lambda: Agreement(*IDS, torch.tensor([1.0, -1, 1])), ValueError, "Agreement.weights .* at least 0.* -1.0"),
    (lambda: Agreement(*IDS, torch.ones(3, 1)), ValueError, r"Agreement.weights must have shape \[T \+ 1\]"),
    (lambda: PairMLP(P, P, W2, B2), ValueError, r"PairMLP.q must have shape \[5, 6\].*\(4, 6\)"),
    (lambda: PairMLP(P[:, :2], Q, W2, B2), ValueError, r"PairMLP.p .* \[4, 6\], h as w2, got \(4, 2\)"),
    (lambda: PairMLP(P, Q, W2[:0], B2), ValueError, r"PairMLP.w2 must have shape \[h\] with h >= 1, got \(0,\)"),
    (lambda: PairMLP(P, Q, W2, W2), ValueError, r"PairMLP.b2 must have shape \[\], got \(6,\)"),
    (lambda: PairMLP(P, Q, W2, 0.5), TypeError, "PairMLP.b2 must be a floating-point tensor, got float"),
    (lambda: Limit(torch.zeros(5)), ValueError, r"Limit.rows must have shape \[4\].*\(5,\)"),
    (lambda: Limit(cols=torch.zeros(5, 1)), ValueError, r"Limit.cols must have shape \[5\].*\(5, 1\)"),
    (lambda: Limit(0.5), TypeError, "Limit.rows must be a floating-point tensor, got float"),
    (lambda: Limit(torch.zeros(4), guide=X), TypeError, "Limit.guide must be a pair of tensors"),
    (lambda: Limit(torch.zeros(4), guide=(X, X)), ValueError, r"Limit.guide .* \[5, e\].*\(4, 3\)"),
    (lambda: Limit(torch.zeros(4), guide=(X, Y[:, :2])), ValueError, r"Limit.guide .* one e >= 1, got \(5, 2\)"),
    (lambda: (TABLE, A, B), TypeError, "modifiers must be made of LabelTable, Agreement, PairMLP, Limit, got tuple"),
]


@pytest.mark.parametrize(("modifier", "error", "message"), WRONG)
def test_refused(modifier: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pair_stats(Points(X), Points(Y), denominator=Pairs.ALL, offset=None, modifiers=[modifier()])


def test_a_modifier_alone_is_no_sequence() -> None:
    with pytest.raises(TypeError, match="modifiers must be a sequence of modifiers of pairs, got Limit"):
        pair_stats(Points(X), Points(Y), denominator=Pairs.ALL, offset=None, modifiers=Limit())


@pytest.mark.parametrize(
    ("factor", "error", "message"),
    [
        (torch.ones(4), ValueError, r"col_scale must have shape \[n\].*\(4,\)"),
        (torch.ones(5).long(), TypeError, "col_scale must be a floating-point tensor"),
        (2.0, TypeError, "col_scale must be a floating-point tensor, got float"),
    ],
)
def test_wrong_factors(factor: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pair_stats(Points(X), Points(Y), denominator=Pairs.ALL, offset=None, col_scale=factor)


CALLS: dict[str, Callable[..., Any]] = {
    "pair_stats": lambda **more: pair_stats(Points(X), Points(Y), denominator=Pairs.ALL, **more),
    "pair_cross_entropy": lambda **more: pair_cross_entropy(
        Points(X), Points(Y), denominator=Pairs.ALL, positives=Pairs.SELF, **more
    ),
    "pair_sum": lambda **more: pair_sum(Points(X), Points(Y), negatives=Pairs.ALL, **more),
    "pair_average": lambda **more: pair_average(Points(X), Points(Y), Y, **more),
    "pair_extremes": lambda **more: pair_extremes(
        Points(X), Points(Y), negatives=Pairs.ALL, positives=Pairs.NONE, **more
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_unknown_arguments(name: str) -> None:
    assert CALLS[name](modifiers=(), col_scale=None, score_mod=None, score_mod_args=()) is not None
    with pytest.raises(TypeError, match="unexpected keyword argument 'modifier'"):
        CALLS[name](modifier=[])


def test_more_than_a_processor_takes() -> None:
    with pytest.raises(ValueError, match="modifiers are at most 8, got 9"):
        pair_stats(Points(X), denominator=Pairs.OTHERS, modifiers=[Limit(torch.ones(4))] * 9, backend="cpu")
