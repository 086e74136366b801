# SPDX-License-Identifier: Apache-2.0
"""Values and gradients of every objective against its dense float64 formula, its memory, and its edges."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from helpers.objective_cases import cast, changed, leaves_of, values_and_gradients
from helpers.oracle import FLOOR, assert_as_accurate
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pycl import objectives
from pycl.testing.objectives import OBJECTIVES, Objective

ROWS = pytest.mark.parametrize("row", OBJECTIVES.values(), ids=OBJECTIVES)
DTYPES = pytest.mark.parametrize("dtype", FLOOR, ids=lambda t: str(t).removeprefix("torch."))
SIZES = [(1, 5), (2, 1), (37, 19), (40, 8)]  # n, d: one instance, one feature, no multiple of anything, a batch


def check(row: Objective, arguments: dict[str, Any], dtype: torch.dtype, backend: str | None, **scalars: float) -> None:
    """Values, and gradients of a random combination of them, within the budget of ``helpers.oracle``."""
    given = {**row.scalars, **scalars}
    arguments = cast(arguments, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    exact = cast(arguments, torch.float64)
    numbers = {name: torch.tensor(value, dtype=wide).double() for name, value in given.items()}
    cotangents = [torch.randn(x.shape, dtype=torch.float64) for x in row.truth(exact, numbers)]

    def ours(x: dict[str, Any], s: Any) -> tuple[Tensor, ...]:
        return row(x, s, backend=backend)

    truth, d_truth = values_and_gradients(row.truth, exact, numbers, cotangents)
    narrow = {name: value.to(dtype) for name, value in numbers.items()}
    plain, d_plain = values_and_gradients(row.truth, arguments, narrow, cotangents)
    got, d_got = values_and_gradients(ours, arguments, {k: v.to(wide) for k, v in numbers.items()}, cotangents)
    steepness = max(1.0, row.steepness, *(1 / v for k, v in scalars.items() if k == "temperature"))
    for mine, eager, true in zip(got, plain, truth, strict=True):
        assert mine.dtype == wide
        assert_as_accurate(mine, eager, true, dtype, magnitude=steepness)
    conditioning = steepness * max(1.0, steepness / 5)  # as in tests/losses/test_losses.py
    weight = max([1.0, *(c.norm().item() for c in cotangents)])
    for name, leaf in {**leaves_of(exact), **numbers}.items():
        zero, mine = torch.zeros_like(leaf), d_got[name]
        true, eager = (g[name] if g[name] is not None else zero for g in (d_truth, d_plain))
        if mine is None:
            assert not true.any(), f"{name} has no gradient"
            continue
        assert name in numbers or mine.dtype == leaves_of(arguments)[name].dtype
        shortest = leaf.norm(dim=-1).min().item() if row.cosine and leaf.dim() > 1 else 1.0
        magnitude = conditioning * (weight / shortest if name not in numbers else weight * steepness)
        assert_as_accurate(mine, eager, true, dtype, magnitude=magnitude)


@ROWS
@pytest.mark.parametrize("size", SIZES, ids=str)
@DTYPES
def test_values_and_gradients(row: Objective, dtype: torch.dtype, size: tuple[int, int], backend: str) -> None:
    if not row.backend and backend != "reference":
        pytest.skip("takes no backend: once is enough")
    check(row, row.make(*size), dtype, backend)


@ROWS
def test_constants_get_no_gradient(row: Objective) -> None:
    assert row.constants <= set(inspect.signature(row.function).parameters)
    scalars = {name: torch.tensor(value) for name, value in row.scalars.items()}
    _, gradients = values_and_gradients(row, cast(row.make(9, 4), torch.float32), scalars)
    constant = {name for name in gradients if name.partition("[")[0] in row.constants}
    assert {name for name, gradient in gradients.items() if gradient is not None} & constant == set()


def with_zero_row(x: Tensor) -> Tensor:
    return x.index_fill(-2, torch.tensor([1]), 0.0) if x.dim() > 1 else x


EXTREMES = {
    "zero_row": with_zero_row,
    "identical": lambda x: x[..., :1, :].expand_as(x).contiguous() if x.dim() > 1 else x,
    "huge": lambda x: x * 2e4 / x.abs().max() if x.dim() > 1 else x,  # squares leave float16
    "tiny": lambda x: x * 3e-3 / x.abs().max() if x.dim() > 1 else x,  # squares vanish in float16
}


@pytest.mark.parametrize("row", [row for row in OBJECTIVES.values() if row.cosine], ids=lambda row: row.name)
@DTYPES
@pytest.mark.parametrize("extreme", EXTREMES)
def test_extremes_are_finite(row: Objective, dtype: torch.dtype, extreme: str) -> None:
    arguments = cast(row.make(12, 16), torch.float64)
    arguments = {
        name: x if isinstance(x, nn.Module) else changed(x, EXTREMES[extreme]) for name, x in arguments.items()
    }
    scalars = {name: torch.tensor(value) for name, value in row.scalars.items()}
    if "temperature" in scalars:
        scalars["temperature"] = torch.tensor(0.01)
    found, gradients = values_and_gradients(row, cast(arguments, dtype), scalars)
    assert all(x.isfinite().all() for x in found)
    for name, gradient in gradients.items():
        assert gradient is None or gradient.isfinite().all(), name


@ROWS
def test_a_plain_temperature_and_a_tensor_agree(row: Objective) -> None:
    arguments = row.make(9, 4)
    numbers = {name: torch.tensor(value, dtype=torch.float64) for name, value in row.scalars.items()}
    for mine, wanted in zip(row(arguments, dict(row.scalars)), row(arguments, numbers), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-12, atol=1e-12)


@ROWS
def test_not_a_number_in_is_not_a_number_out(row: Objective) -> None:
    arguments = cast(row.make(6, 4), torch.float32)
    next(iter(leaves_of(arguments).values())).view(-1)[0] = torch.nan
    assert any(not x.isfinite().all() for x in row(arguments, row.scalars))


class Largest(TorchDispatchMode):
    """Counts the elements of the largest tensor that any operator returns."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for x in tree_leaves(found):
            if not isinstance(x, Tensor):
                continue
            if x.is_sparse:
                self.elements = max(self.elements, x._nnz())
            elif x.untyped_storage().nbytes():  # an expanded view stores little
                self.elements = max(self.elements, min(x.numel(), x.untyped_storage().nbytes() // x.element_size()))
        return found


@ROWS
def test_no_operator_returns_a_matrix_of_all_pairs(row: Objective) -> None:
    n, d = 2048, 4
    arguments = cast(row.make(n, d), torch.float32)
    with Largest() as largest:
        values_and_gradients(row, arguments, {name: torch.tensor(value) for name, value in row.scalars.items()})
    assert largest.elements < n * n // 8


@pytest.mark.parametrize("row", [row for row in OBJECTIVES.values() if row.backend], ids=lambda row: row.name)
def test_an_unknown_backend_is_refused(row: Objective) -> None:
    with pytest.raises(ValueError, match=r"backend.*'magma'"):
        row(row.make(6, 4), row.scalars, backend="magma")


@pytest.mark.parametrize(
    "row", [row for row in OBJECTIVES.values() if "temperature" in row.scalars], ids=lambda row: row.name
)
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_not_positive_is_refused(row: Objective, temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        row(row.make(6, 4), {**row.scalars, "temperature": temperature})


def test_every_function_has_a_row_and_one_with_its_paper() -> None:
    functions = {name for name in objectives.__all__ if inspect.isfunction(getattr(objectives, name))}
    assert {row.function.__name__ for row in OBJECTIVES.values()} == functions
    assert sorted(row.function.__name__ for row in OBJECTIVES.values() if row.paper) == sorted(functions)


@ROWS
def test_a_function_takes_what_its_row_says(row: Objective) -> None:
    taken = inspect.signature(row.function).parameters
    assert {*row.scalars, *row.options, *row.batch} <= set(taken)
    assert ("group" in taken, "backend" in taken) == (bool(row.batch), row.backend)
