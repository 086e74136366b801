# SPDX-License-Identifier: Apache-2.0
"""``patch(gather=True)``: the loss over the batches of all processes, as DistributedDataParallel trains with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.spawn import on_ranks
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers_models import NAMED, assert_same_gradients, installed, patched, step

N = 6
NAMES = (
    "CLIPModel",
    "AlignModel",
    "SiglipModel",
    "ClapModel",
    "BridgeTowerForContrastiveLearning",
    "PeAudioVideoModel",
    "RoCBertForPreTraining",
)
UNEVEN_NAMES = ("CLIPModel", "SiglipModel", "PeAudioModel")
EVEN, UNEVEN = (3, 3), (4, 2)
FLAVA = NAMED["FlavaForPreTraining"]


def of(batch: dict[str, Tensor], rank: int, sizes: tuple[int, ...]) -> dict[str, Tensor]:
    """A rank's part."""
    start = sum(sizes[:rank])
    return {name: x[start : start + sizes[rank]] for name, x in batch.items()}


def train(rank: int, names: tuple[str, ...], sizes: tuple[int, ...], gather: bool) -> dict[str, Any]:
    """By model: the loss of a rank, the gradients that the ranks agree on, the logits of the rank."""
    found: dict[str, Any] = {}
    with patched(gather=gather):
        for name in names:
            model = NAMED[name].make().eval()
            whole = DistributedDataParallel(model, find_unused_parameters=True)
            output, gradients = step(whole, of(NAMED[name].batch(N), rank, sizes))
            logits = [x.detach().clone() for key, x in output.items() if "logits" in key and x is not None]
            found[name] = output.loss.detach(), {k.removeprefix("module."): g for k, g in gradients.items()}, logits
    return found


def flava(rank: int, gather: bool) -> list[Any]:
    """FLAVA on a rank by itself, and after ``patch()``."""
    model, batch = FLAVA.make(), of(FLAVA.batch(N), rank, EVEN)

    def run() -> Any:
        output, gradients = step(model, batch)
        return output.loss.detach(), output.loss_info.global_contrastive.detach(), gradients

    theirs = run()
    with patched(gather=gather):
        return [theirs, run()]


def everything(rank: int, world: int) -> dict[str, Any]:
    """All that these tests look at, from one start of the processes."""
    installed()
    return {
        "even": train(rank, NAMES, EVEN, True),
        "uneven": train(rank, UNEVEN_NAMES, UNEVEN, True),
        "alone": train(rank, NAMES[:1], EVEN, False),
        "flava": {gather: flava(rank, gather) for gather in (False, True)},
    }


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    installed()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYCL_STRICT", "1")  # for the processes
        return on_ranks(2, everything, seconds=240)


@pytest.mark.parametrize(
    ("batches", "name"), [*(("even", name) for name in NAMES), *(("uneven", name) for name in UNEVEN_NAMES)]
)
def test_two_ranks_are_one_process(batches: str, name: str, ranks: list[dict[str, Any]]) -> None:
    wanted = step(NAMED[name].make().eval(), NAMED[name].batch(N))
    found = [rank[batches][name] for rank in ranks]
    torch.testing.assert_close(torch.stack([f[0] for f in found]).mean(), wanted.output.loss, rtol=1e-10, atol=0)
    for _, gradients, _ in found:
        used = {n for n, g in wanted.gradients.items() if g is not None}  # DDP gives the others zeros
        assert_same_gradients({n: gradients[n] for n in used}, {n: wanted.gradients[n] for n in used}, 1e-9)


def test_logits_are_the_rank_s_own(ranks: list[dict[str, Any]]) -> None:
    model = NAMED["CLIPModel"]
    for rank, found in enumerate(ranks):
        alone = model.make().eval()(**of(model.batch(N), rank, EVEN))
        torch.testing.assert_close(found["even"][model.name][2], [alone.logits_per_image, alone.logits_per_text])


def test_without_gather_a_rank_has_its_own_batch(ranks: list[dict[str, Any]]) -> None:
    model = NAMED[NAMES[0]]
    for rank, found in enumerate(ranks):
        alone = step(model.make().eval(), of(model.batch(N), rank, EVEN))
        torch.testing.assert_close(found["alone"][model.name][0], alone.output.loss, rtol=1e-10, atol=0)


@pytest.mark.parametrize("gather", [False, True])
def test_flava_gathers_itself(gather: bool, ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        theirs, ours = found["flava"][gather]
        torch.testing.assert_close(ours[:2], theirs[:2], rtol=1e-10, atol=0)
        assert_same_gradients(ours[2], theirs[2], 1e-9)
