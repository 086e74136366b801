# SPDX-License-Identifier: Apache-2.0
"""pycl.compat.info_nce against info-nce-pytorch: recorded numbers, the live package, its errors."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from parity import Case, assert_same, embeddings, golden, measure, peer
from torch import Tensor

from pycl.compat import info_nce as ours

PEER, MODULE = "info-nce-pytorch", "info_nce"


def loss_of(*args: Any, **options: Any) -> Callable[..., Tensor]:
    return lambda module, *inputs: module.InfoNCE(*args, **options)(*inputs)


def inputs(n: int, d: int, *negatives: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Query, keys and, where there is a shape [M] or [N, M] for them, negatives."""
    found = (embeddings(n, d, 1, dtype), embeddings(n, d, 2, dtype))
    if not negatives:
        return found
    count = negatives[0] if len(negatives) == 1 else negatives[0] * negatives[1]
    return (*found, embeddings(count, d, 3, dtype).view(*negatives, d))


CASES: dict[str, Case] = {
    "defaults": Case(loss_of(), inputs(7, 5)),
    "one sample": Case(loss_of(), inputs(1, 5)),
    "sum": Case(loss_of(0.3, "sum"), inputs(7, 5)),
    "none": Case(loss_of(reduction="none"), inputs(7, 5)),
    "float32": Case(loss_of(0.07), inputs(12, 8, dtype=torch.float32)),
    "bfloat16": Case(loss_of(0.5), inputs(9, 8, dtype=torch.bfloat16), 4e-2),
    "unpaired": Case(loss_of(), inputs(7, 5, 11)),
    "unpaired, one negative": Case(loss_of(0.2, "none", "unpaired"), inputs(7, 5, 1)),
    "unpaired, no negatives": Case(loss_of(), inputs(3, 4, 0)),
    "unpaired float32": Case(loss_of(0.2, "sum"), inputs(7, 5, 6, dtype=torch.float32)),
    "paired": Case(loss_of(negative_mode="paired"), inputs(6, 5, 6, 3)),
    "paired, one negative": Case(loss_of(0.2, "none", "paired"), inputs(6, 5, 6, 1)),
    "paired, no negatives": Case(loss_of(0.2, "sum", "paired"), inputs(3, 4, 3, 0)),
    "paired sum": Case(loss_of(0.2, "sum", "paired"), inputs(6, 5, 6, 3)),
    "paired bfloat16": Case(loss_of(0.5, negative_mode="paired"), inputs(6, 5, 6, 3, dtype=torch.bfloat16), 4e-2),
    "paired without negatives": Case(loss_of(negative_mode="paired"), inputs(6, 5)),
    "function": Case(lambda m, *x: m.info_nce(*x, 0.2, "none"), inputs(6, 5, 4)),
    "function, paired": Case(lambda m, *x: m.info_nce(*x, negative_mode="paired"), inputs(6, 5, 6, 2)),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    assert_same(measure(CASES[name], ours), golden(PEER)[name], CASES[name].tolerance)


@pytest.mark.parametrize("name", CASES)
def test_live(name: str) -> None:
    assert_same(measure(CASES[name], ours), measure(CASES[name], peer(MODULE)), CASES[name].tolerance)


def test_stands_for_the_class() -> None:
    library = peer(MODULE)
    mine, theirs = ours.InfoNCE(0.2, "sum", "paired"), library.InfoNCE(0.2, "sum", "paired")
    assert isinstance(mine, library.InfoNCE)
    assert {k: v for k, v in vars(mine).items() if k[0] != "_"} == {
        k: v for k, v in vars(theirs).items() if k[0] != "_"
    }
    assert mine.state_dict() == theirs.state_dict() == {}
    for f in ("info_nce", "InfoNCE"):
        found, expected = (inspect.signature(getattr(m, f)).parameters.values() for m in (ours, library))
        assert [(p.name, p.default, p.kind) for p in found] == [(p.name, p.default, p.kind) for p in expected]


WRONG: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "a vector": ((torch.ones(4), torch.ones(4)), ()),
    "keys of three dimensions": ((torch.ones(4, 2), torch.ones(4, 2, 2)), ()),
    "fewer keys": ((torch.ones(4, 2), torch.ones(3, 2)), ()),
    "narrower keys": ((torch.ones(4, 2), torch.ones(4, 1)), ()),
    "paired negatives, unpaired": ((torch.ones(4, 2), torch.ones(4, 2), torch.ones(4, 3, 2)), ()),
    "unpaired negatives, paired": ((torch.ones(4, 2), torch.ones(4, 2), torch.ones(3, 2)), (0.1, "mean", "paired")),
    "paired negatives of other queries": (inputs(4, 2) + inputs(3, 2, 3, 2)[2:], (0.1, "mean", "paired")),
    "narrower negatives": ((torch.ones(4, 2), torch.ones(4, 2), torch.ones(3, 1)), ()),
    "narrower paired negatives": (inputs(4, 2) + inputs(4, 1, 4, 2)[2:], (0.1, "mean", "paired")),
    "an unknown reduction": ((torch.ones(4, 2), torch.ones(4, 2)), (0.1, "median")),
    "an unknown reduction, paired": (inputs(4, 2, 4, 2), (0.1, "median", "paired")),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors(name: str) -> None:
    tensors, options = WRONG[name]
    with pytest.raises(ValueError, match=r"."):
        ours.InfoNCE(*options)(*tensors)
    with pytest.raises(ValueError, match=r"."):
        peer(MODULE).InfoNCE(*options)(*tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("negatives", [(), (3,), (6, 3)])
def test_dtypes_are_those_of_the_package(dtype: torch.dtype, negatives: tuple[int, ...]) -> None:
    mode = "paired" if len(negatives) == 2 else "unpaired"
    mine, theirs = (m.InfoNCE(negative_mode=mode)(*inputs(6, 4, *negatives, dtype=dtype)) for m in (ours, peer(MODULE)))
    assert mine.dtype == theirs.dtype


@pytest.mark.parametrize("negatives", [(), (3,), (6, 3)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_extremes_are_finite(negatives: tuple[int, ...], dtype: torch.dtype) -> None:
    mode = "paired" if len(negatives) == 2 else "unpaired"
    for factor in (0.0, 1e4):
        x = [(factor * t).requires_grad_() for t in inputs(6, 4, *negatives, dtype=dtype)]
        loss = ours.InfoNCE(0.01, negative_mode=mode)(*x)
        loss.backward()
        assert loss.isfinite()
        assert all(t.grad is not None and t.grad.isfinite().all() for t in x)


def test_a_learnt_temperature_gets_its_gradient() -> None:
    for negatives in ((), (3,), (6, 3)):
        mode = "paired" if len(negatives) == 2 else "unpaired"
        found = []
        for module in (ours, peer(MODULE)):
            temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
            module.InfoNCE(temperature, negative_mode=mode)(*inputs(6, 4, *negatives)).backward()
            found.append(temperature.grad)
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("negatives", [(), (512,)])
def test_no_matrix_of_all_pairs(negatives: tuple[int, ...]) -> None:
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        ours.InfoNCE()(*(x.requires_grad_() for x in inputs(512, 4, *negatives, dtype=torch.float32)))
    assert max(sizes) < 512 * 512 / 8
