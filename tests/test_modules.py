# SPDX-License-Identifier: Apache-2.0
"""Modules say what their functions say, keep their settings, and can learn the temperature."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from typing import Any

import pytest
import torch

import pycl
import pycl.functional as F

VIEWS = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 0, 2, 1, 0])
TABLE: list[tuple[Any, Any, tuple[Any, ...]]] = [
    (pycl.NTXentLoss, F.nt_xent, (VIEWS,)),
    (pycl.InfoNCELoss, F.info_nce, (VIEWS[0], VIEWS[1])),
    (pycl.CLIPLoss, F.clip, (VIEWS[0], VIEWS[1], 10.0)),
    (pycl.SigLIPLoss, F.siglip, (VIEWS[0], VIEWS[1], 10.0, -10.0)),
    (pycl.DCLLoss, F.dcl, (VIEWS,)),
    (pycl.DCLWLoss, F.dclw, (VIEWS,)),
    (pycl.DHELLoss, F.dhel, (VIEWS,)),
    (pycl.MVDHELLoss, F.mv_dhel, (VIEWS,)),
    (pycl.MVInfoNCELoss, F.mv_info_nce, (VIEWS,)),
    (pycl.PolyViewLoss, F.poly_view, (VIEWS,)),
    (pycl.SupConLoss, F.sup_con, (VIEWS, LABELS)),
]
rows = pytest.mark.parametrize(("module", "function", "inputs"), TABLE, ids=[row[0].__name__ for row in TABLE])


@rows
def test_module_is_its_function(module: Any, function: Any, inputs: tuple[Any, ...]) -> None:
    assert torch.equal(module()(*inputs), function(*inputs))
    assert torch.equal(module(reduction="none")(*inputs), function(*inputs, reduction="none"))


@rows
def test_defaults_are_those_of_the_function(module: Any, function: Any, inputs: tuple[Any, ...]) -> None:
    given = inspect.signature(module).parameters
    tensors = {"views", "query", "key", "negatives", "image", "text", "logit_scale", "logit_bias", "labels"}
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
