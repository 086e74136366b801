# SPDX-License-Identifier: Apache-2.0
"""The engine's softmax-weighted mean of values and its gradients, against dense attention in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.dense import ALL, NEG_OTHER, POS_OTHER, POS_SAME, Case, arguments, dense, make, members, of_slopes
from helpers.oracle import assert_as_accurate, between_logits, widest
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from pycl import Pairs, Points, pair_average, pair_stats

# the problem and the width of the values
CASES: dict[str, tuple[Callable[[], Case], int]] = {
    "one": (lambda: make(1, 1, 1, denominator=ALL, offset=None), 1),
    "all": (lambda: make(130, 45, 40, denominator=ALL, offset=None, bias=()), 64),
    "others": (lambda: make(33, 70, 16, offset=3), 5),
    "own scales": (lambda: make(70, 33, 5, scale="rows", offset=-2, bias=("col_bias",)), 17),
    "some": (lambda: make(90, 70, 24, denominator=NEG_OTHER | POS_SAME, bias=("row_bias",)), 3),
    "few": (lambda: make(40, 50, 24, denominator=POS_OTHER, offset=None), 8),
    "unit": (lambda: make(70, 90, 40, scale=20.0, normalize=True), 33),
    "unit, own scales": (lambda: make(60, 50, 9, scale="rows", normalize=True, offset=None), 2),
    "itself": (lambda: make(50, None, 12, bias=()), 4),
    "itself, one bias": (lambda: make(50, None, 12, bias=("row_bias",), tied=True), 4),
    "itself, all": (lambda: make(61, None, 12, scale="rows", normalize=True), 7),
    "long": (lambda: make(1100, 300, 6, denominator=ALL, offset=None), 2),
}


def average(case: Case, leaves: dict[str, Tensor], backend: str, **options: Any) -> Tensor:
    (rows, cols, scale), given = arguments(case, leaves)
    del given["positives"]
    options |= {"pairs": Pairs(case.denominator), "backend": backend}
    return pair_average(rows, cols, leaves["values"], scale, **given, **options)


def softmax(case: Case, leaves: dict[str, Tensor]) -> Tensor:
    """The dense weights; 0 in a row without pairs, where a softmax over nothing has no gradient."""
    logits, allowed = dense(case, leaves)[1], members(case)
    some = allowed.any(1, keepdim=True)
    return logits.masked_fill(~allowed & some, -torch.inf).softmax(1).masked_fill(~allowed, 0)


def mean(case: Case, leaves: dict[str, Tensor]) -> Tensor:
    return softmax(case, leaves) @ leaves["values"]


def with_gradients(
    function: Callable[..., Tensor], case: Case, leaves: dict[str, Tensor], slope: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    leaves = {name: t.detach().clone().requires_grad_() for name, t in leaves.items()}
    out = function(case, leaves)
    gradients = torch.autograd.grad((out.double() * slope).sum(), list(leaves.values()))
    return out.detach(), dict(zip(leaves, gradients, strict=True))


def magnitudes(case: Case, leaves: dict[str, Tensor], slope: Tensor) -> dict[str, float]:
    """What the gradients' roundings are relative to: each without cancellation."""
    p, values = softmax(case, leaves), leaves["values"]
    along = (slope.abs() * (p @ values.abs())).sum(1, keepdim=True)
    size = dense(case, leaves)[1].abs().max().item()
    found = of_slopes(case, leaves, p * (slope.abs() @ values.abs().T + along), size)
    return found | {"values": max(1.0, size / 5) * (p.T @ slope.abs()).max().item()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_everything_has_a_gradient(name: str, dtype: torch.dtype, backend: str) -> None:
    make_case, dv = CASES[name]
    case = make_case()
    case = case.update(values=torch.randn(len(case.col_ids), dv, dtype=torch.float64))
    slope = torch.randn(len(case.row_ids), dv, dtype=torch.float64)
    wide, points = torch.float64 if dtype == torch.float64 else torch.float32, ("x", "y", "values")
    leaves = {key: t.to(dtype if key in points else wide) for key, t in case.leaves.items()}
    exact = {key: t.double() for key, t in leaves.items()}
    truth, d_truth = with_gradients(mean, case, exact, slope)
    plain, d_plain = with_gradients(mean, case, {key: t.to(dtype) for key, t in leaves.items()}, slope)
    out, d_out = with_gradients(lambda *args: average(*args, backend), case, leaves, slope)
    most = magnitudes(case, exact, slope)
    assert out.dtype == wide
    assert_as_accurate(out, plain, truth, dtype, magnitude=exact["values"].abs().max().item())
    for key, true in d_truth.items():
        assert d_out[key].dtype == leaves[key].dtype
        assert_as_accurate(d_out[key], d_plain[key], true, dtype, magnitude=most[key])


@pytest.mark.float64
@pytest.mark.parametrize("name", ["others", "own scales", "few", "unit, own scales", "itself, all"])
def test_gradcheck(name: str, backend: str) -> None:
    case = CASES[name][0]()
    leaves = case.leaves | {"values": torch.randn(len(case.col_ids), 3, dtype=torch.float64)}
    leaves = {key: t.requires_grad_() for key, t in leaves.items()}

    def function(*tensors: Tensor) -> Tensor:
        return average(case, dict(zip(leaves, tensors, strict=True)), backend)

    torch.autograd.gradcheck(function, tuple(leaves.values()), fast_mode=True)


@pytest.mark.parametrize("name", ["others", "own scales", "itself, one bias"])
def test_detached_weights(name: str, backend: str) -> None:
    """The values' gradient is the same, nothing else has one, and nothing refuses what requires one."""
    case = CASES[name][0]()
    leaves = {key: t.float().requires_grad_() for key, t in case.leaves.items()}
    values = torch.randn(len(case.col_ids), 3, requires_grad=True)
    given = leaves | {"values": values}
    slope = torch.randn(len(case.row_ids), 3)
    out, detached = average(case, given, backend), average(case, given, backend, detach_weights=True)
    assert torch.equal(out, detached)
    (whole,) = torch.autograd.grad(out, [values], slope)
    of_values, *others = torch.autograd.grad(detached, [values, *leaves.values()], slope, allow_unused=True)
    torch.testing.assert_close(of_values, whole)
    assert others == [None] * len(leaves)
    constant = average(case, given | {"values": values.detach()}, backend, detach_weights=True)
    assert not constant.requires_grad


@pytest.mark.parametrize("asked", ["x", "y", "scale", "row_bias", "col_bias", "values"])
def test_one_gradient_alone(asked: str, backend: str) -> None:
    case = CASES["others"][0]()
    leaves = {key: t.to(widest(backend)) for key, t in case.leaves.items()}
    leaves["values"] = torch.randn(len(case.col_ids), 3, dtype=widest(backend))
    leaves[asked].requires_grad_()
    slope = torch.randn(len(case.row_ids), 3, dtype=torch.float64)
    (got,) = torch.autograd.grad((average(case, leaves, backend).double() * slope).sum(), leaves[asked])
    exact = {key: t.detach().double() for key, t in leaves.items()}
    true = with_gradients(mean, case, exact, slope)[1][asked]
    most = magnitudes(case, exact, slope)[asked]
    torch.testing.assert_close(got.double(), true, rtol=0, atol=2e-6 * max(1.0, most))


def test_an_anchor_without_pairs(backend: str) -> None:
    x, values = torch.randn(20, 8, requires_grad=True), torch.randn(20, 3, requires_grad=True)
    ids = torch.arange(20) % 6
    ids[0] = 99
    scale, bias = torch.rand(20, requires_grad=True), torch.randn(20, requires_grad=True)
    options: dict[str, Any] = {"pairs": Pairs.POSITIVE, "row_bias": bias, "backend": backend}
    out = pair_average(Points(x, ids), None, values, scale, **options)
    assert (out[0] == 0).all()
    gradients = torch.autograd.grad(out, (x, values, scale, bias), torch.randn(20, 3))
    for gradient in gradients:
        assert gradient.isfinite().all()
        assert (gradient[0] == 0).all()
    nothing = pair_average(Points(x), None, values, scale, pairs=Pairs.NONE, backend=backend)
    assert (nothing == 0).all()
    for gradient in torch.autograd.grad(nothing.sum(), (x, values, scale)):
        assert (gradient == 0).all()


def test_pair_sets_normalisation_and_self(backend: str) -> None:
    dtype = widest(backend)
    x, values = torch.randn(40, 8, dtype=dtype) * 4, torch.randn(40, 3, dtype=dtype)
    ids, views = torch.randint(0, 9, (40,)), torch.randint(0, 2, (40,))
    points, unit = Points(x, ids, views), normalize(x.double(), dim=1)
    same = ids[:, None] == ids
    other_view = views[:, None] != views
    eye = torch.eye(40, dtype=torch.bool)
    tolerance = {"rtol": 0.0, "atol": 1e-5}
    for pairs, allowed in (
        (Pairs.OTHERS, ~eye),
        (Pairs.NEG_OTHER_VIEW, ~same & other_view),
        (Pairs.ALL, eye | ~eye),
    ):
        got = pair_average(points, None, values, 3.0, pairs=pairs, normalize=True, backend=backend)
        weights = (3.0 * unit @ unit.T).masked_fill(~allowed, -torch.inf).softmax(1)
        torch.testing.assert_close(got.double(), weights @ values.double(), **tolerance)
    shifted = pair_average(Points(x[5:25]), Points(x), values, pairs=Pairs.SELF, offset=5, backend=backend)
    torch.testing.assert_close(shifted, values[5:25], **tolerance)


@pytest.mark.parametrize(
    ("dtype", "of_values"),
    [(torch.float32, torch.float64), (torch.float32, torch.float16), (torch.bfloat16, torch.float32)],
    ids=str,
)
def test_values_of_another_dtype(dtype: torch.dtype, of_values: torch.dtype, backend: str) -> None:
    x, y = (torch.randn(n, 8).to(dtype).requires_grad_() for n in (20, 30))
    values = torch.randn(30, 3).to(of_values).requires_grad_()
    leaves, slope = (x, y, values), torch.randn(20, 3)

    def gradients(out: Tensor) -> tuple[Tensor, ...]:
        return out.detach(), *torch.autograd.grad(out, leaves, slope.to(out.dtype))

    found = gradients(pair_average(Points(x), Points(y), values, 0.3, offset=None, backend=backend))
    true = gradients((0.3 * x.double() @ y.double().T).softmax(1) @ values.double())
    digits = 1e-5 if dtype == torch.float32 else 3e-2
    assert [t.dtype for t in found] == [torch.float32, dtype, dtype, of_values]
    for mine, right in zip(found, true, strict=True):
        torch.testing.assert_close(
            mine.double(), right.double(), rtol=0, atol=max(digits, 1e-3 * (of_values.itemsize == 2))
        )


def test_large_logits(backend: str) -> None:
    """Where the anchor itself takes all the weight, its value comes back, off by what two sweeps see of one logit."""
    x, values = torch.randn(20, 8, requires_grad=True), torch.randn(20, 3)
    got = pair_average(Points(x), None, values, 1e4, normalize=True, backend=backend)
    torch.testing.assert_close(got, values, rtol=math.expm1(between_logits(1e4, 8)), atol=0)
    assert torch.autograd.grad(got.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", [3e38, 1e-15])
def test_values_at_the_ends_of_the_range(size: float, sign: int, backend: str) -> None:
    """Equal logits, all as large or as small as they can be: the weights add up to 1 before the values overflow."""
    x, y = torch.ones(5, 4), torch.full((300, 4), float(sign))
    found = pair_average(Points(x), Points(y), torch.full((300, 3), size), 17.0, normalize=True, backend=backend)
    torch.testing.assert_close(found, torch.full((5, 3), size), rtol=1e-4, atol=0)


def test_soft_targets_need_no_second_matrix(backend: str) -> None:
    """A student's cross entropy with a teacher's softmax, and the gradients of both."""
    x, y, s, t = (torch.randn(n, 6, requires_grad=True) for n in (20, 30, 20, 30))
    options: dict[str, Any] = {"offset": None, "backend": backend}
    lse = pair_stats(Points(x), Points(y), 2.0, denominator=Pairs.ALL, **options).lse
    target = pair_average(Points(s), Points(t), y, 0.5, **options)
    found = (lse - 2.0 * (x * target).sum(1)).mean()
    wanted = cross_entropy(2.0 * x @ y.T, (0.5 * s @ t.T).softmax(1))
    torch.testing.assert_close(found, wanted)
    leaves = (x, y, s, t)
    for mine, right in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(wanted, leaves), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("asked", ["x", "values", "slope"])
def test_a_second_derivative_raises(asked: str, backend: str) -> None:
    leaves = {"x": torch.randn(9, 4), "values": torch.randn(9, 2), "slope": torch.randn(9, 2)}
    leaves[asked].requires_grad_()
    x, values = leaves["x"].requires_grad_(), leaves["values"].requires_grad_()
    out = pair_average(Points(x), None, values, backend=backend)
    gradients = torch.autograd.grad(out, (x, values), leaves["slope"], create_graph=True)
    for gradient in gradients:
        with pytest.raises(RuntimeError, match="differentiated once"):
            torch.autograd.grad(gradient.sum(), leaves[asked], retain_graph=True)


def test_under_transforms_and_the_compiler(backend: str) -> None:
    x, y, values = torch.randn(3, 9, 4), torch.randn(14, 4), torch.randn(14, 2)

    def loss(x: Tensor, y: Tensor, values: Tensor) -> Tensor:
        return pair_average(Points(x), Points(y), values, 0.5, offset=None, backend=backend).square().sum()

    def by_torch(x: Tensor, y: Tensor, values: Tensor) -> Tensor:
        return ((0.5 * x @ y.T).softmax(1) @ values).square().sum()

    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = [t.clone().requires_grad_() for t in (x[0], y, values)]
        found = torch.autograd.grad(function(*leaves), leaves)
        torch.testing.assert_close(found, torch.autograd.grad(by_torch(*leaves), leaves), rtol=1e-4, atol=1e-5)
    batched = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2)), in_dims=(0, None, None))
    wanted = [torch.func.grad(by_torch, argnums=(0, 1, 2))(one, y, values) for one in x]
    for mine, right in zip(batched(x, y, values), zip(*wanted, strict=True), strict=True):
        torch.testing.assert_close(mine, torch.stack(right), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"values": torch.zeros(3, 2)}, ValueError, r"values must have shape \[4, dv\]"),
        ({"values": torch.zeros(4)}, ValueError, r"values must have shape \[4, dv\]"),
        ({"values": torch.zeros(4, 2, dtype=torch.int64)}, TypeError, "values must be a floating-point tensor"),
        ({"values": None}, TypeError, "values must be a floating-point tensor, got NoneType"),
        ({"logit_scale": torch.ones(4)}, ValueError, "logit_scale must be a number or have shape"),
        ({"row_bias": torch.ones(4)}, ValueError, r"row_bias must have shape \[5\]"),
        ({"pairs": 3}, TypeError, "pairs must be a union of pycl.Pairs"),
    ],
)
def test_bad_input(options: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"rows": Points(torch.zeros(5, 3)), "cols": Points(torch.zeros(4, 3)), "values": torch.zeros(4, 2)}
    with pytest.raises(error, match=message):
        pair_average(**(arguments | {"offset": None} | options))  # type: ignore[arg-type]  # of mixed types


def test_soft_targets_take_no_second_matrix(backend: str) -> None:
    """The identity of the docstring: the student's log-sum-exp minus its logit with the mean under the teacher."""
    student, teacher = torch.randn(2, 9, 5), torch.randn(2, 9, 3)
    x, y = student.requires_grad_()
    mean = pair_average(Points(teacher[0]), Points(teacher[1]), y, 2.0, offset=None, backend=backend)
    lse = pair_stats(Points(x), Points(y), 3.0, denominator=Pairs.ALL, offset=None, backend=backend).lse
    found = lse - 3.0 * (x * mean).sum(1)
    targets = (2.0 * teacher[0] @ teacher[1].T).softmax(1)
    wanted = torch.nn.functional.cross_entropy(3.0 * x @ y.T, targets, reduction="none")
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    gradients = [torch.autograd.grad(terms.sum(), student, retain_graph=True)[0] for terms in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)
