# SPDX-License-Identifier: Apache-2.0
"""sentence-transformers' losses on two processes with batches of different sizes, which the library does not take.

Its own code says what is right: in one process, with a collective that knows all rows and a rank that says where its
own begin.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.spawn import on_ranks
from parity import peer
from sentence_cases import ALL, HARDNESS, columns, guided, guided_columns, ranking
from torch import Tensor

MODULE = "sentence_transformers.sentence_transformer.losses"
ROWS = (slice(0, 5), slice(5, 8))
GATHER = {"gather_across_devices": True, "scale": 5.0}
GUIDED = {"gather_across_devices": True, "temperature": 0.1}
BOTH = (ALL[0], ALL[2])

CASES: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "pairs": (ranking(**GATHER), columns(8, 4, 2)),
    "three documents": (ranking(**GATHER), columns(8, 4, 4)),
    "all": (ranking(**GATHER, directions=ALL), columns(8, 4, 3)),
    "joint": (ranking(**GATHER, directions=BOTH), columns(8, 4, 2)),
    "each": (ranking(**GATHER, directions=BOTH, partition_mode="per_direction"), columns(8, 4, 3)),
    "symmetric": (ranking(gather_across_devices=True, symmetric=True), columns(8, 4, 2)),
    "cached": (ranking(**GATHER, cached=2, directions=ALL), columns(8, 4, 3)),
    "cached symmetric": (ranking(gather_across_devices=True, symmetric=True, cached=2), columns(8, 4, 2)),
    **{
        mode: (ranking(**GATHER, hardness_mode=mode, hardness_strength=2.0, directions=ALL), columns(8, 4, 3))
        for mode in HARDNESS
    },
    "gist": (guided(**GUIDED), guided_columns(8, 4, 2)),
    "gist triplets": (guided(**GUIDED), guided_columns(8, 4, 3)),
    "gist, no positives": (guided(**GUIDED, contrast_positives=False), guided_columns(8, 4, 3)),
    "cached gist": (guided(**GUIDED, cached=2), guided_columns(8, 4, 4)),
}


@pytest.fixture(scope="module")
def found() -> list[Any]:
    peer(MODULE)
    return on_ranks(2, rank_results, seconds=120)


def rank_results(rank: int, world: int) -> dict[str, list[Tensor]]:
    peer(MODULE)
    ours = importlib.import_module("pycl.compat.sentence_transformers")
    results = {}
    for case, (run, inputs) in CASES.items():
        x = [z[ROWS[rank]].clone().requires_grad_() for z in inputs]
        loss = run(ours, *x)
        loss.backward()
        results[case] = [loss.detach(), *(z.grad for z in x if z.grad is not None)]
    return results


class FirstRow(int):
    """What the library takes for its rank, and multiplies with the number of its rows."""

    def __mul__(self, _: int) -> int:
        return int(self)


def told(monkeypatch: pytest.MonkeyPatch, library: Any, all_rows: list[Tensor], rows: slice) -> None:
    """Let the library's code run as on a rank that has these rows."""

    def gather(own: Tensor) -> Tensor:
        return next(z for z in all_rows if z.shape[1:] == own.shape[1:] and torch.equal(z[rows], own))

    for name in library.__all__:
        module = sys.modules[getattr(library, name).__module__]
        if hasattr(module, "all_gather_with_grad"):
            monkeypatch.setattr(module, "all_gather_with_grad", gather)
            monkeypatch.setattr(module, "get_rank", lambda: FirstRow(rows.start))


@pytest.mark.parametrize("case", CASES)
def test_uneven_batches(case: str, found: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    library = peer(MODULE)
    run, inputs = CASES[case]
    x = [z.clone().requires_grad_() for z in inputs]
    losses = []
    for rows in ROWS:
        told(monkeypatch, library, x, rows)
        losses.append(run(library, *(z[rows] for z in x)))
    torch.stack(losses).sum().backward()
    gradients = [z.grad for z in x if z.grad is not None]
    assert len(gradients) >= 2
    for rank, rows in enumerate(ROWS):
        torch.testing.assert_close(found[rank][case][0], losses[rank].detach(), rtol=1e-9, atol=0)
        for mine, theirs in zip(found[rank][case][1:], gradients, strict=True):
            torch.testing.assert_close(mine, theirs[rows], rtol=1e-9, atol=1e-12)


def mismatched(rank: int, world: int) -> str:
    peer(MODULE)
    ours = importlib.import_module("pycl.compat.sentence_transformers")
    run, inputs = guided(**GUIDED), guided_columns(6, 4, 2 + rank)
    with pytest.raises(ValueError, match="columns must be the same on all ranks") as raised:
        run(ours, *inputs)
    return str(raised.value)


def test_ranks_with_different_columns_say_so() -> None:
    peer(MODULE)
    assert (
        on_ranks(2, mismatched, seconds=60) == ["columns must be the same on all ranks of the group, got " + SAID] * 2
    )


SAID = "2 on rank 0, 3 on rank 1"
