# SPDX-License-Identifier: Apache-2.0
"""What docs/accumulation.md says of training libraries: one step of each, by its own code."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from helpers.example_runner import imported, one_thread
from parity import peer


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    with imported("accumulation") as module, one_thread():
        yield module


@pytest.fixture(scope="module")
def batches(example: ModuleType) -> Any:
    return example.cut(example.halves(64), 16)


@pytest.fixture(scope="module")
def towers(example: ModuleType) -> Any:
    return example.Towers()


def step(name: str, example: ModuleType, towers: Any, batches: Any) -> tuple[Any, Any]:
    """Of the library, against the whole batch and against plain accumulation."""
    of, modules = example.LIBRARIES[name]
    for module in modules:
        peer(module)
    found = of(example.deepcopy(towers), batches)
    return tuple(
        example.compare(found, other(example.deepcopy(towers), batches))
        for other in (example.whole, example.accumulate)
    )


@pytest.mark.parametrize("name", ["transformers' Trainer", "accelerate, accumulate", "Lightning"])
def test_a_loop_that_adds_up(name: str, example: ModuleType, towers: Any, batches: Any) -> None:
    against_whole, against_plain = step(name, example, towers, batches)
    assert against_plain.error < 1e-5
    assert against_plain.scale == pytest.approx(1, abs=1e-4)
    assert against_whole.error > 1e-3


def test_trainer_does_not_divide_where_it_counts_labels(example: ModuleType, towers: Any, batches: Any) -> None:
    _, against_plain = step("the same, labels in the batch", example, towers, batches)
    assert against_plain.norm == pytest.approx(len(batches), rel=1e-4)
    assert against_plain.cosine == pytest.approx(1, abs=1e-6)


def test_open_clip_is_exact_but_for_the_scale(example: ModuleType, towers: Any, batches: Any) -> None:
    against_whole, _ = step("open_clip, --accum-freq", example, towers, batches)
    assert against_whole.loss == pytest.approx(1, abs=1e-5)
    assert against_whole.error < 1e-5
    assert against_whole.scale == pytest.approx(len(batches), rel=1e-4)


def test_accelerate_fills_the_last_batches_from_the_start(example: ModuleType) -> None:
    peer("accelerate")
    assert example.shards(6, 4) == [[[0, 1, 2, 3]], [[4, 5, 0, 1]]]
    assert example.shards(10, 4) == [[[0, 1, 2, 3], [8, 9, 0, 1]], [[4, 5, 6, 7], [2, 3, 4, 5]]]
