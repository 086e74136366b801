# SPDX-License-Identifier: Apache-2.0
"""Modules say what their functions say, keep their settings, and can learn the temperature."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pycl
import pycl.functional as F
from pycl.modules import losses
from pycl.testing.table import LOSSES
from pycl.tools import module_stubs

VIEWS = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 0, 2, 1, 0])
TABLE: list[tuple[Any, Any, tuple[Any, ...]]] = [
    (
        getattr(pycl, row.module),
        row.function,
        (*row.inputs_of(VIEWS, LABELS), *(row.scalars.values() if "logit_scale" in row.scalars else ())),
    )
    for row in LOSSES.values()
    if row.module
]
rows = pytest.mark.parametrize(("module", "function", "inputs"), TABLE, ids=[row[0].__name__ for row in TABLE])


@rows
def test_module_is_its_function(module: Any, function: Any, inputs: tuple[Any, ...]) -> None:
    assert torch.equal(module()(*inputs), function(*inputs))
    assert torch.equal(module(reduction="none")(*inputs), function(*inputs, reduction="none"))


@rows
def test_defaults_are_those_of_the_function(module: Any, function: Any, inputs: tuple[Any, ...]) -> None:
    given = inspect.signature(module).parameters
    tensors = {"views", "query", "key", "negatives", "image", "text", "logit_scale", "logit_bias", "labels", "ids"}
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in tensors:
            assert given[name].default == parameter.default, name


@rows
def test_copies_and_repr(module: Any, function: Any, inputs: tuple[Any, ...]) -> None:
    loss = module(reduction="sum")
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(twin(*inputs), loss(*inputs))
    assert "reduction=sum" in repr(loss)
    assert not loss.state_dict()


@pytest.mark.parametrize(("module", "function", "inputs"), [row for row in TABLE if "temperature" in str(
    inspect.signature(row[0]))], ids=lambda x: getattr(x, "__name__", ""))  # fmt: skip
def test_learnable_temperature(module: Any, function: Any, inputs: tuple[Any, ...]) -> None:
    loss = module(temperature=0.3, learnable_temperature=True)
    assert isinstance(loss.temperature, torch.Tensor)
    assert loss.temperature.item() == pytest.approx(0.3)
    assert list(loss.state_dict()) == ["log_temperature"]
    assert "temperature=0.3 (learnable)" in repr(loss)
    loss(*inputs).backward()
    temperature = torch.tensor(0.3, requires_grad=True)
    function(*inputs, temperature=temperature).backward()
    gradient = loss.log_temperature.grad.item()  # type: ignore[union-attr]  # a parameter only where it is learnt
    assert gradient == pytest.approx(temperature.grad.item() * 0.3, rel=1e-5)
    assert module(0.3).temperature == 0.3


def test_learnable_temperature_stays_positive() -> None:
    loss = pycl.NTXentLoss(learnable_temperature=True)
    optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        loss(VIEWS).backward()
        optimizer.step()
    assert 0 < loss.temperature.item() < math.inf


def test_views_one_by_one() -> None:
    wanted = F.nt_xent(VIEWS)
    for call in ((VIEWS,), (list(VIEWS),), (VIEWS[0], VIEWS[1])):
        assert torch.equal(pycl.NTXentLoss()(*call), wanted)
    wanted = F.sup_con(VIEWS, LABELS)
    for call in ((VIEWS, LABELS), ((VIEWS[0], VIEWS[1]), LABELS), (VIEWS[0], VIEWS[1], LABELS)):
        assert torch.equal(pycl.SupConLoss()(*call), wanted)
    assert torch.equal(pycl.SupConLoss()(VIEWS[0], VIEWS[1], labels=LABELS), wanted)


# ---- arguments are attributes

THREE = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
SET: list[tuple[Any, str, Any, tuple[Any, ...]]] = [
    (pycl.NTXentLoss, "temperature", 0.1, (VIEWS,)),
    (pycl.NTXentLoss, "reduction", "none", (VIEWS,)),
    (pycl.NTXentLoss, "normalize", False, (VIEWS,)),
    (pycl.NTXentLoss, "backend", "reference", (VIEWS,)),
    (pycl.DCLWLoss, "sigma", np.float32(0.25), (VIEWS,)),
    (pycl.InfoNCELoss, "symmetric", True, (VIEWS[0], VIEWS[1])),
    (pycl.MVInfoNCELoss, "denominator", "cross_view", (THREE,)),
    (pycl.PolyViewLoss, "mean", "arithmetic", (THREE,)),
    (pycl.SupConLoss, "form", "in", (VIEWS, LABELS)),
    (pycl.CLIPLoss, "reduction", "sum", (VIEWS[0], VIEWS[1], 10.0)),
    (pycl.SwAVLoss, "epsilon", 0.01, (VIEWS, VIEWS[0])),
    (pycl.SwAVLoss, "iterations", np.int64(1), (VIEWS, VIEWS[0])),
    (pycl.SwAVLoss, "code_crops", (1,), (VIEWS, VIEWS[0])),
]


@pytest.mark.parametrize(("module", "name", "value", "inputs"), SET, ids=[f"{m.__name__}-{n}" for m, n, *_ in SET])
def test_an_attribute_that_is_set_counts(module: Any, name: str, value: Any, inputs: tuple[Any, ...]) -> None:
    loss, wanted = module(), module(**{name: value})
    before = loss(*inputs)
    setattr(loss, name, value)
    assert torch.equal(loss(*inputs), wanted(*inputs))
    assert getattr(loss, name) == value
    if name != "backend":
        assert not torch.equal(loss(*inputs), before)


@rows
def test_every_argument_is_an_attribute(module: Any, function: Any, inputs: tuple[Any, ...]) -> None:
    loss = module()
    for name, parameter in inspect.signature(module).parameters.items():
        if name != "learnable_temperature":
            assert getattr(loss, name) == parameter.default
            setattr(loss, name, parameter.default)
    assert torch.equal(loss(*inputs), function(*inputs))


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("temperature", -1.0, ValueError),
        ("reduction", "avg", ValueError),
        ("backend", "gpu", ValueError),
        ("group", 3, TypeError),
        ("learnable_temperature", True, AttributeError),
    ],
)
def test_an_attribute_that_cannot_count_is_refused(name: str, value: Any, error: type[Exception]) -> None:
    loss = pycl.NTXentLoss()
    with pytest.raises(error, match=name):
        setattr(loss, name, value)
    assert torch.equal(loss(VIEWS), F.nt_xent(VIEWS))
    with pytest.raises(AttributeError, match="queue_size of SwAVLoss is fixed"):
        pycl.SwAVLoss().queue_size = 3


def test_a_learnable_temperature_can_be_set_and_reset() -> None:
    loss = pycl.NTXentLoss(0.3, learnable_temperature=True)
    parameter = loss.log_temperature
    loss.temperature = 0.1
    assert loss.log_temperature is parameter
    assert loss.temperature.item() == pytest.approx(0.1)
    torch.nn.init.constant_(parameter, 7.0)
    loss.reset_parameters()
    assert loss.temperature.item() == pytest.approx(0.1)


def test_a_parameter_as_temperature_is_one_of_the_loss() -> None:
    temperature = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    for loss in (pycl.NTXentLoss(temperature), pycl.NTXentLoss()):
        loss.temperature = temperature
        assert list(loss.state_dict()) == ["temperature"]
        assert list(loss.parameters()) == [temperature]
        temperature.grad = None
        loss(VIEWS).backward()
        assert temperature.grad is not None
        assert torch.equal(loss(VIEWS), F.nt_xent(VIEWS, temperature=temperature))
        assert loss.float().temperature.dtype == torch.float32
        loss.double()


def test_built_on_meta() -> None:
    with torch.device("meta"):
        modules = pycl.NTXentLoss(0.3, learnable_temperature=True), pycl.SwAVLoss(queue_size=4, dim=3)
        prototypes = pycl.Prototypes(3, 5)
    for module in (*modules, prototypes):
        module.to_empty(device="cpu")
        module.reset_parameters()
    assert modules[0].temperature.item() == pytest.approx(0.3)
    assert modules[1].queue_pointer == 0
    assert not modules[1].queue.any()
    torch.testing.assert_close(prototypes.weight.norm(dim=1), torch.ones(5))


def test_states_of_earlier_versions_load() -> None:
    loss = torch.nn.Sequential(pycl.NTXentLoss(0.3, learnable_temperature=True))
    assert loss[0].log_temperature.shape == (1,)
    loss.load_state_dict({"0.log_temperature": torch.tensor(math.log(0.05))})
    assert loss[0].temperature.item() == pytest.approx(0.05)


def test_a_temperature_in_bfloat16_is_exponentiated_in_float32() -> None:
    loss = pycl.NTXentLoss(0.07, learnable_temperature=True).bfloat16()
    assert loss.temperature.dtype == torch.float32
    assert loss.temperature.item() == pytest.approx(0.07, rel=2**-7)


NUMBERS = [np.float32(0.5), np.float64(0.5), np.array(0.5), np.array(0.5, dtype=np.float32), torch.tensor(0.5)]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda x: f"{type(x).__name__}-{x.dtype}")
def test_numbers_of_numpy(number: Any) -> None:
    assert torch.allclose(F.nt_xent(VIEWS, temperature=number), F.nt_xent(VIEWS, temperature=0.5))
    assert torch.allclose(pycl.NTXentLoss(number)(VIEWS), F.nt_xent(VIEWS, temperature=0.5))
    assert torch.allclose(F.clip(VIEWS[0], VIEWS[1], number), F.clip(VIEWS[0], VIEWS[1], 0.5))
    assert torch.allclose(F.sinkhorn(VIEWS[0], epsilon=number), F.sinkhorn(VIEWS[0], epsilon=0.5))


@pytest.mark.parametrize("number", [1, np.int64(1), np.uint8(1), np.array(1), torch.tensor(1)], ids=str)
def test_integers_of_numpy(number: Any) -> None:
    assert torch.allclose(F.nt_xent(VIEWS, temperature=number), F.nt_xent(VIEWS, temperature=1.0))
    if not isinstance(number, torch.Tensor):
        assert torch.equal(F.sinkhorn(VIEWS[0], iterations=number), F.sinkhorn(VIEWS[0], iterations=1))
        assert torch.equal(F.similarity_topk(*VIEWS, k=number)[1], F.similarity_topk(*VIEWS, k=1)[1])


@pytest.mark.parametrize("number", [True, np.bool_(True), torch.tensor(True), "1", None, 1j, np.ones(2)], ids=str)
def test_what_is_no_number(number: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="temperature"):
        F.nt_xent(VIEWS, temperature=number)
    with pytest.raises(TypeError, match="iterations"):
        F.sinkhorn(VIEWS[0], iterations=number)


def test_a_parameter_as_another_argument_counts() -> None:
    """Only a temperature has a gradient; a sigma that is one keeps its value."""
    loss, sigma = pycl.DCLWLoss(), torch.nn.Parameter(torch.tensor(0.25))
    loss.sigma = sigma
    assert torch.equal(loss(VIEWS), F.dclw(VIEWS, sigma=0.25))
    assert torch.equal(pycl.DCLWLoss(sigma=sigma)(VIEWS), loss(VIEWS))


def test_the_stub_is_that_of_the_functions() -> None:
    path = Path(losses.__file__).with_suffix(".pyi")
    assert path.read_text(encoding="utf-8") == module_stubs.stub(), "run `make stubs`"
