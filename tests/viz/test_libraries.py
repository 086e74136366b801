# SPDX-License-Identifier: Apache-2.0
"""Callbacks whose library is missing say how to get it, and what they share with each other."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

import pytest
import torch
from torch import nn

import pycl
from pycl.viz.recording import Recorder, Speed, temperature_of


def test_without_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pycl.viz.lightning", raising=False)
    found = importlib.util.find_spec
    libraries = ("lightning", "pytorch_lightning")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *of: None if name in libraries else found(name, *of))
    with pytest.raises(ImportError, match=r"pycl\.viz\.lightning needs Lightning: pip install lightning"):
        importlib.import_module("pycl.viz.lightning")


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pycl.viz.transformers", raising=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pycl\.viz\.transformers needs transformers: pip install transformers"):
        importlib.import_module("pycl.viz.transformers")


def test_without_matplotlib_no_run_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    Recorder(None, "run.jsonl", None)
    with pytest.raises(ImportError, match="needs matplotlib: pip install"):
        Recorder(None, "run.jsonl", "run.png")


class Holder(nn.Module):
    def __init__(self, *losses: nn.Module, **own: Any) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)
        self.__dict__.update(own)


FIXED, LEARNT = pycl.NTXentLoss(0.5), pycl.NTXentLoss(0.25, learnable_temperature=True)
OWNED = pycl.InfoNCELoss(temperature=nn.Parameter(torch.tensor(0.125)))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (FIXED, 0.5),
        (LEARNT, 0.25),
        (Holder(nn.Linear(1, 1), FIXED), 0.5),
        (Holder(FIXED, LEARNT, OWNED), 0.25),
        (Holder(FIXED, OWNED, LEARNT), 0.125),
        (Holder(LEARNT, temperature=0.75), 0.75),
        (Holder(pycl.CLIPLoss()), None),
        (Holder(), None),
        (object(), None),
    ],
)
def test_whose_temperature_it_is(model: Any, expected: float | None) -> None:
    found = temperature_of(model)
    assert expected is None if found is None else float(torch.as_tensor(found).detach()) == pytest.approx(expected)


def test_speed_leaves_out_what_lies_between(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    speed = Speed()
    for end, count in ((2.0, 10), (4.0, 10)):
        now = end
        speed.note(count)
    now = 100.0  # a validation
    speed.go_on()
    now = 101.0
    speed.note(5)
    assert speed.rate() == 5.0
    now = 102.0
    speed.note(7)
    assert speed.rate() == 7.0
