# SPDX-License-Identifier: Apache-2.0
"""A backend is a module with the functions of the protocol and a row of ``BACKENDS``: nothing else names it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pycl import functional as F
from pycl.backends import protocol, registry
from pycl.backends.registry import BACKENDS, BackendUnavailable, Entry, installed
from pycl.testing.table import LOSSES, LossRow, make_views

NAME = "of_my_own"
CODE = '"""The reference under another name."""\nfrom pycl.backends.reference import *\n'


def forget() -> None:
    for cached in (registry.load, registry.why_not, registry._automatic):
        cached.cache_clear()


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The backend, behind all others that are the choice on a CPU."""
    (tmp_path / f"{NAME}.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(BACKENDS, NAME, Entry(NAME, ("cpu",)))
    forget()
    yield NAME
    forget()


def test_tests_run_it(registered: str) -> None:
    assert registered in installed("cpu")
    assert registered in installed("cpu", operator=registry.SINKHORN_STEPS)


@pytest.mark.parametrize("loss", [row for row in LOSSES.values() if row.engine], ids=lambda row: row.name)
def test_losses_run_on_it(loss: LossRow, registered: str) -> None:
    inputs = [x.requires_grad_() if x.is_floating_point() else x for x in loss.make(2, 7, 5)]
    leaves = [x for x in inputs if x.requires_grad]
    found, expected = (loss(inputs, loss.scalars, backend=name) for name in (registered, "reference"))
    assert torch.equal(found, expected)
    gradients = [torch.autograd.grad(value, leaves, materialize_grads=True) for value in (found, expected)]
    for mine, right in zip(*gradients, strict=True):
        assert torch.equal(mine, right)


def test_codes_come_from_it(registered: str) -> None:
    scores = make_views(1, 9, 4)[0]
    assert torch.equal(F.sinkhorn(scores, backend=registered), F.sinkhorn(scores, backend="reference"))


def test_a_name_without_a_row() -> None:
    with pytest.raises(ValueError, match="backend must be None or one of"):
        F.nt_xent(make_views(2, 3, 4), backend=NAME)


@pytest.mark.parametrize("name", BACKENDS)
def test_functions_have_the_arguments_of_the_protocol(name: str) -> None:
    try:
        backend = registry.load(name)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    found = 0
    for contract in (protocol.FusedPairBackend, protocol.SinkhornFeatureBackend):
        for operator, method in inspect.getmembers(contract, inspect.isfunction):
            if operator.startswith("_") or not hasattr(backend, operator):
                continue
            wanted = list(inspect.signature(method).parameters)[1:]
            function = getattr(backend, operator)
            assert len(inspect.signature(function).parameters) == len(wanted), operator
            found += 1
    assert found
