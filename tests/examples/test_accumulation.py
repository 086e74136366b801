# SPDX-License-Identifier: Apache-2.0
"""What docs/accumulation.md says about accumulated gradients; its libraries are in test_accumulation_loops.py."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.example_runner import imported, one_thread
from torch.testing import assert_close


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    with imported("accumulation") as module, one_thread():
        yield module


@pytest.fixture(scope="module")
def batches(example: ModuleType) -> Any:
    return example.cut(example.halves(example.ROWS), example.ROWS // example.PARTS)


@pytest.fixture(scope="module")
def trained(example: ModuleType, batches: Any) -> Any:
    return example.train(example.Towers(), batches)


def test_a_micro_batch_is_a_smaller_task(example: ModuleType, batches: Any) -> None:
    found = example.against_whole(example.accumulate, example.Towers(), batches)
    assert found.loss == pytest.approx(math.log(256) / math.log(1024), abs=0.05)
    assert found.cosine > 0.99


def test_its_gradient_is_another_one_once_something_is_learnt(example: ModuleType, batches: Any, trained: Any) -> None:
    found = example.against_whole(example.accumulate, trained, batches)
    assert found.loss < 0.8
    assert 0.6 < found.cosine < 0.95
    assert found.scale < 0.75


def test_cached_step_has_the_gradient_of_the_whole_batch(example: ModuleType, batches: Any, trained: Any) -> None:
    found = example.against_whole(example.cached, trained, batches)
    assert found.error < 2e-5
    assert_close((found.loss, found.norm, found.cosine, found.scale), (1.0,) * 4, atol=2e-5, rtol=0)


def test_norms(example: ModuleType, batches: Any) -> None:
    found = example.norms(batches)
    assert set(found) == {"LayerNorm", "GroupNorm", "BatchNorm", "BatchNorm, eval()"}
    assert found.pop("BatchNorm").error > 0.2
    assert all(of.error < 2e-5 for of in found.values())


def test_a_row_that_is_dealt_out_twice_costs_log_2(example: ModuleType, batches: Any, trained: Any) -> None:
    """Of eight rows four are two copies."""
    images, texts = batches[0]
    rows = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1])
    assert trained.contrast(**trained(images[rows], texts[rows])).item() > math.log(2) / 2


def test_what_is_not_installed_is_named(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("common.accumulation.libraries.find_spec", lambda name: None)
    monkeypatch.setattr(example, "TRAINED", 1)
    found, _ = example.main([])
    shown = capsys.readouterr().out
    assert "not installed: open_clip, open_clip_train" in shown
    assert found["Lightning"]["new"] == "not installed: pytorch_lightning"
    assert found["pycl.cached_step"]["new"].cosine == pytest.approx(1)
