# SPDX-License-Identifier: Apache-2.0
"""Ranks that share the prototypes: two and three gloo processes against one, with uneven batches, and their errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.sinkhorn_reference import published
from helpers.spawn import on_ranks
from torch import Tensor
from torch.nn.functional import normalize

import pycl
from pycl.functional import dino_codes, sinkhorn, sinkhorn_potentials, swav

SPLITS = {2: (40, 23), 3: (17, 0, 46)}
N, K, D = 63, 19, 8


def features() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    z = normalize(torch.randn(3, N, D, dtype=torch.float64), dim=2)
    return z, normalize(torch.randn(K, D, dtype=torch.float64), dim=1), torch.rand(N, dtype=torch.float64) + 0.1


def share(rank: int, world: int) -> slice:
    start = sum(SPLITS[world][:rank])
    return slice(start, start + SPLITS[world][rank])


def all_functions(rank: int, world: int) -> dict[str, Tensor]:
    (z, c, a), mine, group = features(), share(rank, world), dist.group.WORLD
    scores, m = z[0] @ c.T, torch.linspace(1, 2, K, dtype=torch.float64)
    marginals: dict[str, Any] = {"sample_marginal": (a / a.sum())[mine], "prototype_marginal": m / m.sum()}
    found = {
        "codes": sinkhorn(scores[mine], group=group),
        "half": sinkhorn(scores[mine].to(torch.bfloat16), group=group, dtype=torch.float32),
        "marginals": sinkhorn(scores[mine], group=group, **marginals),
        "dino": dino_codes(scores[mine], 0.07, group=group),
        "small epsilon": sinkhorn(scores[mine].float(), epsilon=0.003, group=group),
    }
    if 0 not in SPLITS[world]:
        options: dict[str, Any] = {"epsilon": 0.1, "group": group}
        u, v = sinkhorn_potentials(z[0, mine], c, **options)
        found |= {"u": u, "v": v}
        u, v = sinkhorn_potentials(z[0, mine], c, prototype_penalty=0.2, **options, **marginals)
        found |= {"unbalanced u": u, "unbalanced v": v}
        crops, weight = z[:, mine].clone().requires_grad_(), c.clone().requires_grad_()
        terms = swav(crops, weight, reduction="none", group=group)
        terms.sum().backward()
        assert crops.grad is not None
        assert weight.grad is not None
        found |= {"terms": terms.detach(), "d_crops": crops.grad.transpose(0, 1), "d_prototypes": weight.grad}
    return found


def alone(_: int, __: int) -> dict[str, Tensor]:
    SPLITS[1] = (N,)
    return all_functions(0, 1)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_are_one_process(world: int) -> None:
    parts = on_ranks(world, all_functions)
    (one,) = on_ranks(1, alone)
    z, c, _ = features()
    torch.testing.assert_close(one["codes"], published(z[0] @ c.T), rtol=0, atol=1e-12)
    for name in parts[0]:
        tolerance = 1e-5 if name in ("half", "small epsilon") else 1e-11
        if name.endswith("v"):
            for part in parts:
                torch.testing.assert_close(part[name], one[name], rtol=0, atol=tolerance)
        else:
            whole = [part[name] for part in parts]
            joined = sum(whole) if name == "d_prototypes" else torch.cat(whole)
            torch.testing.assert_close(joined, one[name], rtol=0, atol=tolerance)


def refusals(rank: int, world: int) -> list[str]:
    """What each rank is told; the last call shows that none was left waiting."""
    group, messages = dist.group.WORLD, []
    ones = torch.ones(4, 3)
    calls: list[Callable[[], Any]] = [
        lambda: sinkhorn(torch.ones(4, 3 + rank), group=group),
        lambda: sinkhorn(ones, epsilon=0.05 + rank, group=group),
        lambda: sinkhorn(ones, sample_marginal=torch.full((4,), 1 / 8) if rank else None, group=group),
        lambda: sinkhorn(ones, sample_marginal=torch.full((4,), 1 / 6 if rank else -1.0), group=group),
        lambda: sinkhorn(ones.clone().fill_(torch.nan if rank else 1.0), group=group),
        lambda: sinkhorn(torch.ones(0, 3), group=group),
        lambda: swav(torch.ones(2 + rank, 4, 3), torch.ones(5, 3), code_crops=range(2 + rank), group=group),
        lambda: sinkhorn(ones, group=group, backend="cuda"),
    ]
    for call in calls:
        try:
            call()
            messages.append("")
        except (ValueError, RuntimeError) as error:
            messages.append(str(error))
    torch.testing.assert_close(sinkhorn(ones, group=group), torch.full((4, 3), 1 / 3))
    return messages


def test_errors_reach_every_rank() -> None:
    first, second = on_ranks(2, refusals)
    expected = [
        ("K must be the same on all ranks of the group, got 3 on rank 0, 4 on rank 1",) * 2,
        ("epsilon must be the same on all ranks",) * 2,
        ("sample_marginal is given must be the same on all ranks of the group, got False on rank 0",) * 2,
        ("sample_marginal must have positive, finite entries, got -1", "sample_marginal must sum to 1, got nan"),
        ("scores are fine on this rank", "scores must be finite"),
        ("scores must have a row on some rank",) * 2,
        ("code_crops must be the same on all ranks",) * 2,
        ("backend='cuda'",) * 2,
    ]
    for messages, wanted in zip(zip(first, second, strict=True), expected, strict=True):
        for message, part in zip(messages, wanted, strict=True):
            assert part in message


def test_only_process_groups_are_taken() -> None:
    for call in (  # a checker would refuse both groups, too
        lambda: pycl.functional.swav(torch.ones(2, 4, 3), torch.ones(5, 3), group="gloo"),  # type: ignore[arg-type]
        lambda: sinkhorn_potentials(torch.ones(4, 3), torch.ones(5, 3), group=1),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match=r"group must be None, 'world', 'local' or a torch\.distributed"):
            call()
