# SPDX-License-Identifier: Apache-2.0
"""The compiled module's arguments: whatever cannot be meant is refused before a kernel reads memory by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pycl.functional as F
from pycl import Pairs, Points, pair_average, pair_stats
from pycl.backends.registry import why_not
from pycl.engine import PairExtremes, pair_extremes, prefix_stats
from pycl.ops.unit import unit

if reason := why_not("cpu", "cpu"):
    pytest.skip(reason, allow_module_level=True)

from pycl.backends import cpu
from pycl.core.problem import SinkhornProblem
from pycl.core.sinkhorn import solve

C = cpu._C
FIELDS = (  # of a problem, in their order
    *("rows", "cols", "labels", "n_views", "row_bias", "col_bias", "symmetric", "logit_scale", "scale_per_row"),
    *("pairs", "positives", "has_self", "offset", "normalize", "halves", "threads"),
)
Path = tuple[Any, ...]
REFUSED = (TypeError, ValueError)


def integers(value: Any, path: Path = ()) -> Iterator[tuple[Path, int]]:
    """Every integer among nested arguments, with where it is; flags are integers, too."""
    if isinstance(value, int):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from integers(inner, (*path, key))
    elif isinstance(value, (tuple, list)):
        for index, inner in enumerate(value):
            yield from integers(inner, (*path, index))


def replaced(value: Any, path: Path, new: Any) -> Any:
    if not path:
        return new
    first, *rest = path
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[first] = replaced(value[first], tuple(rest), new)
    return changed if isinstance(value, (dict, list)) else tuple(changed)


def never(value: int) -> list[Any]:
    """What can stand for no integer, or for no flag."""
    of_another_type = [float(value), np.float32(value), np.float64(value), str(value), None, complex(value), [value]]
    if isinstance(value, bool):
        return [*of_another_type, int(value), 2]
    return [*of_another_type, np.float32(3.7), torch.tensor(0.5), 2**64, -(2**63) - 1]


class Module:
    """``pycl._C`` whose every function, before it runs, is tried with each of its integers replaced."""

    def __init__(self, call: Callable[[str, Callable[..., Any], dict[Any, Any]], Any]) -> None:
        self.call = call

    def __getattr__(self, name: str) -> Any:
        function = getattr(C, name)

        def called(*args: Any, **kwargs: Any) -> Any:
            return self.call(name, function, dict(enumerate(args)) | kwargs)

        return called


def apply(function: Callable[..., Any], arguments: dict[Any, Any]) -> Any:
    by_name = {name: value for name, value in arguments.items() if isinstance(name, str)}
    return function(*(value for name, value in arguments.items() if isinstance(name, int)), **by_name)


def leaves(n: int = 9, d: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, n, d, generator=generator)
    return x.requires_grad_(), y.requires_grad_()


def learned() -> Tensor:
    return torch.tensor(2.0, requires_grad=True)


def statistics() -> Tensor:
    x, y = leaves()
    labels, scale = torch.arange(9) % 4, torch.linspace(-1, 1, 9, requires_grad=True)
    sets = {"denominator": Pairs.NEGATIVE, "positives": Pairs.POSITIVE}
    stats = pair_stats(Points(x, labels), Points(y, labels), scale, **sets, backend="cpu")
    return stats.lse.sum() + stats.pos_sum.sum()


def prefixes() -> Tensor:
    x, y = leaves(d=40)
    sets = {"denominator": Pairs.OTHERS, "positives": Pairs.POSITIVE}
    stats = prefix_stats(Points(x), Points(y), prefixes=(32, 40), offset=None, **sets, backend="cpu")
    return stats.lse.sum() + stats.pos_sum.sum()


def average() -> Tensor:
    x, y = leaves()
    return pair_average(Points(x), Points(y), leaves()[0], backend="cpu").sum()


def extremes() -> PairExtremes:
    sets = {"negatives": Pairs.NEGATIVE, "positives": Pairs.POSITIVE}
    return pair_extremes(Points(z := leaves()[0], torch.arange(len(z)) % 3), **sets, backend="cpu")


def transport() -> SinkhornProblem:
    return SinkhornProblem(leaves()[0].detach(), 0.05, 3, torch.zeros(9), torch.zeros(5), torch.float32)


def steps() -> Tensor:
    codes, _, _ = solve(cpu.sinkhorn_columns, cpu.sinkhorn_codes, transport())
    return codes.sum()


CALLS: dict[str, Callable[[], Tensor]] = {
    "cross_entropy": lambda: F.nt_xent(leaves(), temperature=learned(), backend="cpu"),
    "statistics": statistics,
    "prefixes": prefixes,
    "sum": lambda: F.siglip(*leaves(), 2.0, -1.0, reduction="none", backend="cpu").sum(),
    "sum_total": lambda: F.siglip(*leaves(), learned(), -1.0, backend="cpu"),
    "average": average,
    "extremes": lambda: extremes().negative.sum(),
    "sinkhorn": lambda: F.sinkhorn(leaves()[0], backend="cpu").sum(),
    "sinkhorn_steps": steps,
    "unit": lambda: unit(leaves()[0]).sum(),
}


def run(loss: str) -> Tensor:
    value = CALLS[loss]()
    if value.requires_grad:
        value.backward()
    return value.detach()


@pytest.mark.parametrize("loss", CALLS)
def test_only_integers_are_integers(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every argument of every function that a loss and its backward call."""
    tried = 0

    def call(name: str, function: Callable[..., Any], arguments: dict[Any, Any]) -> Any:
        nonlocal tried
        for path, value in integers(arguments):
            for other in never(value):
                tried += 1
                with pytest.raises(TypeError):
                    apply(function, replaced(arguments, path, other))
        return apply(function, arguments)

    right = run(loss)
    monkeypatch.setattr(cpu, "_C", Module(call))
    assert torch.equal(run(loss), right)
    assert tried > 100


def arguments_of(wanted: str, loss: str, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[Any, Any], list[Any]]:
    """What a loss hands to a function, and what must live as long as its addresses are used."""
    found: list[dict[Any, Any]] = []
    alive: list[Any] = []

    def call(name: str, function: Callable[..., Any], arguments: dict[Any, Any]) -> Any:
        if name == wanted:
            found.append(dict(zip(FIELDS, arguments.values(), strict=True)) if name == "Problem" else arguments)
        result = apply(function, arguments)
        alive.append((result, arguments))
        return result

    with monkeypatch.context() as patch:
        patch.setattr(cpu, "_C", Module(call))
        for name in ("empty_gradients", "_narrow"):
            plain = getattr(cpu, name)
            patch.setattr(cpu, name, lambda *a, _plain=plain: (alive.append(_plain(*a)), alive[-1])[1])
        for name in ("empty", "empty_like"):
            plain = getattr(torch, name)
            patch.setattr(torch, name, lambda *a, _plain=plain, **k: (alive.append(_plain(*a, **k)), alive[-1])[1])
        alive.append(run(loss))
    return found[0], alive


MATRIX = {
    "n": (1, (0, -1, 2**30 + 1, 2**62, -(2**63))),
    "d": (2, (0, -1, 2**30 + 1, 2**63 - 1)),
    "row_stride": (3, (-1, 2**62, -(2**63))),
    "col_stride": (4, (-1, 2**62)),
    "dtype": (5, (-1, 4, 2**31 - 1)),
    "address": (0, (0,)),
}
PROBLEM: list[tuple[Path, Any]] = [
    *(((side, at), value) for side in ("rows", "cols") for at, values in MATRIX.values() for value in values),
    *((("rows", 2), d) for d in (4, 6)),  # not that of the columns
    (("cols", 5), 1),
    *((("labels", at), 0) for at in range(4)),
    *((("n_views",), count) for count in (0, -1, 2, 2**40)),
    (("logit_scale",), 0),
    *(((name,), sets) for name in ("pairs", "positives") for sets in (32, 2**32 - 1, 2**32, -1)),
    *((("offset",), offset) for offset in (2**62 + 1, -(2**62) - 1, 2**63 - 1, -(2**63))),
    *((("threads",), count) for count in (0, -1, -(2**31))),
]


def refused(function: Callable[..., Any], arguments: dict[Any, Any], path: Path, value: Any) -> str:
    with pytest.raises(REFUSED) as caught:
        apply(function, replaced(arguments, path, value))
    return str(caught.value)


@pytest.mark.parametrize(("path", "value"), PROBLEM, ids=str)
def test_a_problem_that_cannot_be(path: Path, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, _alive = arguments_of("Problem", "statistics", monkeypatch)
    assert refused(C.Problem, arguments, path, value)


@pytest.mark.parametrize("name", ["rows", "cols", "labels"])
def test_tuples_of_another_length(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, _alive = arguments_of("Problem", "statistics", monkeypatch)
    for value in (arguments[name][:-1], (*arguments[name], 0), ()):
        refused(C.Problem, arguments, (name,), value)


def test_a_symmetric_problem_has_one_set_of_points(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, _alive = arguments_of("Problem", "statistics", monkeypatch)
    assert "one set of points" in refused(C.Problem, arguments, ("symmetric",), True)


FUNCTIONS = {  # by the loss that calls them: addresses that are a must, and sequences by their position
    "pair_stats": ("statistics", (1,), ()),
    "pair_stats_backward": ("statistics", (1,), (3, 4, 5)),
    "prefix_stats": ("prefixes", (2, 3, 4), (1,)),
    "prefix_stats_backward": ("prefixes", (2, 3, 4), (6, 7, 8)),
    "pair_cross_entropy_fused": ("cross_entropy", (4,), (5,)),
    "pair_sum": ("sum", (3,), ()),
    "pair_sum_backward": ("sum", (3,), (4,)),
    "pair_sum_fused": ("sum_total", (4,), (5,)),
    "pair_average": ("average", (2, 3), (1,)),
    "pair_average_backward": ("average", (3,), (1, 2, 5)),
    "pair_extremes": ("extremes", (1, 2), ()),
    "sinkhorn": ("sinkhorn", (4, 6, 7, 8), (0,)),
    "sinkhorn_columns": ("sinkhorn_steps", (4,), (0,)),
    "sinkhorn_codes": ("sinkhorn_steps", (3, 5, 6), (0,)),
    "unit": ("unit", (1,), (0,)),
    "unit_backward": ("unit", (2,), (0, 1)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_addresses_and_lengths_of_a_call(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, addresses, sequences = FUNCTIONS[name]
    arguments, _alive = arguments_of(name, loss, monkeypatch)
    for at in addresses:
        assert "must be an address" in refused(getattr(C, name), arguments, (at,), 0)
    for at in sequences:
        for value in (arguments[at][:-1], [*arguments[at], 0], ()):
            refused(getattr(C, name), arguments, (at,), value)
    refused(getattr(C, name), arguments, (0,), None)


def test_extremes_of_columns_have_both_addresses_or_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, _alive = arguments_of("pair_extremes", "extremes", monkeypatch)
    for at in (3, 4):
        assert "both or neither" in refused(C.pair_extremes, arguments, (at,), 64)


@pytest.mark.parametrize(
    "name",
    [
        *("pair_stats_backward", "pair_sum_backward", "pair_average_backward"),
        *("pair_sum_fused", "pair_cross_entropy_fused"),
    ],
)
def test_the_gradient_of_a_scale_comes_with_the_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, _, (*_, out) = FUNCTIONS[name]
    arguments, _alive = arguments_of(name, loss, monkeypatch)
    assert "logit_scale" in refused(getattr(C, name), arguments, (out, 0), 0)


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ((), "1 to 16"),
        (range(40 - 17, 40 + 1), "1 to 16"),
        ((32, 41), "all 40 features"),
        ((32,), "all 40 features"),
        ((16, 40), "multiples of 32"),
        ((64, 40), "ascend"),
        ((40, 40), "multiples of 32"),
        ((0, 40), "ascend"),
        ((-32, 40), "ascend"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["prefix_stats", "prefix_stats_backward"])
def test_prefixes_that_cannot_be(name: str, ends: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, _alive = arguments_of(name, "prefixes", monkeypatch)
    assert said in refused(getattr(C, name), arguments, (1,), tuple(ends))


def test_prefixes_are_of_points_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, _alive = arguments_of("Problem", "prefixes", monkeypatch)
    arguments, _more = arguments_of("prefix_stats", "prefixes", monkeypatch)
    for name, value in (("normalize", True), ("scale_per_row", True), ("row_bias", 64), ("col_bias", 64)):
        other = apply(C.Problem, replaced(problem, (name,), value))
        assert "as they are" in refused(C.prefix_stats, arguments, (0,), other)


def test_values_have_a_row_for_each_column(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, _alive = arguments_of("pair_average", "average", monkeypatch)
    for n in (8, 10):
        assert "a row for each column" in refused(C.pair_average, arguments, (1, 1), n)


def test_a_gradient_of_means_has_their_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, _alive = arguments_of("pair_average_backward", "average", monkeypatch)
    for n in (8, 10):
        assert "a row for each column" in refused(C.pair_average_backward, arguments, (1, 1), n)
        assert "a row for each row" in refused(C.pair_average_backward, arguments, (2, 1), n)
    for dv in (4, 6):
        assert "the width of the values" in refused(C.pair_average_backward, arguments, (2, 2), dv)


@pytest.mark.parametrize("name", ["sinkhorn", "sinkhorn_columns", "sinkhorn_codes", "unit", "unit_backward"])
def test_matrices_and_threads_that_cannot_be(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, _alive = arguments_of(name, FUNCTIONS[name][0], monkeypatch)
    for at, values in MATRIX.values():
        for value in values:
            refused(getattr(C, name), arguments, (0, at), value)
    refused(getattr(C, name), arguments, (max(arguments),), 0)  # threads


@pytest.mark.parametrize("name", ["sinkhorn", "sinkhorn_columns", "sinkhorn_codes"])
def test_scores_have_no_stride_of_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, _alive = arguments_of(name, FUNCTIONS[name][0], monkeypatch)
    assert "column stride" in refused(getattr(C, name), arguments, (0, 4), 2)


def test_a_gradient_of_unit_rows_has_their_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, _alive = arguments_of("unit_backward", "unit", monkeypatch)
    for at, other in ((1, 8), (1, 10), (2, 4), (2, 6)):
        assert "the shape of z" in refused(C.unit_backward, arguments, (1, at), other)


@pytest.mark.parametrize(("name", "at"), [("sinkhorn", 5), ("sinkhorn_codes", 4)])
def test_codes_have_the_dtype_of_the_scores_or_float32(name: str, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, _alive = arguments_of(name, FUNCTIONS[name][0], monkeypatch)
    for dtype in (1, 2, 3, 4, -1):
        refused(getattr(C, name), arguments, (at,), dtype)


@pytest.mark.parametrize("iterations", [0, -1, -(2**63)])
def test_a_solve_has_an_iteration(iterations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, _alive = arguments_of("sinkhorn", "sinkhorn", monkeypatch)
    assert "iterations must be at least 1" in refused(C.sinkhorn, arguments, (3,), iterations)


@pytest.mark.parametrize("address", [np.float32(3.7), 64.0, -64, 2**64, None])
def test_memory_for_products_is_at_an_address(address: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, _alive = arguments_of("Problem", "statistics", monkeypatch)
    with pytest.raises(TypeError):
        apply(C.Problem, arguments).residuals_at(address, 1 << 20)


@pytest.mark.parametrize("size", [-1, 2.5, 2**64, None])
def test_memory_for_products_has_a_size(size: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, _alive = arguments_of("Problem", "statistics", monkeypatch)
    problem = apply(C.Problem, arguments)
    with pytest.raises(TypeError):
        problem.residuals_at(64, size)
    with pytest.raises(TypeError):
        problem.residual_bytes(size)
    with pytest.raises(ValueError, match="room for a header"):
        problem.residuals_at(64, 8)
    with pytest.raises(ValueError, match="must be an address"):
        problem.residuals_at(0, 1 << 20)


def test_modifiers_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, _alive = arguments_of("Problem", "statistics", monkeypatch)
    problem = apply(C.Problem, arguments)
    codes, values = torch.arange(18).view(9, 2) % 3, torch.zeros(9, 30, dtype=torch.float32)
    shared = torch.zeros(200)
    given = [(0, 3, 3), (1, 1, 0), (2, 4, 0), (3, 5, 0), (4, 0, 0)]  # of every kind
    data = (codes.data_ptr(), codes.data_ptr(), values.data_ptr(), values.data_ptr(), shared.data_ptr())
    problem.modify(given, data)
    for path, value in integers([given, data]):
        for other in never(value):
            with pytest.raises(TypeError):
                problem.modify(*replaced([given, data], path, other))
    for at in range(5):
        assert "must be an address" in refused(problem.modify, {0: given, 1: data}, (1, at), 0)
    wrong = [(-1, 0, 0), (5, 0, 0), (0, 0, 3), (0, 3, -1), (0, 2**40, 2**40), (1, -1, 0), (1, 2**31, 0), (2, 0, 0)]
    for one in (*wrong, (2, 2**31, 0), (3, -1, 0), (3, 2**31, 0), (0, 3), (0, 3, 3, 3)):
        refused(problem.modify, {0: [one], 1: data}, (), {0: [one], 1: data})
    assert "less than 2" in refused(problem.modify, {0: [(0, 2, 3)], 1: data}, (), {0: [(0, 2, 3)], 1: data})
    assert "col_labels" in refused(problem.modify, {0: [(0, 3, 2)], 1: data}, (), {0: [(0, 3, 2)], 1: data})
    assert "at most 8, got 9" in refused(problem.modify, {0: given, 1: data}, (0,), [(3, 0, 0)] * 9)


def test_a_gradient_of_no_modifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, _alive = arguments_of("pair_sum_backward", "sum", monkeypatch)
    assert "without modifiers" in refused(C.pair_sum_backward, arguments, (4, 5), 64)


def test_labels_must_be_somewhere() -> None:
    labels = torch.arange(3)
    at = labels.data_ptr()
    assert not C.is_wide(at, 3, at, 3)
    for arguments in ((0, 3, at, 3), (at, 0, at, 3), (at, -1, at, 3), (at, 3, 0, 3), (at, 3, at, -1)):
        with pytest.raises(REFUSED):
            C.is_wide(*arguments)
