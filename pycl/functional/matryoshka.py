# SPDX-License-Identifier: Apache-2.0
"""Any loss on several prefixes of the embeddings at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pycl.engine.validation import check_count
from pycl.functional._common import check_number, unit
from pycl.functional._prefixes import over_prefixes


def matryoshka(
    loss: Callable[..., Tensor], *views: Any, dims: Sequence[int], weights: Sequence[float] | None = None
) -> Tensor:
    r"""A loss summed over prefixes of the features, so that the first features serve alone.

    With ``v[:d]`` the first d features of every embedding, divided by their norm (with ``max(norm, 1e-12)``)::

        sum_k  weights_k  loss( v_1[:dims_k], v_2[:dims_k], ... )

    The arguments of the loss besides its views are bound beforehand::

        matryoshka(partial(pycl.functional.nt_xent, temperature=0.1, group="world"), (z1, z2), dims=(16, 64, 256))
        matryoshka(pycl.functional.info_nce, query, key, dims=(64, 128))

    On a CPU the prefixes of ``clip``, ``info_nce`` and ``nt_xent`` cost little more than the longest one alone: they
    come from one sweep (:func:`pycl.engine.prefix_stats`) where ``loss`` is that very function, or a
    ``functools.partial`` of it with no more than its scale, ``symmetric``, ``reduction`` and ``backend``. All lengths
    that are multiples of 32 share it, and the longest. The values are the same up to rounding. In bfloat16 the
    prefixes are then multiplied as they are, with sums in float32.

    Args:
        loss: called as ``loss(*views)`` with the prefixes in at least float32; returns a tensor of one shape.
        views: what the loss takes by position: embeddings ``[..., d]`` of floating point, with two axes or more, or
            sequences of them. Everything else, such as integer labels, is handed on as it is.
        dims: the lengths of the prefixes, each from 1 to d.
        weights: a number of each prefix; all 1 where None is given.

    Returns:
        What the loss returns.

    Raises:
        TypeError: a loss that is no function, dims that are not integers, weights that are not numbers.
        ValueError: no dims, one that is below 1 or beyond the features of a view, weights of another number than dims,
            no embeddings among the views.

    Kusupati et al., "Matryoshka Representation Learning", arXiv 2205.13147, equation 1, with contrastive losses as in
    its section on ALIGN.
    """
    if not callable(loss):
        raise TypeError(f"loss must be a function of the views, got {type(loss).__name__}")
    if not isinstance(dims, Sequence) or isinstance(dims, str) or len(dims) == 0:
        raise ValueError(f"dims must be a sequence of one length or more, got {dims!r}")
    lengths = [check_count("dims", dim) for dim in dims]
    factors = [1.0] * len(lengths) if weights is None else [_finite(weight) for weight in weights]
    if len(factors) != len(lengths):
        raise ValueError(f"weights must be as many as dims, {len(lengths)}, got {len(factors)}")
    widths = _widths(views)
    if not widths:
        raise ValueError("views must hold an embedding of floating point, [..., d] with two axes or more, got none")
    if max(lengths) > min(widths):
        raise ValueError(f"dims must be at most the number of features, {min(widths)}, got {max(lengths)}")
    found = over_prefixes(loss, views, lengths, factors)
    if found is not None:
        return found
    values = [factor * loss(*_prefix(views, dim)) for dim, factor in zip(lengths, factors, strict=True)]
    return torch.stack(values).sum(0)


def _finite(weight: float) -> float:
    return check_number("weights", weight, -torch.finfo(torch.float64).max, torch.inf)


def _is_embedding(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.dim() > 1


def _widths(x: Any) -> list[int]:
    if isinstance(x, (tuple, list)):
        return [width for y in x for width in _widths(y)]
    return [x.shape[-1]] if _is_embedding(x) else []


def _prefix(x: Any, dim: int) -> Any:
    if isinstance(x, (tuple, list)):
        return type(x)(_prefix(y, dim) for y in x)
    return unit(x[..., :dim]) if _is_embedding(x) else x
