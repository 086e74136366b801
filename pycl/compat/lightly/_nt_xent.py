# SPDX-License-Identifier: Apache-2.0
"""lightly's ``NTXentLoss``, within the batch and against a memory bank, and ``DirectCLRLoss``."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.nn.functional import normalize

from pycl.compat._common import all_ranks, as_input, check_even, is_negative, nothing, of_one_dtype
from pycl.compat._peer import fall_back, find_peer
from pycl.compat._plain import is_plain
from pycl.compat.lightly import _alone
from pycl.distributed.ranks import LOCAL
from pycl.functional import info_nce, nt_xent
from pycl.functional._common import widen

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
    what DistributedDataParallel averages is that of one process with all samples. Without a bank ranks may bring
    batches of different sizes, which lightly does not take. One instance without a bank gives exactly 0.

    ``cross_entropy`` may be any ``CrossEntropyLoss`` with a reduction alone; one with weights or smoothing, or anything
    else in its place, runs lightly's code, as do a negative temperature and a ``memory_bank`` with a ``forward`` of its
    own. For half outputs normalisation and sums are in float32, and the loss is rounded to their dtype, as lightly
    returns it (float32 under autocast).

    Shape:
        ``out0`` and ``out1`` [N, d]; a scalar, or with a cross entropy's ``reduction="none"`` [2N], [N] with a bank.

    Raises:
        RuntimeError: outputs of two dtypes outside autocast.
        ValueError: a temperature of 0, a bank's size that is negative or without the number of features, outputs of
            differing shape, a bank of all ranks' keys and batches of different sizes.
    """

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        if why := self._pycl_why_not():
            fall_back(type(self).__name__, why)
            return cast("Tensor", super().forward(out0, out1))
        reduction = self.cross_entropy.reduction
        out0, out1 = of_one_dtype(out0, out1)
        if self.memory_bank.size[0] == 0:
            return as_input(self._within(out0, out1, reduction), out0)
        query, key = (normalize(widen(out), dim=1) for out in (out0, out1))
        if self.memory_bank.gather_distributed and query.requires_grad:
            check_even(key, group=all_ranks())
        key, keys = self.memory_bank.forward(key, update=query.requires_grad)
        keys = keys.t().to(query.device)
        options = {"temperature": self.temperature, "normalize": False, "reduction": reduction, "group": LOCAL}
        loss = info_nce(query, key, keys, **options)
        return as_input(loss, out0)

    def _within(self, out0: Tensor, out1: Tensor, reduction: str) -> Tensor:
        group = all_ranks() if self.gather_distributed else None
        if group is None and out0.shape == out1.shape and len(out0) == 1:
            return nothing(out0, out1).expand(2 if reduction == "none" else ())  # its only candidate is the positive
        if reduction == "mean":
            return nt_xent((out0, out1), temperature=self.temperature, group=group or LOCAL)
        # lightly's sum is the rank's, pycl's the group's
        terms = nt_xent((out0, out1), temperature=self.temperature, reduction="none", group=group or LOCAL)
        return terms.sum() if reduction == "sum" else terms.flatten()

    def _pycl_why_not(self) -> str:
        """Why this loss runs lightly's code whatever it is given, or nothing."""
        if is_negative(self.temperature):
            return "a negative temperature"
        ce = self.cross_entropy
        plain = is_plain(ce, nn.CrossEntropyLoss) and ce.weight is None and not ce.label_smoothing
        if not plain or ce.ignore_index >= 0:
            return "a cross_entropy that is more than a reduction"
        bank = self.memory_bank
        if bank.forward != BANK_FORWARD.__get__(bank):
            return "a memory_bank with a forward of its own"
        return ""


class DirectCLRLoss(peer.DirectCLRLoss, NTXentLoss):
    """lightly's ``DirectCLRLoss``: :class:`NTXentLoss` of the first ``loss_dim`` features, without a projection head.

    Outputs [N, ...] are flattened first. The keys of a memory bank have ``loss_dim`` features.
    """


BANK_FORWARD = type(NTXentLoss().memory_bank).forward
