# SPDX-License-Identifier: Apache-2.0
"""Logits of anchors with candidates of their own, such as the hard negatives of each query."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pycl.core.pairs import Points
from pycl.core.problem import NORM_EPS, accumulation_dtype, check_whole
from pycl.engine.validation import embeddings_of, scale_of
from pycl.ops.autograd import apply
from pycl.ops.unit import unit


def own_logits(rows: Points, own: Tensor, logit_scale: float | Tensor = 1.0, *, normalize: bool = False) -> Tensor:
    r"""The logits of every anchor with its own M candidates.

    .. math:: l_{ik} = \mathrm{logit\_scale}_i \langle x_i, o_{ik} \rangle

    They are as many as the candidates' ``[m, M, d]`` numbers divided by d: nothing to be gained by not storing them. A
    softmax over a batch and over one's own candidates, each anchor's third block beside positives and negatives, is::

        stats = pair_stats(rows, cols, scale, denominator=Pairs.ALL, positives=Pairs.POSITIVE)
        lse = torch.logaddexp(stats.lse, own_logits(rows, own, scale).logsumexp(1))

    Args:
        rows: the anchors, ``z`` [m, d]; labels do not matter.
        own: [m, M, d], floating point, on the device of ``rows.z``.
        logit_scale: a number, or a tensor of shape [] or [m].
        normalize: divide every embedding by ``max(norm, 1e-12)``. The candidates' norms divide the logits, so that no
            normalised copy of them is kept.

    Returns:
        [m, M], float32 (float64 for float64 input), differentiable in reverse mode as often as one likes.

    Raises:
        TypeError: embeddings that are not floating point.
        ValueError: candidates of another shape or on another device.
    """
    z = embeddings_of("rows", rows.z)
    check_whole("own", own)
    if not isinstance(own, Tensor) or not own.is_floating_point():
        raise TypeError(f"own must be a floating-point tensor, got {getattr(own, 'dtype', type(own).__name__)}")
    m, d = z.shape
    if own.dim() != 3 or own.shape[0] != m or own.shape[2] != d:
        raise ValueError(f"own must have shape [{m}, M, {d}], the candidates of each row, got {tuple(own.shape)}")
    if own.device != z.device:
        raise ValueError(f"own must be on {z.device} as rows.z is, got {own.device}")
    dtype = accumulation_dtype(torch.promote_types(z.dtype, own.dtype))
    scale = scale_of(logit_scale, z, dtype, alone=True)
    x, candidates = z.to(dtype), own.to(dtype)
    with torch.autocast(z.device.type, enabled=False):
        products = apply(_Cosines, unit(x), candidates)[0] if normalize else _products(x, candidates)
    return products * scale.unsqueeze(-1)


def _products(x: Tensor, own: Tensor) -> Tensor:
    return (own @ x.unsqueeze(2)).squeeze(2)


def _cosines(x: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """With unit vectors x, and the norms."""
    norm = torch.linalg.vector_norm(own, dim=2, dtype=torch.float64)  # squares may leave float32's range
    norm = norm.clamp_min(NORM_EPS).to(x.dtype)
    return _products(x, own) / norm, norm


class _Cosines(torch.autograd.Function):
    """The cosines of unit vectors with candidates. Its gradient makes two tensors of their size, autograd's six."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        return _cosines(x, own)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        x, own, cosines, norm = ctx.saved_tensors
        if torch.is_grad_enabled():  # what follows is differentiated again
            cosines, norm = _cosines(x, own)
        with torch.autocast(x.device.type, enabled=False):
            across = gradient / norm
            along = (-cosines / norm).masked_fill(norm <= NORM_EPS, 0)
            d_own = (own * along.unsqueeze(2)).add_(x.unsqueeze(1)) * across.unsqueeze(2)
            return (across.unsqueeze(1) @ own).squeeze(1), d_own
