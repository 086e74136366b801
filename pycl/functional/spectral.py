# SPDX-License-Identifier: Apache-2.0
"""The spectral contrastive loss."""

from __future__ import annotations

import torch
from torch import Tensor

from pycl.backends import registry
from pycl.core.pairs import Pairs, Points
from pycl.core.tracing import observed
from pycl.distributed.ranks import Agreement, Group, agree, all_reduce_sum_differentiable, of_the_batch
from pycl.engine.reduction import share_of
from pycl.engine.reductions import pair_sum
from pycl.functional._common import check_matched, no_autocast, unit


@of_the_batch
def spectral(
    x: Tensor, y: Tensor, *, normalize: bool = False, group: Group | None = None, backend: str | None = None
) -> Tensor:
    r"""Spectral contrastive loss: positive pairs agree, all others are orthogonal.

    ::

        -2 mean_i <x_i, y_i>  +  mean_{i != j} <x_i, y_j>^2

    Features are taken as they are given (``normalize=False``). The authors' code shortens those that are longer than
    sqrt(mu) first; here mu is 1 and nothing is shortened. One instance has no second term.

    The second term is ``<x^T x, y^T y>`` less its diagonal where there are twice as many instances as features, and
    there takes [d, d] memory; otherwise it is summed over the pairs. ``torch.compile`` always gets the pairs.

    Args:
        x: ``[N, d]``; float64, float32, bfloat16 or float16.
        y: ``[N, d]``; row i is the positive of ``x_i``.
        normalize: L2-normalise both inside.
        group: ranks that share the batch, each with instances of its own: see :mod:`pycl.distributed`.
        backend: name of the backend to run on; None picks one.

    Returns:
        A scalar; float32 (float64 for float64 input).

    Raises:
        TypeError: features that are not floating point.
        ValueError: differing shapes or devices, an empty batch, an unknown backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    HaoChen et al., "Provable Guarantees for Self-Supervised Deep Learning with Spectral Contrastive Loss", arXiv
    2106.04156, equation 6; the unbiased estimate of the released code, without its clip.
    """
    check_matched(x=x, y=y)
    registry.choose(backend, x.device.type, torch.promote_types(x.dtype, y.dtype))
    everyone = agree(
        group, x.device, [x.shape[0]], operator="spectral", normalize=normalize, dtype=str(x.dtype), d=x.shape[1]
    )
    u, v = unit(x, normalize), unit(y, normalize)
    own = (u * v).sum(1)
    n = x.shape[0] if everyone is None else everyone.n
    if observed() or n < 2 * x.shape[1]:
        squares = pair_sum(
            Points(x),
            Points(y),
            negatives=Pairs.NEGATIVE,
            offset=None,
            map="square",
            normalize=normalize,
            reduction="sum",
            group=group,
            backend=backend,
        )
    else:
        squares = _of_all_pairs(u, v, everyone) - share_of(own.square(), "sum", everyone)
    return squares / max(n * (n - 1), 1) - 2 * share_of(own, "mean", everyone)


def _of_all_pairs(u: Tensor, v: Tensor, everyone: Agreement | None) -> Tensor:
    """``sum_ij <u_i, v_j>^2`` from the two Gram matrices of features, the same on all ranks."""
    with no_autocast(u):
        grams = torch.stack([u.T @ u, (v.T @ v).to(u.dtype)])
    if everyone is not None:
        grams = all_reduce_sum_differentiable(grams, everyone.group)
    return (grams[0] * grams[1]).sum()
