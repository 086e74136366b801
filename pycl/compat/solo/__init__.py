# SPDX-License-Identifier: Apache-2.0
"""solo-learn's functions: ``from pycl.compat.solo import simclr_loss_func`` instead of ``from solo.losses.simclr``.

As solo-learn's, all but ``mocov2plus_loss_func``, ``ressl_loss_func`` and ``swav_loss_func`` gather from all ranks
wherever ``torch.distributed`` is initialised, and what DistributedDataParallel averages is the gradient of one process
with all samples, also where ranks bring batches of different sizes, which solo-learn does not take. Half inputs are
summed in float32. Every other name of ``solo.losses`` is solo-learn's own, where it is installed.
"""

from __future__ import annotations

from pycl.compat._peer import forward_names
from pycl.compat.solo._momentum import mocov2plus_loss_func, mocov3_loss_func, ressl_loss_func
from pycl.compat.solo._swav import SinkhornKnopp, swav_loss_func
from pycl.compat.solo._within import nnclr_loss_func, simclr_loss_func

__all__ = [
    "SinkhornKnopp",
    "mocov2plus_loss_func",
    "mocov3_loss_func",
    "nnclr_loss_func",
    "ressl_loss_func",
    "simclr_loss_func",
    "swav_loss_func",
]
__getattr__, __dir__ = forward_names(
    __name__, "solo.losses", "solo-learn", "git+https://github.com/vturrisi/solo-learn"
)
