# SPDX-License-Identifier: Apache-2.0
"""open_clip's image-text losses: ``ClipLoss``, ``SigLipLoss`` and, where open_clip is installed, ``CoCaLoss``.

Change ``from open_clip.loss import ClipLoss`` to ``from pycl.compat.open_clip import ClipLoss``. open_clip's own
training script builds its losses inside the library: call :func:`patch` before it does.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from pycl.compat._common import as_input
from pycl.compat._open_clip_alone import ClipAlone, SigLipAlone, packed
from pycl.compat._peer import fall_back, find_peer
from pycl.distributed import total
from pycl.engine import pair_stats
from pycl.functional import clip, siglip
from pycl.functional._common import Scalar, as_scalar, expand_scalar
from pycl.pairs import Pairs, Points

__all__ = ["ClipLoss", "SigLipLoss", "patch", "unpatch"]

_PEER = find_peer("open_clip.loss")
_ClipBase: Any = _PEER.ClipLoss if _PEER else ClipAlone
_ORIGINALS = {name: getattr(_PEER, name) for name in ("ClipLoss", "SigLipLoss", "CoCaLoss") if _PEER}
_SigLipBase: Any = _PEER.SigLipLoss if _PEER else SigLipAlone


class ClipLoss(_ClipBase):
    r"""open_clip's ``ClipLoss``: cross entropy of images against texts and of texts against images.

    With ``l_ij = logit_scale <image_i, text_j> + logit_bias``, over all N pairs of all processes::

        loss = mean_i [ (log sum_j exp l_ij + log sum_j exp l_ji) / 2 - l_ii ]

    Features are taken as they are given, and ``logit_scale`` (already exponentiated) and ``logit_bias`` get their
    gradients. No logits are stored; with many processes those of this rank's rows alone are computed, where open_clip
    without ``local_loss`` computes all of them on every rank. Value and gradients on every rank are those of
    open_clip, which depend on two flags (W processes, averaged by DistributedDataParallel):

    ==============  ====================  ==================  ====================================================
    ``local_loss``  ``gather_with_grad``  value               gradient of the features
    ==============  ====================  ==================  ====================================================
    False           False                 of all rows         1 / W of the gradient of one process with all pairs
    False           True                  of all rows         that gradient
    True            False                 of the rank's rows  another direction: every gathered column is constant
    True            True                  of the rank's rows  that gradient
    ==============  ====================  ==================  ====================================================

    With ``local_loss`` the gradients of ``logit_scale`` and ``logit_bias`` are open_clip's in the mean over the ranks,
    which is what training sees.

    ``get_logits`` and ``get_ground_truth`` are open_clip's, and a subclass with its own runs open_clip's code, as does
    Horovod. For half features the sums are taken in float32, and the result is rounded to their dtype (outside
    autocast), as open_clip returns it.

    Shape:
        ``image_features`` and ``text_features`` [N, d], ``logit_scale`` and ``logit_bias`` numbers or tensors of one
        element; a scalar, or ``{"contrastive_loss": scalar}`` with ``output_dict=True``.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ) -> None:
        super().__init__(local_loss, gather_with_grad, cache_labels, rank, world_size)
        self.use_horovod = use_horovod  # newer versions of open_clip do not take it

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Scalar,
        logit_bias: Scalar | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        features, scalars = (image_features, text_features), (logit_scale, logit_bias)
        why = "use_horovod=True" if self.use_horovod and self.world_size > 1 else ""
        if why := why or _why_not(self, ClipLoss, ("get_logits", "get_ground_truth"), *features, *scalars):
            fall_back("ClipLoss", why)
            found = super().forward(image_features, text_features, logit_scale, logit_bias, output_dict)
            return cast("Tensor | dict[str, Tensor]", found)
        if self.world_size == 1:
            loss = clip(*features, *scalars)
        elif not self.local_loss:
            loss = _over_all_rows(*features, *scalars, self.gather_with_grad)
        elif self.gather_with_grad:
            loss = clip(*features, *scalars, group=_world())
        else:
            loss = _against_constants(*features, *scalars)
        return packed(as_input(loss, image_features), output_dict)


class SigLipLoss(_SigLipBase):
    r"""open_clip's ``SigLipLoss``: a binary logistic loss for every image with every text.

    With ``l_ij = logit_scale <image_i, text_j> + logit_bias``, i over the N images of this rank and j over the texts
    of all ranks::

        loss = 1/N sum_i [ softplus(-l_ii) + sum_{j != i} softplus(l_ij) ]

    Value and gradients on every rank are those of open_clip, which do not depend on ``dist_impl``: with
    DistributedDataParallel the gradient is that of one process with all pairs. No logits are stored for the backward
    pass, which needs no ``chunk_size`` for that; the argument of newer versions of open_clip is accepted.

    ``get_logits`` and ``get_ground_truth`` are open_clip's, and a subclass with its own runs open_clip's code. For
    half features the sums are taken in float32, and the result is rounded to their dtype (outside autocast).

    Shape:
        ``image_features`` and ``text_features`` [N, d], ``logit_scale`` and ``logit_bias`` numbers or tensors of one
        element, or a bias of None; a scalar, or ``{"contrastive_loss": scalar}`` with ``output_dict=True``.

    Raises:
        AssertionError: a ``dist_impl`` other than None, ``"bidir"``, ``"shift"``, ``"reduce"`` or ``"gather"``.
    """

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
        chunk_size: int = 0,
    ) -> None:
        super().__init__(cache_labels, rank, world_size, dist_impl)
        self.chunk_size = chunk_size  # read by the code of newer versions of open_clip

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Scalar,
        logit_bias: Scalar | None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        inputs = image_features, text_features, logit_scale, logit_bias
        if why := _why_not(self, SigLipLoss, ("get_logits", "get_ground_truth", "_loss"), *inputs):
            fall_back("SigLipLoss", why)
            found = super().forward(image_features, text_features, logit_scale, logit_bias, output_dict)
            return cast("Tensor | dict[str, Tensor]", found)
        group = _world() if self.world_size > 1 else None
        bias = 0.0 if logit_bias is None else logit_bias
        loss = siglip(image_features, text_features, logit_scale, bias, group=group)
        return packed(as_input(loss, image_features), output_dict)


if _PEER:
    _CoCaBase: Any = _PEER.CoCaLoss

    class CoCaLoss(_CoCaBase, ClipLoss):
        """open_clip's ``CoCaLoss``, whose contrastive part is :class:`ClipLoss`."""

    __all__ += ["CoCaLoss"]


def patch() -> None:
    """Make open_clip build pycl's losses: they take the places of its classes in ``open_clip.loss`` and wherever it
    has bound their names, ``open_clip.factory`` among them, so that ``create_loss`` and the training script use them.

    Raises:
        ImportError: open_clip is not installed.
    """
    _set_classes(globals())


def unpatch() -> None:
    """Take :func:`patch` back."""
    _set_classes(_ORIGINALS)


def _set_classes(classes: Mapping[str, Any]) -> None:
    if _PEER is None:
        raise ImportError("patch() and unpatch() need open_clip: pip install open_clip_torch")
    for module in map(sys.modules.get, ("open_clip.loss", "open_clip.factory", "open_clip")):
        for name in _ORIGINALS:
            if hasattr(module, name):
                setattr(module, name, classes[name])


class _OfAllRows(torch.autograd.Function):
    """The mean of the ranks' losses, whose gradient goes, times ``weight``, to the rank's own."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, weight: float, group: dist.ProcessGroup) -> Tensor:
        ctx.weight = weight
        return total(loss, group) / group.size()

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> Any:
        return d_loss * ctx.weight, None, None


class _Shared(torch.autograd.Function):
    """A parameter of all rows: every rank gets the sum of the ranks' gradients, times ``weight``."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: float, group: dist.ProcessGroup) -> Tensor:
        ctx.weight, ctx.group = weight, group
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, d_value: Tensor) -> Any:
        return total(d_value, ctx.group) * ctx.weight, None, None


def _over_all_rows(
    image: Tensor, text: Tensor, logit_scale: Scalar, logit_bias: Scalar | None, gather_with_grad: bool
) -> Tensor:
    """``local_loss=False``: open_clip computes all rows on every rank, this each rank's rows once."""
    group = _world()
    part = 1 / group.size()
    # clip's gradient at the features is W times that of the mean over all rows, which open_clip has with gathered
    # gradients; its gradients at the scalars are one rank's share of W
    of_loss, of_scalars = (1.0, part) if gather_with_grad else (part, 1.0)
    scale = _Shared.apply(logit_scale, of_scalars, group) if isinstance(logit_scale, Tensor) else logit_scale
    bias = _Shared.apply(logit_bias, of_scalars, group) if isinstance(logit_bias, Tensor) else logit_bias
    return cast("Tensor", _OfAllRows.apply(clip(image, text, scale, bias, group=group), of_loss, group))


def _against_constants(image: Tensor, text: Tensor, logit_scale: Scalar, logit_bias: Scalar | None) -> Tensor:
    """``local_loss=True, gather_with_grad=False``: the gathered columns, the rank's own among them, get no gradient."""
    scale = as_scalar("logit_scale", logit_scale)
    bias = None if logit_bias is None else expand_scalar("logit_bias", logit_bias, image)

    def terms(rows: Tensor, cols: Tensor) -> Tensor:
        stats = pair_stats(
            Points(rows),
            Points(cols.detach()),
            scale,
            denominator=Pairs.ALL,
            positives=Pairs.SELF,
            row_bias=bias,
            group=_world(),
        )
        return stats.lse - stats.pos_sum

    return (terms(image, text) + terms(text, image)).mean() / 2


def _world() -> dist.ProcessGroup:
    return cast("dist.ProcessGroup", dist.group.WORLD)


def _why_not(
    loss: Any,
    ours: type,
    methods: tuple[str, ...],
    image: Tensor,
    text: Tensor,
    logit_scale: Scalar,
    logit_bias: Scalar | None,
) -> str:
    """Why the loss cannot be fused, or nothing."""
    for name in methods:
        if getattr(getattr(loss, name), "__func__", None) is not getattr(ours, name):
            return f"{type(loss).__name__} has a {name} of its own"
    if image.dim() != 2 or image.shape != text.shape or image.numel() == 0:
        return f"features of shapes {tuple(image.shape)} and {tuple(text.shape)}"
    if not image.is_floating_point() or image.dtype != text.dtype or image.device != text.device:
        return f"features of {image.dtype} on {image.device} and of {text.dtype} on {text.device}"
    if any(isinstance(s, Tensor) and s.numel() != 1 for s in (logit_scale, logit_bias)):
        return "a logit_scale or a logit_bias with more than one element"
    if loss.world_size > 1 and not _is_rank(loss.rank, loss.world_size):
        return f"torch.distributed is not running as rank {loss.rank} of {loss.world_size}"
    return ""


def _is_rank(rank: int, world_size: int) -> bool:
    running = dist.is_available() and dist.is_initialized()
    return running and (dist.get_rank(), dist.get_world_size()) == (rank, world_size)
