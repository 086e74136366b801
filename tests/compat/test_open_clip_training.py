# SPDX-License-Identifier: Apache-2.0
"""open_clip's training with pycl's losses: through its factory after ``patch()``, and on two ranks."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.spawn import on_ranks
from parity import embeddings, peer
from test_open_clip import MODULE, features, library, nothing_falls_back, ours, scalar
from torch import Tensor, nn

__all__ = ["library", "nothing_falls_back"]  # fixtures


@pytest.fixture
def patched(library: ModuleType) -> Iterator[ModuleType]:
    before = library.ClipLoss
    ours.patch()
    yield library
    ours.unpatch()
    assert library.ClipLoss is before
    assert before is not ours.ClipLoss


def arguments(model: str, siglip: bool = False) -> Namespace:
    return Namespace(
        **{"local_loss": False, "gather_with_grad": False, "rank": 0, "world_size": 1, "horovod": False},
        **{"distill": False, "model": model, "siglip": siglip, "loss_dist_impl": None},
        **{"coca_caption_loss_weight": 2.0, "coca_contrastive_loss_weight": 1.0},
    )


class Towers(nn.Module):
    """Two linear towers and the parameters of open_clip's models."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(12, 8), nn.Linear(6, 8)
        self.logit_scale = nn.Parameter(torch.tensor(2.6593))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
        unit = nn.functional.normalize
        found = {"image_features": unit(self.image(images), dim=-1), "text_features": unit(self.text(texts), dim=-1)}
        return {**found, "logit_scale": self.logit_scale.exp(), "logit_bias": self.logit_bias}


def train(siglip: bool) -> tuple[list[float], list[float]]:
    """Losses and temperatures of open_clip's training step, with the loss that its factory makes."""
    from open_clip.factory import create_loss

    loss, model = create_loss(arguments("ViT", siglip)), Towers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(6):
        optimizer.zero_grad()
        sizes = (10, 12), (10, 6)
        outputs = model(*(torch.randn(size, generator=generator) for size in sizes))
        losses = loss(**outputs, output_dict=True)
        total = sum(losses.values())
        total.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)
        found.append(total.item())
    return found, [model.logit_scale.item(), model.logit_bias.item()]


@pytest.mark.parametrize("siglip", [False, True])
def test_training_step_through_the_factory(siglip: bool, library: ModuleType, request: Any) -> None:
    expected = train(siglip)
    request.getfixturevalue("patched")
    from open_clip.factory import create_loss

    assert type(create_loss(arguments("ViT", siglip))) is (ours.SigLipLoss if siglip else ours.ClipLoss)
    found = train(siglip)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert expected[0][-1] < expected[0][0]


def test_coca(patched: ModuleType) -> None:
    from open_clip.factory import create_loss

    loss = create_loss(arguments("coca_tiny"))
    assert type(loss) is ours.CoCaLoss
    theirs = ours._ORIGINALS["CoCaLoss"](caption_loss_weight=2.0, clip_loss_weight=1.0)
    x, y = features(6, 4)
    logits, labels = embeddings(6 * 3, 5, 7).view(6, 3, 5), torch.arange(18).view(6, 3) % 5
    found, expected = (f(x, y, logits, labels, scalar(8), output_dict=True) for f in (loss, theirs))
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name])


def test_distillation_builds_on_the_patched_module(patched: ModuleType) -> None:
    x, y = features(6, 4)
    found = patched.DistillClipLoss()(x, y, scalar(8), y, x, scalar(9), output_dict=True)
    torch.testing.assert_close(found["contrastive_loss"], ours.ClipLoss()(x, y, scalar(8)))


FLAGS: list[tuple[str, dict[str, Any]]] = [
    *(("ClipLoss", {"local_loss": a, "gather_with_grad": b}) for a in (False, True) for b in (False, True)),
    *(("SigLipLoss", {"dist_impl": impl}) for impl in (None, "bidir", "shift", "reduce", "gather")),
]


DISTILLED = [options for name, options in FLAGS if name == "ClipLoss"]


def rank_results(rank: int, world: int) -> dict[str, list[list[Tensor]]]:
    """Value and gradients with every flag, by ours and by the library."""
    found: dict[str, list[list[Tensor]]] = {"ours": [], "theirs": []}
    n, d = 5, 4
    for whose, lib in {"ours": ours, "theirs": peer(MODULE)}.items():
        for name, options in FLAGS:
            x, y = (z.view(world, n, d)[rank].clone().requires_grad_() for z in features(world * n, d))
            scale, bias = (scalar(value).requires_grad_() for value in (6.0, -2.0))
            loss = getattr(lib, name)(rank=rank, world_size=world, **options)(x, y, scale, bias)
            loss.backward()
            found[whose].append([loss.detach(), x.grad, y.grad, scale.grad, bias.grad])
        for options in DISTILLED:
            x, y = (z.view(world, n, d)[rank].clone().requires_grad_() for z in features(world * n, d))
            teacher = [z.view(world, n, d - 1)[rank] for z in features(world * n, d - 1)]
            scale = scalar(6.0).requires_grad_()
            losses = lib.DistillClipLoss(rank=rank, world_size=world, **options)(x, y, scale, *teacher, scalar(4.0))
            (losses[0] + 3 * losses[1]).backward()
            found[whose].append([losses[1].detach(), x.grad, y.grad, scale.grad, losses[0].detach()])
    return found


def test_two_ranks(library: ModuleType) -> None:
    ranks = on_ranks(2, rank_results, seconds=120)
    called = [*FLAGS, *(("DistillClipLoss", options) for options in DISTILLED)]
    for flag, (_, options) in enumerate(called):

        def say(text: str, flag: Any = called[flag]) -> str:
            return f"{flag}: {text}"

        for rank in ranks:
            for mine, theirs in zip(rank["ours"][flag][:3], rank["theirs"][flag][:3], strict=True):
                torch.testing.assert_close(mine, theirs, msg=say)
        for k in (3, 4):
            mine, theirs = (torch.stack([rank[whose][flag][k] for rank in ranks]) for whose in ("ours", "theirs"))
            if not options.get("local_loss", True):
                torch.testing.assert_close(mine, theirs, msg=say)
            # otherwise ranks may count a pair in each other's place, and DistributedDataParallel averages them
            torch.testing.assert_close(mine.mean(), theirs.mean(), msg=say)
