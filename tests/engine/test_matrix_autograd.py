# SPDX-License-Identifier: Apache-2.0
"""The matrix operators under PyTorch's machinery, their errors, and the functions that are sentences on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from helpers.wanted import check_only_wanted
from test_autograd import LEAVES, compiled_is_eager, leaves_that_want, problem
from torch import Tensor
from torch.nn.functional import normalize
from torch.testing import assert_close

import pycl.functional as F
from pycl import Pairs, Points, pair_logits, pair_top
from pycl.backends.registry import why_not
from pycl.core.problem import Needs


def serves(backend: str, dtype: torch.dtype) -> None:
    if reason := why_not(backend, "cpu", dtype):
        pytest.skip(reason)


def logits_of(leaves: dict[str, Tensor], backend: str, pairs: Pairs = Pairs.ALL, **options: Any) -> Tensor:
    rows, cols, options["pairs"] = Points(leaves["x"]), Points(leaves["y"]), pairs
    options |= {name: leaves[name] for name in ("row_bias", "col_bias") if name in leaves}
    return pair_logits(rows, cols, leaves["scale"], backend=backend, **options)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("columns", torch.bfloat16), ("columns", torch.float16), ("everything", torch.float64)], ids=str
)
def test_opcheck(kind: str, dtype: torch.dtype, backend: str) -> None:
    serves(backend, dtype)
    p, ops = problem(kind, dtype), torch.ops.pycl
    torch.library.opcheck(ops.pair_logits.default, (*p, backend))
    torch.library.opcheck(ops.pair_top.default, (*p, 4, False, backend))
    for needs in (Needs(rows=True, cols=True, bias=kind == "everything"), Needs(rows=False, cols=True, bias=False)):
        torch.library.opcheck(ops.pair_logits_backward.default, (*p, torch.randn(7, 9).to(dtype), needs, backend))


@pytest.mark.parametrize("pairs", [Pairs.ALL, Pairs.OTHERS], ids=["all", "others"])
@pytest.mark.parametrize("unit", [False, True], ids=["as_given", "normalize"])
def test_gradcheck(unit: bool, pairs: Pairs, backend: str) -> None:
    serves(backend, torch.float64)

    def finite(*leaves: Tensor) -> Tensor:
        logits = logits_of(dict(zip(LEAVES, leaves, strict=True)), backend, pairs, normalize=unit, offset=1)
        return logits.masked_fill(logits == -torch.inf, 0)

    given = [t.detach().double().requires_grad_() for t in leaves_that_want(LEAVES).values()]
    assert torch.autograd.gradcheck(finite, given)


@pytest.mark.parametrize("wanted", [*((name,) for name in LEAVES), LEAVES], ids=" ".join)
def test_second_derivatives_are_refused(wanted: tuple[str, ...], backend: str) -> None:
    leaves = leaves_that_want(wanted)
    value = logits_of(leaves, backend).square().sum()
    gradients = torch.autograd.grad(value, [leaves[name] for name in wanted], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        sum(g.square().sum() for g in gradients).backward()


@pytest.mark.parametrize("wanted", LEAVES)
def test_only_what_is_wanted_is_computed(wanted: str, backend: str) -> None:
    leaves = leaves_that_want((wanted,))
    check_only_wanted("pair_logits_backward", wanted, leaves, lambda: logits_of(leaves, backend).sum(), backend)


def test_no_graph_where_no_gradient_is_wanted(backend: str) -> None:
    leaves = leaves_that_want(LEAVES)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert not logits_of(leaves, backend).requires_grad
    assert not logits_of(leaves_that_want(()), backend).requires_grad
    assert not pair_top(Points(leaves["x"]), None, 2, leaves["scale"], backend=backend)[0].requires_grad


def test_a_leaf_changed_in_place_is_noticed(backend: str) -> None:
    z = torch.randn(5, 3).requires_grad_()
    value = pair_logits(Points(z), backend=backend).sum()
    with torch.no_grad():
        z.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_the_matrix_may_be_changed_in_place(backend: str) -> None:
    x = torch.randn(5, 3).requires_grad_()
    pair_logits(Points(x), backend=backend).fill_diagonal_(0).sum().backward()
    assert_close(x.grad, 2 * (x.detach().sum(0) - x.detach()))


def test_autocast_changes_nothing(backend: str) -> None:
    leaves = leaves_that_want(LEAVES)
    plain, (top, _) = logits_of(leaves, backend), pair_top(Points(leaves["x"]), Points(leaves["y"]), 3, backend=backend)
    wanted = torch.autograd.grad(plain.sum(), list(leaves.values()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = logits_of(leaves, backend)
        again = pair_top(Points(leaves["x"]), Points(leaves["y"]), 3, backend=backend)[0]
        found = torch.autograd.grad(logits.sum(), list(leaves.values()))
    assert_close((logits, again, *found), (plain, top, *wanted))


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile(compiler: str, backends: list[str]) -> None:
    def function(*leaves: Tensor) -> Tensor:
        given = dict(zip(LEAVES, leaves, strict=True))
        logits = logits_of(given, backends[0], Pairs.OTHERS, normalize=True)
        plain = F.similarity(given["x"], given["y"], logit_scale=given["scale"][0], backend=backends[0])
        values, index = F.similarity_topk(given["x"], given["y"], 2, backend=backends[0])
        few = pair_top(Points(given["x"]), Points(given["y"]), 3, pairs=Pairs.OTHERS, backend=backends[0])
        return logits.exp().sum() + plain.square().sum() + values.sum() + index.sum() + few[0].sum() + few[1].sum()

    compiled_is_eager(function, [t.detach() for t in leaves_that_want(()).values()], backend=compiler)


def test_compile_for_any_size(backends: list[str]) -> None:
    torch.compiler.reset()
    graphs, seen = torch._dynamo.testing.CompileCounterWithBackend("aot_eager"), set()

    def function(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return F.similarity(x, y, backend=backends[0]), F.similarity_topk(x, y, min(8, len(y)), backend=backends[0])[0]

    compiled = torch.compile(function, fullgraph=True, backend=graphs, dynamic=True)
    for n in (9, 11, 14):
        x, y = torch.randn(2, n, 4)
        assert_close(compiled(x, y), function(x, y))
        seen.add(graphs.frame_count)
    assert len(seen) == 1  # Dynamo tries the default logit_scale as a number that may vary, then as a constant


A, B = torch.randn(4, 3), torch.randn(5, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pair_top(Points(A), Points(B), 0), ValueError, "k must be between 1 and .* 5, got 0"),
        (lambda: pair_top(Points(A), Points(B), 6), ValueError, "k must be between 1 and .* 5, got 6"),
        (lambda: pair_top(Points(A), None, 5), ValueError, "k must be between 1 and .* 4, got 5"),
        (lambda: pair_top(Points(A), None, 1.0), TypeError, "k must be an integer"),  # type: ignore[arg-type]
        (lambda: pair_top(Points(A), None, True), TypeError, "k must be an integer"),
        (lambda: pair_top(Points(A), None, 2, pairs=3), TypeError, "pairs must be"),  # type: ignore[arg-type]
        (lambda: pair_logits(Points(A), pairs=31), TypeError, "pairs must be"),  # type: ignore[arg-type]
        (lambda: pair_logits(Points(A), offset=1), ValueError, "offset must be 0"),
        (lambda: pair_logits(Points(A.long())), TypeError, "rows.z must be"),
        (lambda: pair_logits(Points(A), Points(B[:, :2])), ValueError, "one feature size"),
        (lambda: pair_logits(Points(A), Points(B), torch.ones(5)), ValueError, r"logit_scale .*\[4\]"),
        (lambda: pair_logits(Points(A), Points(B), col_bias=torch.ones(4)), ValueError, r"col_bias .*\[5\]"),
        (lambda: pair_logits(Points(A), backend="magma"), ValueError, "backend.*'magma'"),
        (lambda: F.similarity(A, B, backend="magma"), ValueError, "backend.*'magma'"),
        (lambda: F.similarity_topk(A, B, 2, backend="cuda"), RuntimeError, "backend='cuda'"),
        (lambda: F.similarity(A, B, logit_scale=torch.ones(4)), ValueError, "logit_scale"),
    ],
)
def test_arguments(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_similarity_on_every_backend(backend: str) -> None:
    x, y, scale = torch.randn(7, 5), torch.randn(9, 5), torch.tensor(3.0)
    leaves = [t.requires_grad_() for t in (x, y, scale)]
    for second, given in ((y, leaves), (None, leaves[::2])):
        got = F.similarity(x, second, logit_scale=scale, backend=backend)
        wanted = scale * normalize(x) @ normalize(x if second is None else second).T
        weights = torch.randn_like(got)
        assert_close(got, wanted)
        assert_close(*(torch.autograd.grad((s * weights).sum(), given) for s in (got, wanted)))


def test_similarity_promotes(backend: str) -> None:
    x, y = torch.randn(7, 5).bfloat16(), torch.randn(9, 5)
    got = F.similarity(x.requires_grad_(), y, backend=backend)
    assert got.dtype == torch.float32
    assert_close(got, normalize(x.float()) @ normalize(y).T)
    assert torch.autograd.grad(got.sum(), x)[0].dtype == torch.bfloat16


def test_similarity_topk_on_every_backend(backend: str) -> None:
    x, y = torch.randn(7, 5).requires_grad_(), torch.randn(9, 5).requires_grad_()
    wanted = (normalize(x) @ normalize(y).T).topk(4)
    values, index = F.similarity_topk(x, y, 4, backend=backend)
    assert torch.equal(index, wanted.indices)
    assert_close(values, wanted.values)
    weights = torch.randn_like(values)
    assert_close(*(torch.autograd.grad((v * weights).sum(), [x, y]) for v in (values, wanted.values)))
    with torch.no_grad():
        assert_close(F.similarity_topk(x, y, 4, backend=backend)[0], values)
