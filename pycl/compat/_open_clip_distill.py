# SPDX-License-Identifier: Apache-2.0
"""A teacher's soft targets for open_clip's ``DistillClipLoss``, without the teacher's logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from pycl.compat._common import check_even, nothing
from pycl.compat._open_clip_ranks import over_all_rows, world
from pycl.core.pairs import Points
from pycl.distributed.ranks import all_reduce_sum, gather_single
from pycl.engine.average import pair_average
from pycl.functional._common import Scalar, as_scalar, widen

Triple: TypeAlias = tuple[Tensor, Tensor, Scalar]  # images, texts and their logit scale


def taught(image: Tensor, text: Tensor, logit_scale: Scalar) -> str:
    """Why a teacher's targets are no constants, or nothing."""
    learns = any(isinstance(x, Tensor) and x.requires_grad for x in (image, text, logit_scale))
    return "a teacher that requires a gradient" if learns and torch.is_grad_enabled() else ""


def surplus(student: Triple, teacher: Triple, flags: tuple[bool, bool] | None) -> Tensor:
    """What the loss with the teacher's targets has above the one with targets of 1 for the own pair.

    Both have the same log-sum-exp. A softmax times a row of logits is the product with the softmax's mean of features.
    ``flags`` are ``local_loss`` and ``gather_with_grad`` on many ranks.
    """
    image, text, scale = student
    if flags is None:
        return nothing(image, text, scale) if len(image) == 1 else _surplus(student, teacher, ALONE)
    local_loss, gather_with_grad = flags
    check_even(image, group=world())
    columns = Columns(_gathered, _gathered, Tensor.detach)
    if gather_with_grad or not local_loss:
        columns = Columns(_Gathered.apply, _gathered, _same)
    if local_loss:
        return _surplus(student, teacher, columns)
    return over_all_rows(lambda scale: _surplus((image, text, scale), teacher, columns), (scale,), gather_with_grad)


def _surplus(student: Triple, teacher: Triple, columns: Columns) -> Tensor:
    image, text = widen(student[0]), widen(student[1])
    scale = as_scalar("dist_logit_scale", teacher[2])
    (by_image, by_text), (images, texts) = ([Points(of(x)) for x in teacher[:2]] for of in (_same, columns.teacher))
    of_text = pair_average(by_image, texts, columns.student(text), scale, offset=None)
    of_image = pair_average(by_text, images, columns.student(image), scale, offset=None)
    partners = image * (columns.own(text) - of_text) + text * (columns.own(image) - of_image)
    return as_scalar("logit_scale", student[2]) * partners.sum(1).mean() / 2


def _same(x: Tensor) -> Tensor:
    return x


class Columns(NamedTuple):
    """What the rows of a rank meet: functions of its features."""

    student: Callable[[Tensor], Tensor]  # all candidates
    teacher: Callable[[Tensor], Tensor]
    own: Callable[[Tensor], Tensor]  # the rows' partners


ALONE = Columns(_same, _same, _same)


class _Gathered(torch.autograd.Function):
    """All ranks' features, of one size; a rank's gradient is the sum of what the ranks have for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _gathered(x)

    @staticmethod
    def backward(ctx: Any, d_all: Tensor) -> Tensor:
        group = world()
        return all_reduce_sum(d_all.contiguous(), group).chunk(group.size())[group.rank()]


def _gathered(x: Tensor) -> Tensor:
    group = world()
    out = x.new_empty(group.size() * len(x), *x.shape[1:])
    gather_single(out, x.detach().contiguous(), group)
    return out
