# SPDX-License-Identifier: Apache-2.0
"""What ranks are told that do not fit together, and that nobody waits for ever."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.spawn import on_ranks

import pycl
from pycl import Pairs, Points, pair_sum
from pycl import functional as F
from pycl.distributed import Ring


def refusals(rank: int, world: int) -> dict[str, str]:
    group: Any = dist.group.WORLD
    torch.manual_seed(0)
    z = torch.randn(2, 6, 4)
    odd = rank == 1  # the rank that is different
    ids = torch.arange(6), torch.arange(6) // 2
    calls: dict[str, Callable[[], Any]] = {
        "dtype": lambda: F.nt_xent(z.bfloat16() if odd else z, group=group),
        "width": lambda: F.clip(z[0, :, : 3 if odd else 4], z[1, :, : 3 if odd else 4], 2.0, group=Ring(group)),
        "another loss": lambda: (F.dcl if odd else F.nt_xent)(z, group=group),
        "another engine call": lambda: F.siglip(*z, 2.0, 0.0, group=group) if odd else F.clip(*z, 2.0, group=group),
        "temperature": lambda: F.nt_xent(z, temperature=0.3 if odd else 0.2, group=group),
        "no gradient": lambda: F.nt_xent(z if odd else z.clone().requires_grad_(), group=group),
        "labels missing": lambda: F.sup_con(z, None if odd else torch.arange(6), group=group),  # type: ignore[arg-type]
        "labels short": lambda: F.sup_con(z, torch.arange(5 if odd else 6), group=group),
        "empty batch": lambda: F.nt_xent(z[:, : 0 if odd else 6], group=group),
        "backend": lambda: F.nt_xent(z, group=group, backend="magma" if odd else "cpu"),
        "backend of two steps": lambda: F.dhel(z, group=group, backend="magma" if odd else "cpu"),
        "backend of siglip": lambda: F.siglip(
            *z, 2.0, 0.0, ids=ids, per_anchor=True, group=group, backend="magma" if odd else "cpu"
        ),
        "per_anchor": lambda: F.siglip(*z, 2.0, 0.0, ids=ids, per_anchor=not odd, group=group),
        "positive_weight": lambda: pair_sum(
            Points(z[0]), negatives=Pairs.OTHERS, positive_weight=None if odd else torch.ones(6), group=group
        ),
        "normalize": lambda: F.mv_dhel(z, normalize=not odd, group=group),
        "reduction": lambda: F.dclw(z, reduction="sum" if odd else "mean", group=group),
        "form": lambda: F.sup_con(z, torch.arange(6), form="in" if odd else "out", group=group),
        "epsilon": lambda: F.sinkhorn(z[0], epsilon=0.1 if odd else 0.2, group=group),
        "swav width": lambda: F.swav(z, torch.randn(5, 3 if odd else 4), group=group),
        "alignment": lambda: F.alignment(z[0], z[1] if not odd else z[1, :3], group=group),
    }
    told = {}
    for name, call in calls.items():
        try:
            call()
            told[name] = "nothing"
        except (TypeError, ValueError, RuntimeError) as error:
            told[name] = f"{type(error).__name__}: {error}"
        # nobody was left waiting, and the group still works
        assert abs(float(F.nt_xent(z, group=group, backend="cpu"))) > 0
    return told


refused = cache(lambda: on_ranks(3, refusals))
DIFFERS = "ValueError: {} must be the same on all ranks of the group, got {} on rank 0, {} on rank 1, {} on rank 2"
OF_SIGLIP = "siglip, per_anchor", "pair_sum", "siglip, per_anchor"
FAILED = "RuntimeError: rank 1 of the group failed: {}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dtype", DIFFERS.format("dtype", "torch.float32", "torch.bfloat16", "torch.float32")),
        ("width", DIFFERS.format("d", 4, 3, 4)),
        ("another loss", DIFFERS.format("pairs", 30, 24, 30)),
        ("another engine call", DIFFERS.format("operator", "pair_cross_entropy", "pair_sum", "pair_cross_entropy")),
        ("per_anchor", DIFFERS.format("operator", *OF_SIGLIP)),
        ("positive_weight", DIFFERS.format("positive_weight", True, False, True)),
        ("temperature", DIFFERS.format("logit_scale", "5.0", "3.3333", "5.0")),
        ("no gradient", DIFFERS.format("gradients", "rows", "", "rows")),
        ("epsilon", DIFFERS.format("epsilon", 0.2, 0.1, 0.2)),
        ("normalize", DIFFERS.format("normalize", True, False, True)),
        ("reduction", DIFFERS.format("reduction", "mean", "sum", "mean")),
        ("form", DIFFERS.format("form", "out", "in", "out")),
    ],
)
def test_what_differs_is_named_on_every_rank(name: str, message: str) -> None:
    assert [told[name] for told in refused()] == [message] * 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("labels missing", "TypeError: labels must be an integer tensor"),
        ("labels short", "ValueError: labels must have shape [6]"),
        ("empty batch", "ValueError: views must hold at least one instance"),
        ("backend", "ValueError: backend must be None or one of"),
        ("backend of siglip", "ValueError: backend must be None or one of"),
        ("backend of two steps", "ValueError: backend must be None or one of"),
        ("swav width", "ValueError: crops"),
        ("alignment", "ValueError: x and y must have one and the same shape"),
    ],
)
def test_an_error_of_one_rank_is_told_to_all(name: str, message: str) -> None:
    first, odd, last = (told[name] for told in refused())
    assert odd.startswith(message)
    assert first == last
    assert first.startswith(FAILED.format(message))


def dies(rank: int, world: int, moment: str, transport: str) -> tuple[str, float]:
    group: Any = dist.group.WORLD if transport == "gather" else Ring(dist.group.WORLD)
    z = torch.randn(2, 6, 4, requires_grad=True)
    loss = F.nt_xent(z, group=group)
    if rank == 1 and moment == "backward":
        os._exit(0)
    start = time.monotonic()
    try:
        loss.backward()
        if rank == 1:
            os._exit(0)
        F.nt_xent(z, group=group)
    except RuntimeError as error:
        return str(error), time.monotonic() - start
    return "nothing", 0.0


def survivors(rank: int, world: int, moment: str, transport: str, folder: str) -> None:
    told = dies(rank, world, moment, transport)
    torch.save(told, f"{folder}/{rank}.pt")
    os._exit(0)  # the group cannot be taken down any more


@pytest.mark.parametrize("transport", ["gather", "ring"])
@pytest.mark.parametrize("moment", ["forward", "backward"])
def test_a_rank_that_dies_fails_the_others(moment: str, transport: str, tmp_path: Any) -> None:
    with pytest.raises(FileNotFoundError):  # on_ranks finds no results: every process has left on its own
        on_ranks(3, survivors, moment, transport, str(tmp_path), seconds=10)
    for rank in (0, 2):
        message, seconds = torch.load(tmp_path / f"{rank}.pt")
        assert "nothing" not in message
        assert seconds < 15


def test_only_process_groups_are_taken() -> None:
    for group in ("gloo", 1, -100, Ring(None)):  # type: ignore[arg-type]
        with pytest.raises(
            TypeError, match=r"group must be None, 'world', 'local' or a torch\.distributed process group"
        ):
            F.nt_xent(torch.randn(2, 3, 4), group=group)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="group"):
            pycl.NTXentLoss(group=group)  # type: ignore[arg-type]


def test_a_loss_of_ones_own_has_to_be_decorated() -> None:
    """Its group is a name until ``together`` has looked it up."""
    with pytest.raises(TypeError, match=r"group must be what pycl\.together hands a function.*got 'world'"):
        pycl.reduce(torch.zeros(3), "mean", "world")
