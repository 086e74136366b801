# SPDX-License-Identifier: Apache-2.0
"""lightly's ``DCLLoss`` and ``DCLWLoss``."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import normalize

from pycl.compat._common import all_ranks, as_input, is_negative, of_one_dtype
from pycl.compat._peer import Hooks, fall_back, find_peer
from pycl.compat.lightly import _alone
from pycl.distributed.ranks import LOCAL, Group, together
from pycl.engine.reduction import reduce
from pycl.functional import dcl
from pycl.functional._common import Scalar, to_logit_scale, widen

peer: Any = find_peer("lightly.loss") or _alone
HOOKS = Hooks(peer.DCLLoss, "_loss")


class DCLLoss(peer.DCLLoss):
    r"""lightly's ``DCLLoss``: NT-Xent without the positive in the denominator, its positives weighted.

    With ``s`` the cosine over temperature, j over the instances (of all ranks with ``gather_distributed=True``), b the
    other view of a and ``w_a = weight_fn(u_a, u_b)``, 1 without a ``weight_fn``::

        mean over a, i of  log sum_{j != i} ( exp s(a i, a j) + exp s(a i, b j) ) - w_a[i] s(a i, b i)

    The logits are never stored. ``weight_fn`` gets this rank's normalised views, in at least float32, and gradients
    flow through what it returns, as in lightly; so does the gradient on many processes: what DistributedDataParallel
    averages is that of one process with all samples, also where ranks bring batches of different sizes, which lightly
    does not take. One instance has no negatives: its first term is 0, where lightly returns -inf.

    A subclass with a ``_loss`` of its own and a negative temperature run lightly's code. For half outputs normalisation
    and sums are in float32, and the loss is rounded to the dtype that lightly returns: theirs, under autocast that of
    autocast on a CPU and float32 on a GPU.

    Shape:
        ``out0`` and ``out1`` [N, d]; a scalar.

    Raises:
        RuntimeError: outputs of two dtypes outside autocast.
        ValueError: outputs of differing shape, a temperature of 0.
    """

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        if why := self._pycl_why_not():
            fall_back(type(self).__name__, why)
            return cast("Tensor", super().forward(out0, out1))
        out0, out1 = of_one_dtype(out0, out1)
        group = all_ranks() if self.gather_distributed else None
        loss = _weighted(out0, out1, self.temperature, self.weight_fn, group=group)
        return as_input(loss, out0, "product")

    def _pycl_why_not(self) -> str:
        """Why this loss runs lightly's code whatever it is given, or nothing."""
        return "a negative temperature" if is_negative(self.temperature) else HOOKS.replaced_in(self)


@together
def _weighted(out0: Tensor, out1: Tensor, temperature: Scalar, weight_fn: Any, *, group: Group | None) -> Tensor:
    loss = dcl((out0, out1), temperature=temperature, group=group or LOCAL)
    if not weight_fn:  # as lightly asks
        return loss
    u0, u1 = (normalize(widen(out), dim=1) for out in (out0, out1))
    surplus = 2 - weight_fn(u0, u1) - weight_fn(u1, u0)
    return loss + reduce(surplus * (u0 * u1).sum(1), "mean", group) * to_logit_scale(temperature) / 2


class DCLWLoss(DCLLoss, peer.DCLWLoss):
    r"""lightly's ``DCLWLoss``: :class:`DCLLoss` with :func:`negative_mises_fisher_weights` at ``sigma``.

    As in lightly the weights are constants and their softmax runs over this rank's batch. Shapes, dtypes and errors
    are those of :class:`DCLLoss`.
    """

    def __init__(self, temperature: float = 0.1, sigma: float = 0.5, gather_distributed: bool = False) -> None:
        super().__init__(temperature=temperature, sigma=sigma, gather_distributed=gather_distributed)
        # lightly's own copies a tensor by torch.tensor, with a warning at every step
        self.weight_fn = partial(negative_mises_fisher_weights, sigma=sigma)


@torch.no_grad()
def negative_mises_fisher_weights(out0: Tensor, out1: Tensor, sigma: float = 0.5) -> Tensor:
    """``2 - N softmax_i(<out0_i, out1_i> / sigma)``, constants that average 1, [N]."""
    return 2 - len(out0) * ((out0 * out1).sum(1) / sigma).softmax(0)
