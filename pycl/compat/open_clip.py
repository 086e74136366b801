# SPDX-License-Identifier: Apache-2.0
"""open_clip's image-text losses: ``ClipLoss``, ``SigLipLoss`` and, where open_clip is installed, ``CoCaLoss``
and ``DistillClipLoss``; every other name of ``open_clip.loss`` is open_clip's own.

Change ``from open_clip.loss import ClipLoss`` to ``from pycl.compat.open_clip import ClipLoss``. open_clip's own
training script builds its losses inside the library: call :func:`patch` before it does.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from pycl.compat._common import as_input, nothing
from pycl.compat._open_clip_alone import DIST_IMPLS, ClipAlone, SigLipAlone, packed
from pycl.compat._open_clip_distill import surplus, taught
from pycl.compat._open_clip_ranks import against_constants, is_rank, over_all_rows, world
from pycl.compat._peer import Hooks, fall_back, find_peer, forward_names, known
from pycl.distributed.ranks import LOCAL, Group
from pycl.functional import clip, siglip
from pycl.functional._common import Scalar

__all__ = ["ClipLoss", "SigLipLoss", "patch", "unpatch"]

NAMES = "ClipLoss", "SigLipLoss", "CoCaLoss", "DistillClipLoss"
GATHERING = "gather_features", "neighbour_exchange_with_grad", "neighbour_exchange_bidir_with_grad"

_PEER = find_peer("open_clip.loss")
_ClipBase: Any = _PEER.ClipLoss if _PEER else ClipAlone
_SigLipBase: Any = _PEER.SigLipLoss if _PEER else SigLipAlone
_CLIP = Hooks.of_all(_ClipBase)
_SIGLIP = Hooks.of_all(_SigLipBase)
_ORIGINALS = {name: getattr(_PEER, name) for name in NAMES if hasattr(_PEER, name)}
_FUNCTIONS = {name: getattr(_PEER, name) for name in GATHERING if hasattr(_PEER, name)}


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

    All methods but ``forward`` are open_clip's, and a loss with one of its own runs open_clip's code, as do ``labels``
    that were set and Horovod, which version 4 of open_clip does not have: ``use_horovod=True`` is a TypeError there.
    For half features the sums are taken in float32, and the result is rounded to their dtype (float32 under autocast),
    as open_clip returns it.

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
        newer = known(_ClipBase, use_horovod=use_horovod)  # version 4 has none
        if use_horovod and _PEER and not newer:
            raise TypeError("use_horovod=True: this version of open_clip has no Horovod, use torch.distributed")
        super().__init__(local_loss, gather_with_grad, cache_labels, rank, world_size, **newer)
        self.use_horovod = use_horovod

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Scalar,
        logit_bias: Scalar | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        features, scalars = (image_features, text_features), (logit_scale, logit_bias)
        if why := self._pycl_why_not() or _why_not(self, *features, *scalars):
            fall_back(type(self).__name__, why)
            found = super().forward(image_features, text_features, logit_scale, logit_bias, output_dict)
            return cast("Tensor | dict[str, Tensor]", found)
        return packed(as_input(self._fused(*features, *scalars), image_features), output_dict)

    def _fused(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None = None) -> Tensor:
        if self.world_size <= 1 and len(image) == 1:
            return nothing(image, text, scale, bias)
        if self.world_size <= 1:
            return clip(image, text, scale, bias, group=LOCAL)
        if not self.local_loss:
            return over_all_rows(partial(clip, image, text, group=world()), (scale, bias), self.gather_with_grad)
        if self.gather_with_grad:
            return clip(image, text, scale, bias, group=world())
        return against_constants(image, text, scale, bias)

    def _pycl_why_not(self) -> str:
        """Why this loss runs open_clip's code whatever it is given, or nothing."""
        if self.labels and not self.cache_labels:  # open_clip puts its own there with cache_labels=True alone
            return "labels of its own"
        if self.world_size > 1 and (why := "use_horovod=True" if self.use_horovod else _patched("gather_features")):
            return why
        return _CLIP.replaced_in(self)


class SigLipLoss(_SigLipBase):
    r"""open_clip's ``SigLipLoss``: a binary logistic loss for every image with every text.

    With ``l_ij = logit_scale <image_i, text_j> + logit_bias``, i over the N images of this rank and j over the texts
    of all ranks::

        loss = 1/N sum_i [ softplus(-l_ii) + sum_{j != i} softplus(l_ij) ]

    Value and gradients on every rank are those of open_clip, which do not depend on ``dist_impl``: with
    DistributedDataParallel the gradient is that of one process with all pairs. No logits are stored for the backward
    pass, which needs no ``chunk_size`` for that; open_clip's own code has it since version 4.

    All methods but ``forward`` are open_clip's, and a loss with one of its own runs open_clip's code. For
    half features the sums are taken in float32, and the result is rounded to the dtype of open_clip's.

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
        super().__init__(cache_labels, rank, world_size, dist_impl, **known(_SigLipBase, chunk_size=chunk_size))
        self.chunk_size = chunk_size  # of version 4; without it the loss is the same

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Scalar,
        logit_bias: Scalar | None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        inputs = image_features, text_features, logit_scale, logit_bias
        if why := self._pycl_why_not() or _why_not(self, *inputs):
            fall_back(type(self).__name__, why)
            found = super().forward(image_features, text_features, logit_scale, logit_bias, output_dict)
            return cast("Tensor | dict[str, Tensor]", found)
        group: Group = world() if self.world_size > 1 else LOCAL
        bias = 0.0 if logit_bias is None else logit_bias
        loss = siglip(image_features, text_features, logit_scale, bias, group=group)
        return packed(as_input(loss, image_features, "both"), output_dict)

    def _pycl_why_not(self) -> str:
        """Why this loss runs open_clip's code whatever it is given, or nothing."""
        if self.world_size > 1:
            if self.dist_impl not in DIST_IMPLS:
                return f"dist_impl={self.dist_impl!r}"
            if why := _patched("neighbour_exchange_with_grad", "neighbour_exchange_bidir_with_grad"):
                return why
        return _SIGLIP.replaced_in(self)


if _PEER:
    _CoCaBase: Any = _PEER.CoCaLoss

    class CoCaLoss(_CoCaBase, ClipLoss):
        """open_clip's ``CoCaLoss``, whose contrastive part is :class:`ClipLoss`."""

    _DistillBase: Any = _PEER.DistillClipLoss

    class DistillClipLoss(_DistillBase, ClipLoss):
        r"""open_clip's ``DistillClipLoss``: :class:`ClipLoss`, and the cross entropy with a teacher's softmax.

        With ``t_ij`` the teacher's logits, the second loss is::

            mean_i [ - sum_j softmax_j(t_ij) log softmax_j(l_ij) - sum_j softmax_j(t_ji) log softmax_j(l_ji) ] / 2

        Neither the student's nor the teacher's logits are stored: what the sum over j needs is the mean of the other
        side's features under the teacher's softmax. Value and gradients on many processes, whose batches must be even,
        are open_clip's, by the flags of :class:`ClipLoss`. A teacher that requires a gradient and a ``dist_loss`` of
        its own run open_clip's code.

        Shape:
            features [N, d], the teacher's [N, d'], scales as in :class:`ClipLoss`; two scalars, or ``{
            "contrastive_loss": scalar, "distill_loss": scalar}`` with ``output_dict=True``.
        """

        def forward(  # type: ignore[override]  # as open_clip's own
            self,
            image_features: Tensor,
            text_features: Tensor,
            logit_scale: Scalar,
            dist_image_features: Tensor,
            dist_text_features: Tensor,
            dist_logit_scale: Scalar,
            output_dict: bool = False,
        ) -> tuple[Tensor, Tensor] | dict[str, Tensor]:
            student = image_features, text_features, logit_scale
            teacher = dist_image_features, dist_text_features, dist_logit_scale
            if why := self._pycl_why_not() or _why_not(self, *student) or _why_not(self, *teacher) or taught(*teacher):
                fall_back(type(self).__name__, why)
                found = _DistillBase.forward(self, *student, *teacher, output_dict)
                return cast("tuple[Tensor, Tensor] | dict[str, Tensor]", found)
            clip_loss = self._fused(*student)
            flags = (self.local_loss, self.gather_with_grad) if self.world_size > 1 else None
            distilled = as_input(clip_loss + surplus(student, teacher, flags), image_features, "product")
            losses = as_input(clip_loss, image_features), distilled
            return dict(zip(("contrastive_loss", "distill_loss"), losses, strict=True)) if output_dict else losses

        def _pycl_why_not(self) -> str:
            return super()._pycl_why_not() or _DISTILL.replaced_in(self)

    _DISTILL = Hooks.of_all(_DistillBase)
    __all__ += ["CoCaLoss", "DistillClipLoss"]

__getattr__, __dir__ = forward_names(__name__, "open_clip.loss", "open_clip_torch")


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


def _why_not(loss: Any, image: Tensor, text: Tensor, *scalars: Scalar | None) -> str:
    """Why the loss of these features cannot be fused, or nothing."""
    if image.dim() != 2 or image.shape != text.shape or image.numel() == 0:
        return f"features that are not two of one shape [N, d]: {tuple(image.shape)} and {tuple(text.shape)}"
    if not image.is_floating_point() or image.device != text.device or not _multiply(image, text):
        return f"features of {image.dtype} on {image.device} and of {text.dtype} on {text.device}"
    if any(isinstance(s, Tensor) and s.numel() != 1 for s in scalars):
        return "a logit_scale or a logit_bias with more than one element"
    if loss.world_size > 1 and not is_rank(loss.rank, loss.world_size):
        return f"torch.distributed is not running as rank {loss.rank} of {loss.world_size}"
    return ""


def _multiply(a: Tensor, b: Tensor) -> bool:
    """Whether plain torch multiplies these: of one dtype, or of two that autocast makes one."""
    autocast = a.dtype != b.dtype and torch.is_autocast_enabled(a.device.type) and b.is_floating_point()
    return a.dtype == b.dtype or (autocast and torch.float64 not in (a.dtype, b.dtype))


def _patched(*functions: str) -> str:
    """What in open_clip.loss is no longer the function that open_clip gathers with, or nothing."""
    names = [name for name in functions if name in _FUNCTIONS and getattr(_PEER, name, None) is not _FUNCTIONS[name]]
    return f"another {names[0]} in open_clip.loss" if names else ""
