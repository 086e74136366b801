# SPDX-License-Identifier: Apache-2.0
"""The logits themselves, for looking at the matrix: all of them, or the largest of every anchor."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from pycl.backends import registry
from pycl.core.pairs import Pairs, Points
from pycl.engine.validation import check_k, one_set, problem_of
from pycl.ops.autograd import LogitsFunction, apply


def pair_logits(
    rows: Points,
    cols: Points | None = None,
    logit_scale: float | Tensor = 1.0,
    *,
    pairs: Pairs = Pairs.ALL,
    row_bias: Tensor | None = None,
    col_bias: Tensor | None = None,
    offset: int | None = 0,
    normalize: bool = False,
    backend: str | None = None,
) -> Tensor:
    r"""The matrix of logits itself, [m, n] in the dtype of the embeddings, ``-inf`` where a pair is not in ``pairs``.

    .. math:: l_{ij} = \mathrm{logit\_scale}_i \langle x_i, y_j \rangle + \mathrm{row\_bias}_i + \mathrm{col\_bias}_j

    Normalisation, scale, biases and mask are part of the product, which accumulates in at least float32.
    Differentiable once with respect to both ``z``, ``logit_scale`` and both biases; what comes back for a pair outside
    the set is ignored, whatever it is. Arguments and errors are those of ``pair_stats``.
    """
    args = problem_of(rows, cols, logit_scale, one_set(pairs), row_bias, col_bias, offset, normalize)
    name = registry.choose(backend, rows.z.device.type, args.rows.dtype)
    return cast("Tensor", apply(LogitsFunction, *args.as_rectangular(), name))


@torch.no_grad()
def pair_top(
    rows: Points,
    cols: Points | None,
    k: int,
    logit_scale: float | Tensor = 1.0,
    *,
    pairs: Pairs = Pairs.ALL,
    row_bias: Tensor | None = None,
    col_bias: Tensor | None = None,
    offset: int | None = 0,
    normalize: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The k largest logits of every anchor over a pair set, and whose they are, without the matrix.

    Among equal logits the candidate with the lowest index comes first; a NaN is larger than every number. A logit of
    ``-inf`` is no candidate. Not differentiable: gather the candidates and compute their logits again.

    Args:
        k: how many, ``1 <= k <= n``. The other arguments, and the errors from them, are those of ``pair_logits``.

    Returns:
        Values [m, k] in float32 (float64 for float64 input), descending, and int64 indices [m, k]. An anchor with
        fewer than k candidates has values of ``-inf`` and indices of -1 in the places left over.

    Raises:
        TypeError: a k that is no integer.
        ValueError: a k outside ``1 .. n``.
    """
    args = problem_of(rows, cols, logit_scale, one_set(pairs), row_bias, col_bias, offset, normalize)
    k = check_k(k, args.n_cols())
    name = registry.choose(backend, rows.z.device.type, args.rows.dtype)
    return cast("tuple[Tensor, Tensor]", torch.ops.pycl.pair_top(*args.as_rectangular(), k, name))
