# SPDX-License-Identifier: Apache-2.0
"""The classes that drop-ins stand for, each with other values for all of its attributes."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from parity import declare_torchvision, embeddings, peer
from torch import Tensor, nn

declare_torchvision()

import pycl.compat.info_nce  # noqa: E402
import pycl.compat.lightly  # noqa: E402
import pycl.compat.open_clip  # noqa: E402

N, D = 6, 4
FORWARD = {"forward", "__init__"}  # a subclass that overrides these has its own code


def x(seed: int, rows: int = N) -> Tensor:
    return embeddings(rows, D, seed)


def bank() -> Any:
    from lightly.models.modules.memory_bank import MemoryBankModule

    found = MemoryBankModule((7, D)).double()
    found.bank = embeddings(7, D, 9)
    return found


class Shifted(nn.Module):
    """A bank whose keys are its own affair."""

    size = (0,)

    def forward(self, output: Tensor, labels: Any = None, update: bool = False) -> tuple[Tensor, Tensor]:
        return output, embeddings(5, D, 3).t()


class Total(nn.Module):
    """In the place of a cross entropy."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits.sum() + labels.sum()


def nearest(u0: Tensor, u1: Tensor) -> Tensor:
    return 1 + (u0 * u1).sum(1)


@dataclass(frozen=True)
class Loss:
    """A class of a library, how it is built and called, and values for each of its attributes."""

    library: str
    ours: ModuleType
    name: str
    args: tuple[Any, ...]
    inputs: tuple[Any, ...]
    settings: dict[str, list[Any]] = field(default_factory=dict)
    together: tuple[dict[str, Any], ...] = ()  # attributes that count only together

    @property
    def theirs(self) -> type:
        return getattr(peer(self.library), self.name)

    @property
    def drop_in(self) -> type:
        peer(self.library)
        return getattr(self.ours, self.name)

    def attributes(self) -> set[str]:
        loss = self.theirs(*self.args)
        return {n for n in vars(loss) if n not in vars(nn.Module()) and n != "training"} | set(loss._modules)

    def methods(self) -> list[str]:
        classes = [c for c in self.theirs.__mro__ if not issubclass(nn.Module, c)]
        return sorted({n for c in classes for n, f in vars(c).items() if callable(f)} - FORWARD)


CE = nn.CrossEntropyLoss
CLIP = {
    "local_loss": [True],
    "gather_with_grad": [True],
    "cache_labels": [True],
    "rank": [1],
    "world_size": [0, -1],
    "use_horovod": [True],
    "prev_num_logits": [N],
    "labels": [{torch.device("cpu"): torch.arange(N).roll(1)}],
}
LABELS = {"labels": {torch.device("cpu"): torch.arange(N).roll(1)}, "prev_num_logits": N}
LIGHTLY, OPEN_CLIP = pycl.compat.lightly, pycl.compat.open_clip
OVERRIDABLE = [
    Loss(
        "lightly.loss",
        LIGHTLY,
        "NTXentLoss",
        (0.3,),
        (x(0), x(1)),
        {
            "temperature": [0.7, -0.5, torch.tensor(0.4), torch.tensor(-0.4)],
            "gather_distributed": [True],
            "eps": [1.0],
            "memory_bank": [bank, Shifted],
            "cross_entropy": [
                CE(reduction="sum"),
                CE(reduction="none"),
                CE(label_smoothing=0.1),
                CE(ignore_index=2),
                CE(weight=torch.linspace(1, 2, 2 * N - 1, dtype=torch.float64)),
                Total(),
            ],
        },
    ),
    Loss(
        "lightly.loss",
        LIGHTLY,
        "DirectCLRLoss",
        (3, 0.3),
        (x(0), x(1)),
        {
            "loss_dim": [2, 9],
            "temperature": [0.7, -0.5],
            "gather_distributed": [True],
            "eps": [1.0],
            "memory_bank": [Shifted],
            "cross_entropy": [CE(reduction="none"), Total()],
        },
    ),
    Loss(
        "lightly.loss",
        LIGHTLY,
        "MACLLoss",
        (0.3,),
        (x(0), x(1)),
        {"temperature": [0.7, -0.5], "alpha": [0.0, 7.0], "A_0": [0.4, -2.0], "eps": [0.5]},
    ),
    Loss(
        "lightly.loss.hypersphere_loss",
        LIGHTLY,
        "HypersphereLoss",
        (),
        (x(0), x(1)),
        {"t": [3.0, 0.0, -0.5], "lam": [0.3, -1.0], "alpha": [1.0, 0.5]},
    ),
    Loss(
        "lightly.loss",
        LIGHTLY,
        "KoLeoLoss",
        (),
        (x(0),),
        {"p": [1], "eps": [0.3], "pairwise_distance": [nn.PairwiseDistance(p=1), nn.CosineSimilarity()]},
    ),
    *(
        Loss(
            "lightly.loss",
            LIGHTLY,
            name,
            (0.3,),
            (x(0), x(1, 3), x(2, 4)),
            {
                "temperature": [0.7, -0.5],
                "sinkhorn_iterations": [0, 1, -2],
                "regularization_weight": [0.0, -1.0, 5.0],
                "gather_distributed": [True],
            }
            | more,
        )
        for name, more in (("MSNLoss", {}), ("PMSNLoss", {"power_law_exponent": [0.0, -1.0, 2.0]}))
    ),
    Loss(
        "lightly.loss",
        LIGHTLY,
        "DCLLoss",
        (0.3,),
        (x(0), x(1)),
        {"temperature": [0.7, -0.5], "weight_fn": [nearest, nn.CosineSimilarity(), 0], "gather_distributed": [True]},
    ),
    Loss(
        "lightly.loss",
        LIGHTLY,
        "DCLWLoss",
        (0.3,),
        (x(0), x(1)),
        {"temperature": [0.7, -0.5], "weight_fn": [nearest, None], "gather_distributed": [True]},
    ),
    Loss(
        "lightly.loss",
        LIGHTLY,
        "SwaVLoss",
        (0.3,),
        ([x(0), x(1)], [x(2)]),
        {
            "temperature": [0.7, -0.5],
            "sinkhorn_iterations": [1, 0, -1],
            "sinkhorn_epsilon": [0.2, -0.5],
            "sinkhorn_gather_distributed": [True],
        },
    ),
    Loss("open_clip.loss", OPEN_CLIP, "ClipLoss", (), (x(0), x(1), 3.0), CLIP, (LABELS,)),
    Loss(
        "open_clip.loss",
        OPEN_CLIP,
        "SigLipLoss",
        (),
        (x(0), x(1), 3.0, -1.0),
        {n: CLIP[n] for n in ("cache_labels", "rank", "world_size", "prev_num_logits", "labels")}
        | {"dist_impl": ["gather", "none of these"]},
        (LABELS,),
    ),
    Loss(
        "open_clip.loss",
        OPEN_CLIP,
        "CoCaLoss",
        (2.0, 1.0),
        (x(0), x(1), embeddings(2 * N * D, 5, 2).view(N, 8, 5), torch.arange(N * 8).view(N, 8) % 5, 3.0),
        CLIP | {"clip_loss_weight": [0, 0.5], "caption_loss_weight": [0.5], "caption_loss": [CE(label_smoothing=0.1)]},
        (LABELS,),
    ),
    Loss("open_clip.loss", OPEN_CLIP, "DistillClipLoss", (), (x(0), x(1), 3.0, x(2), x(3), 2.0), CLIP, (LABELS,)),
    Loss(
        "info_nce",
        pycl.compat.info_nce,
        "InfoNCE",
        (0.3,),
        (x(0), x(1), embeddings(N * 3, D, 2).view(N, 3, D)),
        {"temperature": [0.7, -0.5], "reduction": ["sum", "none"], "negative_mode": []},
        ({"negative_mode": "paired"}, {"negative_mode": "paired", "temperature": -0.4}),
    ),
]
# InfoNCE's inputs fit one of its two modes
MODE = {"InfoNCE": {"negative_mode": "paired"}}


def value(kind: type, loss: Loss, settings: dict[str, Any]) -> Any:
    """The loss as numbers, or the kind of error."""
    torch.manual_seed(0)
    found = kind(*loss.args)
    for name, wanted in (MODE.get(loss.name, {}) | settings).items():
        setattr(found, name, wanted() if wanted in (bank, Shifted) else wanted)
    try:
        result = found(*loss.inputs)
    except Exception as error:
        return type(error)
    return [t.double() for t in (result if isinstance(result, tuple) else (result,))]


def assert_equal(mine: Any, theirs: Any) -> None:
    if isinstance(theirs, type):
        assert mine is theirs
        return
    assert not isinstance(mine, type), mine
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
