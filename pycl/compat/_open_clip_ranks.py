# SPDX-License-Identifier: Apache-2.0
"""open_clip's ``ClipLoss`` on many ranks: its four combinations of ``local_loss`` and ``gather_with_grad``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from pycl.core.pairs import Pairs, Points
from pycl.distributed.ranks import Agreement, Group, all_reduce_sum, together
from pycl.engine.reduction import share_of
from pycl.engine.reductions import agreed_stats
from pycl.functional._common import Scalar, as_scalar, expand_scalar


class _OfAllRows(torch.autograd.Function):
    """The mean of the ranks' losses, whose gradient goes, times ``weight``, to the rank's own."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, weight: float, group: dist.ProcessGroup) -> Tensor:
        ctx.weight = weight
        return all_reduce_sum(loss, group) / group.size()

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
        return all_reduce_sum(d_value, ctx.group) * ctx.weight, None, None


def over_all_rows(local: Callable[..., Tensor], scalars: Sequence[Scalar | None], gather_with_grad: bool) -> Tensor:
    """``local_loss=False``: open_clip computes all rows on every rank, this each rank's rows once.

    ``local`` makes the rank's loss of the scalars, with gradients to the features of all ranks.
    """
    group = world()
    part = 1 / group.size()
    # its gradient at the features is W times that of the mean over all rows, which open_clip has with gathered
    # gradients; its gradients at the scalars are one rank's share of W
    of_loss, of_scalars = (1.0, part) if gather_with_grad else (part, 1.0)
    shared = [_Shared.apply(x, of_scalars, group) if isinstance(x, Tensor) else x for x in scalars]
    return cast("Tensor", _OfAllRows.apply(local(*shared), of_loss, group))


def against_constants(image: Tensor, text: Tensor, logit_scale: Scalar, logit_bias: Scalar | None) -> Tensor:
    """``local_loss=True, gather_with_grad=False``: the gathered columns, the rank's own among them, get no gradient."""
    return _against_constants(image, text, logit_scale, logit_bias, group=world())


@together
def _against_constants(
    image: Tensor, text: Tensor, logit_scale: Scalar, logit_bias: Scalar | None, *, group: Group | None
) -> Tensor:
    scale = as_scalar("logit_scale", logit_scale)
    bias = None if logit_bias is None else expand_scalar("logit_bias", logit_bias, image)

    def terms(rows: Tensor, cols: Tensor) -> tuple[Tensor, Agreement | None]:
        stats, everyone = agreed_stats(
            Points(rows),
            Points(cols.detach()),
            scale,
            denominator=Pairs.ALL,
            positives=Pairs.SELF,
            row_bias=bias,
            group=group,
        )
        return stats.lse - stats.pos_sum, everyone

    (of_images, everyone), (of_texts, _) = terms(image, text), terms(text, image)
    return share_of(of_images + of_texts, "mean", everyone) / 2


def world() -> dist.ProcessGroup:
    return cast("dist.ProcessGroup", dist.group.WORLD)


def is_rank(rank: int, world_size: int) -> bool:
    running = dist.is_available() and dist.is_initialized()
    return running and (dist.get_rank(), dist.get_world_size()) == (rank, world_size)
