# SPDX-License-Identifier: Apache-2.0
"""lightly's ``NTXentLoss``, within the batch and against a memory bank."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor
from torch.nn.functional import normalize

from pycl.compat._common import all_ranks, as_input
from pycl.compat._peer import fall_back, find_peer
from pycl.compat.lightly import _alone
from pycl.functional import info_nce, nt_xent
from pycl.functional._common import Scalar, widen

peer: Any = find_peer("lightly.loss") or _alone


class NTXentLoss(peer.NTXentLoss):
    r"""lightly's ``NTXentLoss``: SimCLR's loss, or MoCo's with ``memory_bank_size=(keys, features)``.

    With ``s`` the cosine over temperature, i and j over the N instances of both views (of all ranks with
    ``gather_distributed=True``) and b the other view of a::

        no bank:  mean over a, i of  log( sum_{j != i} exp s(a i, a j) + sum_j exp s(a i, b j) ) - s(a i, b i)
        a bank:   mean over i of     log( exp s(0 i, 1 i) + sum_k exp s(0 i, key_k) ) - s(0 i, 1 i)

    The logits are never stored. A bank's keys are the views ``out1`` of earlier steps, of all ranks with
    ``gather_distributed=True``; they change only when ``out0`` requires a gradient, and they are not in the
    ``state_dict``: as in lightly, a resumed run starts from random keys. The gradient on many processes is lightly's:
    what DistributedDataParallel averages is that of one process with all samples. Ranks may bring batches of
    different sizes, which lightly does not take. One instance without a bank gives 0 where lightly raises.

    For half outputs normalisation and sums are in float32, and the loss is rounded to their dtype, as lightly returns
    it (float32 under autocast). A negative temperature runs lightly's code.

    Shape:
        ``out0`` and ``out1`` [N, d]; a scalar.

    Raises:
        ValueError: a temperature of 0, a bank's size that is negative or without the number of features, outputs of
            differing shape.
    """

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        if is_negative(self.temperature):
            fall_back("NTXentLoss", "a negative temperature")
            return cast("Tensor", super().forward(out0, out1))
        if self.memory_bank.size[0] == 0:
            group = all_ranks() if self.gather_distributed else None
            return as_input(nt_xent((out0, out1), temperature=self.temperature, group=group), out0)
        query, key = (normalize(widen(out), dim=1) for out in (out0, out1))
        key, keys = self.memory_bank(key, update=query.requires_grad)
        keys = keys.t().to(query.device)
        return as_input(info_nce(query, key, keys, temperature=self.temperature, normalize=False), out0)


def is_negative(temperature: Scalar) -> bool:
    """A number below 0; a tensor is not looked at, which would wait for its device."""
    return not isinstance(temperature, Tensor) and temperature < 0
