# SPDX-License-Identifier: Apache-2.0
"""A function of the logits in plain torch: values and gradients against the dense form, and what is refused."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pycl import Pairs, Points
from pycl.engine import LabelTable, pair_average, pair_extremes, pair_stats, pair_sum

ROWS, COLS = 700, 45  # several strips
X, Y = torch.randn(ROWS, 6).double(), torch.randn(COLS, 6).double()
OPTIONS: dict[str, Any] = {"offset": None}


def decay(l: Tensor, rows: Tensor, cols: Tensor, slope: Tensor) -> Tensor:
    return l - slope * (rows - cols).abs()


def capped(l: Tensor, rows: Tensor, cols: Tensor, cap: Tensor) -> Tensor:
    return cap * torch.tanh(l / cap)


def of_one_document(l: Tensor, rows: Tensor, cols: Tensor, of_rows: Tensor, of_cols: Tensor, factor: Tensor) -> Tensor:
    return torch.where(of_rows[rows] == of_cols[cols], l * factor[rows], -torch.inf)


DOCUMENTS = torch.arange(ROWS) % 4, torch.arange(COLS) % 3
MODS: dict[str, tuple[Callable[..., Tensor], tuple[Any, ...]]] = {
    "decay": (decay, (torch.tensor(0.01).double(),)),
    "capped": (capped, (torch.tensor([2.0]).double(),)),
    "of_one_document": (of_one_document, (*DOCUMENTS, torch.rand(ROWS).double() + 0.5)),
}


def leaves_of(arguments: tuple[Any, ...]) -> tuple[list[Tensor], tuple[Any, ...]]:
    x, y = X.clone().requires_grad_(), Y.clone().requires_grad_()
    given = tuple(a.clone().requires_grad_() if a.is_floating_point() else a for a in arguments)
    return [x, y, *(a for a in given if a.requires_grad)], given


def dense(function: Callable[..., Tensor], leaves: list[Tensor], arguments: tuple[Any, ...]) -> Tensor:
    return function(leaves[0] @ leaves[1].T, torch.arange(ROWS)[:, None], torch.arange(COLS)[None], *arguments)


@pytest.mark.parametrize("name", MODS)
def test_against_dense(name: str) -> None:
    function, arguments = MODS[name]
    leaves, given = leaves_of(arguments)
    logits = dense(function, leaves, given)
    some = (logits != -torch.inf).any(1, keepdim=True)
    weights = logits.masked_fill(~some, 0).softmax(1).masked_fill(~some, 0)
    wanted = [
        logits.logsumexp(1)[some[:, 0]],
        torch.nn.functional.softplus(logits).sum(1),
        (weights @ leaves[1]).sum(1),
    ]
    wanted += [logits.amax(1)[some[:, 0]], logits.amax(0)]
    points = Points(leaves[0]), Points(leaves[1])
    options = OPTIONS | {"score_mod": function, "score_mod_args": given}
    stats = pair_stats(*points, denominator=Pairs.ALL, **options)
    extremes, of_cols = pair_extremes(*points, negatives=Pairs.ALL, positives=Pairs.NONE, sides="both", **options)
    found = [stats.lse[some[:, 0]], pair_sum(*points, negatives=Pairs.ALL, **options)]
    found += [pair_average(*points, leaves[1], **options).sum(1), extremes.negative[some[:, 0]], of_cols.negative]
    for got, want in zip(found, wanted, strict=True):
        assert_close(got, want)
        slope = torch.linspace(0.5, 2, len(want)).double()
        gradients = [torch.autograd.grad((t * slope).sum(), leaves, retain_graph=True) for t in (got, want)]
        for mine, true in zip(*gradients, strict=True):
            assert_close(mine, true, rtol=1e-9, atol=1e-9)


def test_it_comes_after_the_modifiers() -> None:
    table, labels = torch.tensor([[1.0, 3.0], [0.0, 2.0]]).double(), (torch.arange(ROWS) % 2, torch.arange(COLS) % 2)
    logits = X @ Y.T + table.log()[labels[0]][:, labels[1]]
    options = OPTIONS | {"modifiers": [LabelTable(table, *labels)], "score_mod": lambda l, i, j: 2 * l}
    found = pair_stats(Points(X), Points(Y), denominator=Pairs.ALL, **options).lse
    assert_close(found, (2 * logits).logsumexp(1))


def test_the_function_lives_until_the_backward() -> None:
    x = X.clone().requires_grad_()
    other = [lambda l, i, j: 3 * l]
    loss = pair_stats(Points(x), Points(Y), denominator=Pairs.ALL, **OPTIONS, score_mod=other[0]).lse.sum()
    other.clear()
    gc.collect()
    (got,) = torch.autograd.grad(loss, x)
    plain = X.clone().requires_grad_()
    (want,) = torch.autograd.grad((3 * plain @ Y.T).logsumexp(1).sum(), plain)
    assert_close(got, want)


def test_of_half_types_and_itself() -> None:
    z = torch.randn(50, 6).bfloat16().requires_grad_()
    slope = torch.tensor(0.25).bfloat16().requires_grad_()
    stats = pair_stats(Points(z), denominator=Pairs.OTHERS, score_mod=decay, score_mod_args=(slope,))
    position = torch.arange(50)
    logits = z.float() @ z.float().T - slope.float() * (position[:, None] - position).abs()
    wanted = logits.masked_fill(torch.eye(50, dtype=torch.bool), -torch.inf).logsumexp(1)
    assert_close(stats.lse, wanted, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(t.sum(), [z, slope]) for t in (stats.lse, wanted)]
    assert [g.dtype for g in gradients[0]] == [torch.bfloat16, torch.bfloat16]
    for mine, true in zip(*gradients, strict=True):
        assert_close(mine, true, rtol=2e-2, atol=2e-2)


def test_compiled_functions_and_callers() -> None:
    """``torch.compile`` of the function runs in the tiles; around a call that has one the graph is broken."""
    compiled = torch.compile(capped, backend="aot_eager")
    options = OPTIONS | {"score_mod_args": (torch.tensor(2.0).double(),)}
    wanted = pair_stats(Points(X), Points(Y), denominator=Pairs.ALL, score_mod=capped, **options).lse
    found = pair_stats(Points(X), Points(Y), denominator=Pairs.ALL, score_mod=compiled, **options).lse
    assert_close(found, wanted)

    def loss(x: Tensor) -> Tensor:
        return 2 * pair_stats(Points(x), Points(Y), denominator=Pairs.ALL, score_mod=capped, **options).lse.sum()

    x = X.clone().requires_grad_()
    torch.compiler.reset()
    total = torch.compile(loss, backend="aot_eager")(x)
    assert_close(total, 2 * wanted.sum())
    assert_close(torch.autograd.grad(total, x)[0], torch.autograd.grad(loss(x), x)[0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"score_mod": lambda l, i, j: l[:, :3]}, ValueError, r"score_mod must return logits of the shape .* got"),
        (
            {"score_mod": lambda l, i, j: l.long()},
            TypeError,
            "score_mod must return a floating-point tensor, got .*int64",
        ),
        ({"score_mod": lambda l, i, j: 3.0}, TypeError, "score_mod must return a floating-point tensor, got float"),
        ({"score_mod": 3}, TypeError, "score_mod must be a function, got int"),
        ({"score_mod": decay, "score_mod_args": X}, TypeError, "score_mod_args must be a tuple, got Tensor"),
        ({"score_mod_args": (X,)}, ValueError, "score_mod_args must be empty without a score_mod, got 1"),
        ({"score_mod": capped, "backend": "cpu"}, RuntimeError, "backend='cpu' has no score_mod"),
    ],
)
def test_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pair_stats(Points(X), Points(Y), denominator=Pairs.ALL, **OPTIONS, **options)
