# SPDX-License-Identifier: Apache-2.0
"""Other people's implementations of what is measured, where they are installed.

Fused linear cross entropies know one direction; CLIP takes two calls. None of them can leave out a point's similarity
to itself, so NT-Xent has dense peers only. memeff knows both directions of CLIP, siglip-kernel SigLIP alone.
flash-sinkhorn is compared for potentials of float32 features: it takes points, not scores, and returns no codes.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pycl.core import precision

from . import sinkhorn
from .losses import LOGIT_SCALE, TEMPERATURE
from .workload import Function

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


@cache
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


def _memeff() -> Function:
    from memeff import MemoryEfficientCLIPLoss

    # by default it multiplies gradients by sqrt(N temperature): no longer those of the value
    loss: Function = MemoryEfficientCLIPLoss(temperature=1 / LOGIT_SCALE, normalized_inputs=True, stable=False)
    return loss


def _siglip_kernel() -> Function:
    from siglip_kernel import fused_siglip_loss

    def siglip(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        loss: Tensor = fused_siglip_loss(image, text, scale.log(), bias)
        return loss

    return siglip


def _open_clip_siglip() -> Function:
    from open_clip.loss import SigLipLoss

    loss: Function = SigLipLoss()
    return loss


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


def _flash_sinkhorn() -> Function:
    from flash_sinkhorn.kernels import sinkhorn_flashstyle_alternating as alternating

    def potentials(z: Tensor, prototypes: Tensor) -> Tensor:
        if z.dtype != torch.float32:
            kind = str(z.dtype).removeprefix("torch.")
            raise ValueError(f"squared distances are scores of unit vectors, and in {kind} their lengths are rounded")
        n, k = len(z), len(prototypes)
        samples, clusters = z.new_full((n,), 1 / n), z.new_full((k,), 1 / k)
        f, g = alternating(
            *(z, prototypes, samples, clusters),
            eps=sinkhorn.EPSILON,
            n_iters=sinkhorn.ITERATIONS,
            cost_scale=0.5,  # half a squared distance of unit vectors is 1 - score
            ott_convention=True,  # prototypes first, from nothing
            allow_tf32=precision.of_cuda() != "highest",
        )
        return torch.cat([f / sinkhorn.EPSILON, (g - 1) / sinkhorn.EPSILON + math.log(n)])

    return potentials


PEERS = (
    Peer("memeff", "memeff", "clip", _memeff),
    Peer("siglip-kernel", "siglip-kernel", "siglip", _siglip_kernel),
    Peer("flash-sinkhorn", "flash-sinkhorn", "potentials", _flash_sinkhorn),
    Peer("inf-cl", "inf-cl", "clip", _inf_cl),
    Peer("cut-cross-entropy", "cut-cross-entropy", "clip", _cut_cross_entropy),
    Peer("liger-kernel", "liger-kernel", "clip", _liger),
    Peer("F.linear_cross_entropy", "torch", "clip", _torch),
    Peer("open_clip", "open_clip_torch", "clip", _open_clip, dense=True),
    Peer("open_clip", "open_clip_torch", "siglip", _open_clip_siglip, dense=True),
    Peer("lightly", "lightly", "nt_xent", _lightly, dense=True),
    Peer("lightly", "lightly", "sinkhorn", _lightly_sinkhorn, dense=True),
    Peer("lightly", "lightly", "sinkhorn, out=", _lightly_sinkhorn, dense=True),
)
