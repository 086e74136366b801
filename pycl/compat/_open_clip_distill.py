# SPDX-License-Identifier: Apache-2.0
"""A teacher's soft targets for open_clip's ``DistillClipLoss``, without the teacher's logits."""

from __future__ import annotations

import torch
from torch import Tensor

from pycl.compat._common import nothing
from pycl.engine import pair_average
from pycl.functional._common import Scalar, as_scalar, widen
from pycl.pairs import Points


def taught(image: Tensor, text: Tensor, logit_scale: Scalar) -> str:
    """Why a teacher's targets are no constants, or nothing."""
    learns = any(isinstance(x, Tensor) and x.requires_grad for x in (image, text, logit_scale))
    return "a teacher that requires a gradient" if learns and torch.is_grad_enabled() else ""


def surplus(
    image: Tensor,
    text: Tensor,
    logit_scale: Scalar,
    teacher_image: Tensor,
    teacher_text: Tensor,
    teacher_scale: Scalar,
) -> Tensor:
    """What the loss with the teacher's targets has above the one with targets of 1 for the own pair.

    Both have the same log-sum-exp. A softmax times a row of logits is the product with the softmax's mean of features.
    """
    if len(image) == 1:
        return nothing(image, text, logit_scale)
    image, text = widen(image), widen(text)
    scale = as_scalar("dist_logit_scale", teacher_scale)
    of_text = pair_average(Points(teacher_image), Points(teacher_text), text, scale)
    of_image = pair_average(Points(teacher_text), Points(teacher_image), image, scale)
    own = 2 * (image * text).sum(1)
    return as_scalar("logit_scale", logit_scale) * (own - (image * of_text + text * of_image).sum(1)).mean() / 2
