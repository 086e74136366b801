# SPDX-License-Identifier: Apache-2.0
"""MVCNet: signals and their augmentations, each through a convolutional and a transformer branch."""

from __future__ import annotations

import torch
from torch import Tensor

from pycl.core.pairs import Pairs, Points
from pycl.engine.reductions import pair_cross_entropy
from pycl.functional._common import Scalar, check_matched, to_logit_scale, unit


def mvcnet(
    cnn: Tensor, transformer: Tensor, *, temperature: Scalar = 0.2, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    r"""The cross-view and the cross-model loss of MVCNet.

    With ``c_v, t_v`` the features of view v of N signals, view 0 the raw one, and NTX :func:`pycl.functional.nt_xent`
    of two sets of points, a mean over all of them::

        cross_view  = mean over v = 1..V of NTX( [c_0; t_0], [c_v; t_v] )     4N points; the positive: same branch
        cross_model = NTX( [c_0; ..; c_V], [t_0; ..; t_V] )                   2(1+V)N points; the positive: same view

    Other features of the same signal are negatives in both, as in the authors' code. Its total is cross entropy plus
    0.1 of each. The V + 1 calls meet some pairs of points twice: 56 blocks of N x N with V = 3, of which 32 differ.

    Args:
        cnn, transformer: ``[1 + V, N, d]``; entry 0 is the raw signal.
        temperature: positive number or 0-d tensor.
        backend: name of the backend to run on; None picks one.

    Returns:
        ``(cross_view, cross_model)``; without augmented views, V = 0, the first is 0 and has no gradient.

    Raises:
        TypeError: inputs that are not floating point.
        ValueError: differing shapes or devices, an empty batch, a temperature that is not positive, an unknown backend.
        RuntimeError: the backend asked for is not built.

    "MVCNet: Multi-View Contrastive Network for Motor Imagery Classification", Knowledge-Based Systems, 2025,
    arXiv 2502.17482; the formula is the released code's, whose cosines take a tensor of all pairs times d.
    """
    flat = _flat("cnn", cnn), _flat("transformer", transformer)
    check_matched(cnn=flat[0], transformer=flat[1])
    if cnn.shape != transformer.shape:
        given = f"{tuple(cnn.shape)} and {tuple(transformer.shape)}"
        raise ValueError(f"cnn and transformer must have one and the same shape [1 + V, N, d], got {given}")
    scale = to_logit_scale(temperature)
    # normalised once for all calls: a zero row's gradients, added in float16, leave its range
    c, t = (unit(z).view_as(cnn) for z in flat)

    def nt_xent(*halves: Tensor) -> Tensor:
        return pair_cross_entropy(
            Points(torch.cat(halves), n_views=2),
            None,
            scale,
            denominator=Pairs.OTHERS,
            positives=Pairs.POSITIVE,
            reduction="mean",
            backend=backend,
        )

    cross_model = nt_xent(c.flatten(0, 1), t.flatten(0, 1))
    terms = [nt_xent(c[0], t[0], c[v], t[v]) for v in range(1, len(cnn))]
    if not terms:
        return torch.zeros_like(cross_model), cross_model
    return torch.stack(terms).mean(), cross_model


def _flat(name: str, features: Tensor) -> Tensor:
    if not isinstance(features, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(features).__name__}")
    if features.dim() != 3:
        raise ValueError(f"{name} must have shape [1 + V, N, d], got {tuple(features.shape)}")
    return features.flatten(0, 1)
