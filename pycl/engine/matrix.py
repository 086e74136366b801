# SPDX-License-Identifier: Apache-2.0
"""The logits themselves, for looking at the matrix: all of them, or the largest of every anchor."""

from __future__ import annotations

from typing import Literal, cast, overload

import torch
from torch import Tensor

from pycl.backends import registry
from pycl.core.pairs import Pairs, Points
from pycl.engine.validation import check_choice, check_k, one_set, problem_of
from pycl.ops.autograd import LogitsFunction, apply
from pycl.ops.schemas import operators


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


@overload
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
    sides: Literal["rows"] = "rows",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...
@overload
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
    sides: Literal["both"],
    backend: str | None = None,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]: ...
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
    sides: Literal["rows", "both"] = "rows",
    backend: str | None = None,
) -> tuple[Tensor, Tensor] | tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The k largest logits of every anchor over a pair set, and whose they are, without the matrix.

    Among equal logits the candidate with the lowest index comes first; a NaN is larger than every number. A logit of
    ``-inf`` is no candidate. Not differentiable: gather the candidates and compute their logits again.

    Args:
        k: how many, ``1 <= k <= n``, and ``k <= m`` with both sides.
        sides: ``"both"`` returns the tops of the columns too, ``((values, index), (values, index))``; on a CPU from
            the same sweep. The other arguments, and the errors from them, are those of ``pair_logits``.

    Returns:
        Values [m, k] in float32 (float64 for float64 input), descending, and int64 indices [m, k]. An anchor with
        fewer than k candidates has values of ``-inf`` and indices of -1 in the places left over.

    Raises:
        TypeError: a k that is no integer.
        ValueError: a k outside ``1 .. n``, or ``1 .. min(m, n)`` with both sides; an unknown ``sides``.
    """
    check_choice("sides", sides, ("rows", "both"))
    args = problem_of(rows, cols, logit_scale, one_set(pairs), row_bias, col_bias, offset, normalize)
    both = sides == "both"
    k = check_k(k, min(args.n_cols(), len(args.rows)) if both else args.n_cols())
    name = registry.choose(backend, rows.z.device.type, args.rows.dtype)
    found = operators.pair_top(*args.as_rectangular(), k, both, name)
    of_rows, of_cols = (found[0], found[1]), (found[2], found[3])
    return (of_rows, of_cols) if both else of_rows
