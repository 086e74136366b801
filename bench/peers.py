# SPDX-License-Identifier: Apache-2.0
"""Other people's implementations of what is measured, where they are installed.

Fused linear cross entropies know one direction; CLIP takes two calls. None of them can leave out a point's similarity
to itself, so NT-Xent has dense peers only.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import sinkhorn
from .losses import LOGIT_SCALE, TEMPERATURE
from .work import Function

OneDirection = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Peer:
    name: str
    distribution: str
    loss: str
    load: Callable[[], Function]  # raises where the import fails
    dense: bool = False  # stores the matrix


_declared: list[torch.library.Library] = []  # a library takes its operators along when it goes


def declare_torchvision() -> None:
    """Declare the two operators that torchvision's CUDA build wants to exist and a CPU build of torch leaves out.

    lightly and open_clip import torchvision; their losses use none of it.
    """
    if not hasattr(torch.ops.torchvision, "nms") and not torch.version.cuda:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)


class Found(NamedTuple):
    peer: Peer
    version: str | None
    function: Function | None
    why_not: str | None


def find(peers: Iterable[Peer]) -> list[Found]:
    """Load every peer; what is not installed or cannot be imported says so."""
    declare_torchvision()
    return [_find(peer) for peer in peers]


def versions(found: Iterable[Found]) -> dict[str, dict[str, str | None]]:
    """What a record says of them."""
    return {peer.name: {"version": version, "why_not": why_not} for peer, version, _, why_not in found}


def _find(peer: Peer) -> Found:
    try:
        version = importlib.metadata.version(peer.distribution)
    except importlib.metadata.PackageNotFoundError:
        return Found(peer, None, None, "not installed")
    try:
        return Found(peer, version, peer.load(), None)
    except Exception as error:  # a foreign package may fail in any way
        return Found(peer, version, None, f"cannot be used: {type(error).__name__}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:160]


def _in_both_directions(one: OneDirection) -> Function:
    def clip(image: Tensor, text: Tensor) -> Tensor:
        own = torch.arange(len(image), device=image.device)
        return (one(LOGIT_SCALE * image, text, own) + one(LOGIT_SCALE * text, image, own)) / 2

    return clip


def _inf_cl() -> Function:
    from inf_cl import cal_flash_loss

    def one(query: Tensor, key: Tensor, own: Tensor) -> Tensor:
        # its kernels take features in heads of a power of two, 256 by default
        loss: Tensor = cal_flash_loss(query, key, own, head_dim=min(256, query.shape[1])).mean()
        return loss

    return _in_both_directions(one)


def _cut_cross_entropy() -> Function:
    from cut_cross_entropy import linear_cross_entropy

    def one(query: Tensor, key: Tensor, own: Tensor) -> Tensor:
        # by default it drops small softmax weights, which are most of a contrastive gradient
        loss: Tensor = linear_cross_entropy(query, key, own, filter_eps=None)
        return loss

    return _in_both_directions(one)


def _liger() -> Function:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return _in_both_directions(liger_fused_linear_cross_entropy)


def _torch() -> Function:
    if not hasattr(F, "linear_cross_entropy"):
        raise NotImplementedError(f"torch {torch.__version__} has no F.linear_cross_entropy")
    options = torch.nn.LinearCrossEntropyOptions()  # without options it stores the matrix

    def one(query: Tensor, key: Tensor, own: Tensor) -> Tensor:
        return F.linear_cross_entropy(query, key, own, options=options)

    return _in_both_directions(one)


def _open_clip() -> Function:
    from open_clip.loss import ClipLoss

    loss = ClipLoss(cache_labels=True)

    def clip(image: Tensor, text: Tensor) -> Tensor:
        value: Tensor = loss(image, text, LOGIT_SCALE)
        return value

    return clip


def _lightly() -> Function:
    from lightly.loss import NTXentLoss

    loss: Function = NTXentLoss(temperature=TEMPERATURE)
    return loss


def _lightly_sinkhorn() -> Function:
    from lightly.loss.swav_loss import sinkhorn as codes

    return partial(codes, iterations=sinkhorn.ITERATIONS, epsilon=sinkhorn.EPSILON)


PEERS = (
    Peer("inf-cl", "inf-cl", "clip", _inf_cl),
    Peer("cut-cross-entropy", "cut-cross-entropy", "clip", _cut_cross_entropy),
    Peer("liger-kernel", "liger-kernel", "clip", _liger),
    Peer("F.linear_cross_entropy", "torch", "clip", _torch),
    Peer("open_clip", "open_clip_torch", "clip", _open_clip, dense=True),
    Peer("lightly", "lightly", "nt_xent", _lightly, dense=True),
    Peer("lightly", "lightly", "sinkhorn", _lightly_sinkhorn, dense=True),
    Peer("lightly", "lightly", "sinkhorn, out=", _lightly_sinkhorn, dense=True),
)
