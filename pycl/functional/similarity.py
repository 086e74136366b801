# SPDX-License-Identifier: Apache-2.0
"""The similarities themselves: the matrix, its largest entries, its histogram."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import embedding

from pycl.core.pairs import Points
from pycl.engine.matrix import pair_logits, pair_top
from pycl.engine.validation import check_count
from pycl.engine.views import check_labels
from pycl.functional._common import Scalar, as_scalar, check_features, no_autocast, unit

ROWS, COLUMNS = 256, 4096  # one tile of similarities: 4 MiB of float32


def similarity(
    x: Tensor,
    y: Tensor | None = None,
    *,
    logit_scale: Scalar = 1.0,
    normalize: bool = True,
    backend: str | None = None,
) -> Tensor:
    r"""The matrix ``logit_scale <x_i, y_j>`` itself, with gradients to all three.

    The norms and the scale go into the rows before the product, so the matrix is written once.

    Args:
        x: ``[M, d]``; float64, float32, bfloat16 or float16.
        y: ``[N, d]``, or None for x itself.
        logit_scale: number or 0-d tensor.
        normalize: L2-normalise the rows of both first.
        backend: None chooses by device; otherwise ``"cpu" | "triton" | "cuda" | "reference"``.

    Returns:
        ``[M, N]`` in the dtype of the inputs; products accumulate in at least float32. Differentiable once.

    Raises:
        TypeError: inputs that are not floating point.
        ValueError: differing numbers of features or devices, an empty input, an unknown backend.
        RuntimeError: a backend that is not built; a second derivative.
    """
    x, y = _pair(x, y)
    scale = as_scalar("logit_scale", logit_scale)
    return pair_logits(Points(x), Points(y), scale, normalize=normalize, backend=backend)


def similarity_topk(
    x: Tensor, y: Tensor, k: int, *, normalize: bool = True, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    r"""The k largest ``<x_i, y_j>`` of every row, without the matrix.

    Tiles of the matrix are searched one after the other, in at least float32. Among equal similarities the lowest
    j comes first; a NaN counts as the largest, as in ``torch.topk``. The values are differentiable: they are computed
    again as dot products with the chosen rows of y (``[M, k, d]`` memory) where a gradient is wanted.

    Args:
        x: ``[M, d]``; float64, float32, bfloat16 or float16.
        y: ``[N, d]``, N >= k. With ``y = x`` every point is its own first neighbour,
            or one that is equal to it: products of equal rows may differ in the last bit.
        k: how many, k >= 1.
        normalize: L2-normalise the rows of both first.
        backend: None chooses by device; otherwise ``"cpu" | "triton" | "cuda" | "reference"``.

    Returns:
        Values ``[M, k]``, descending, float32 (float64 for float64 input), and int64 indices ``[M, k]``. A similarity
        that overflows to ``-inf`` has the index -1.

    Raises:
        TypeError: inputs that are not floating point, a k that is no integer.
        ValueError: differing numbers of features or devices, an empty input, k not in ``1 .. N``, an unknown backend.
        RuntimeError: a backend that is not built.
    """
    check_features(x=x, y=y)
    values, index = pair_top(Points(x), Points(y), k, normalize=normalize, backend=backend)
    if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
        # the sums into rows of y that several have chosen come in one order, which those of an index do not
        chosen = embedding(index.clamp_min(0), unit(y, normalize))
        again = (unit(x, normalize).unsqueeze(1) * chosen).sum(-1)
        values = torch.where(index < 0, values, again)
    return values, index


def similarity_histogram(
    x: Tensor,
    y: Tensor | None = None,
    *,
    bins: int = 100,
    ids: Tensor | tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Histograms of the cosine similarities of positive and of negative pairs, without the matrix.

    Ordered pairs are counted, so without y each pair of points counts twice; a point with itself never counts.
    A pair is positive where the ids agree. Without ids: positives are the pairs ``i == j`` of x and y, and without y
    every pair is a negative. Pairs whose similarity is NaN are left out. No gradients.

    Args:
        x: ``[M, d]``; float64, float32, bfloat16 or float16.
        y: ``[N, d]``, or None to compare the points of x with each other.
        bins: how many bins of equal width on ``[-1, 1]``.
        ids: int ``[M]`` (for y too, where it is given), or a pair of int ``[M]`` and ``[N]``.

    Returns:
        Counts of positives int64 ``[bins]``, counts of negatives int64 ``[bins]``, edges ``[bins + 1]``. A bin holds
        its lower edge; the last bin holds 1 as well.

    Raises:
        TypeError: features that are not floating point, ids or bins that are not integers.
        ValueError: differing numbers of features or devices, an empty input, bins < 1, ids of another length.
    """
    bins = check_count("bins", bins)
    within = y is None
    x, y = _pair(x, y)
    if ids is None:
        own = torch.arange(len(x), device=x.device), torch.arange(len(y), device=x.device)
    else:
        x_ids, y_ids = ids if isinstance(ids, tuple) else (ids, ids)
        own = check_labels(x_ids, len(x), x), check_labels(y_ids, len(y), y)
    counts = torch.zeros(2, bins, dtype=torch.int64, device=x.device)
    with torch.no_grad(), no_autocast(x):
        x, y = unit(x), unit(y)
        for i, j in _tiles(len(x), len(y)):
            cosine = x[i] @ y[j].T
            positive = own[0][i, None] == own[1][None, j]
            wanted = cosine.isfinite()
            if within:
                wanted &= torch.arange(len(x), device=x.device)[i, None] != torch.arange(len(y), device=x.device)[j]
            at = ((cosine + 1) * (bins / 2)).floor().clamp(0, bins - 1)
            for count, chosen in zip(counts, (~positive, positive), strict=True):
                count += torch.bincount(at[chosen & wanted].to(torch.int64), minlength=bins)
    return counts[1], counts[0], torch.linspace(-1, 1, bins + 1, dtype=x.dtype, device=x.device)


def _tiles(m: int, n: int) -> Iterator[tuple[slice, slice]]:
    for tile in range(math.ceil(m / ROWS) * (across := math.ceil(n / COLUMNS))):
        row, column = divmod(tile, across)
        yield slice(row * ROWS, (row + 1) * ROWS), slice(column * COLUMNS, (column + 1) * COLUMNS)


def _pair(x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
    if y is None:
        check_features(x=x)
        return x, x
    check_features(x=x, y=y)
    return x, y
