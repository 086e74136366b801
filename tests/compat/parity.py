# SPDX-License-Identifier: Apache-2.0
"""Drop-ins against the libraries they stand for: live where they are installed, against recorded numbers everywhere.

A test module has ``PEER``, the distribution's name, and ``CASES``. ``python tests/compat/record.py`` runs every case
with the library's own class and writes ``golden/<peer>.json``.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pycl.bench.workloads.baselines import declare_torchvision

GOLDEN = Path(__file__).parent / "golden"


def embeddings(n: int, d: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """[n, d] numbers between -1 and 1 that are the same with every version of torch."""
    return torch.sin(torch.arange(n * d, dtype=torch.float64) * (1.37 + 0.11 * seed) + seed).view(n, d).to(dtype)


@dataclass(frozen=True)
class Case:
    """One call: ``run(module, *inputs)`` builds the loss from the module under test and returns its value."""

    run: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]  # floating-point ones get gradients
    tolerance: float = 1e-5  # of the library's own precision, relative to the largest entry
    tags: frozenset[str] = field(default_factory=frozenset)


def measure(case: Case, module: Any) -> dict[str, Any]:
    """The loss, its shape and dtype, and the gradient of every input, as plain numbers."""
    inputs = [x.clone().requires_grad_() if x.is_floating_point() else x for x in case.inputs]
    loss = case.run(module, *inputs)
    (loss * torch.linspace(1, 2, loss.numel(), dtype=loss.dtype).view(loss.shape)).sum().backward()
    gradients = [None if x.grad is None else x.grad.double().tolist() for x in inputs if x.is_floating_point()]
    return {"shape": list(loss.shape), "loss": loss.detach().double().tolist(), "gradients": gradients}


def assert_same(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    assert found["shape"] == expected["shape"]
    _close(found["loss"], expected["loss"], tolerance)
    assert len(found["gradients"]) == len(expected["gradients"])
    for mine, theirs in zip(found["gradients"], expected["gradients"], strict=True):
        if theirs is None:
            assert mine is None or not torch.tensor(mine).any()  # no graph and a zero are one and the same to training
        else:
            _close(mine, theirs, tolerance)


def _close(found: Any, expected: Any, tolerance: float) -> None:
    expected = torch.tensor(expected, dtype=torch.float64)
    found = torch.zeros_like(expected) if found is None else torch.tensor(found, dtype=torch.float64)
    scale = max(1e-12, float(expected.abs().max()) if expected.numel() else 0.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)


def golden(peer: str) -> dict[str, Any]:
    """What ``record.py`` wrote: results by the name of the case."""
    return json.loads((GOLDEN / f"{peer}.json").read_text())["cases"]


def peer(module: str) -> ModuleType:
    """The library's module; the test is skipped where it is not installed."""
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        pytest.skip(f"{module} is not installed")
    declare_torchvision()
    return importlib.import_module(module)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operator makes."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(t.numel() for t in tree_leaves(found) if isinstance(t, Tensor))])
        return found
