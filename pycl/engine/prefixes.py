# SPDX-License-Identifier: Apache-2.0
"""Statistics over several prefixes of the features, each with norms of its own, from one sweep where that is faster."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor

from pycl.backends import registry
from pycl.core.pairs import Pairs, Points
from pycl.core.problem import MAX_PREFIXES, N_RESULTS, NORM_EPS, PREFIX_UNIT, Problem, accumulation_dtype
from pycl.distributed.ranks import Group
from pycl.engine.reductions import SIDES, PairStats, backend_of, pair_stats
from pycl.engine.validation import check_choice, check_prefixes, problem_of
from pycl.ops.autograd import PrefixFunction, apply

# the statistics of the rows, and those of the columns where both are wanted
Found = tuple[PairStats, ...]


@overload
def prefix_stats(
    rows: Points,
    cols: Points | None = None,
    logit_scale: float | Tensor = 1.0,
    *,
    prefixes: Sequence[int],
    denominator: Pairs,
    positives: Pairs = Pairs.NONE,
    offset: int | None = 0,
    sides: Literal["rows"] = "rows",
    group: Group | None = None,
    backend: str | None = None,
) -> PairStats: ...
@overload
def prefix_stats(
    rows: Points,
    cols: Points | None = None,
    logit_scale: float | Tensor = 1.0,
    *,
    prefixes: Sequence[int],
    denominator: Pairs,
    positives: Pairs = Pairs.NONE,
    offset: int | None = 0,
    sides: Literal["both"],
    group: Group | None = None,
    backend: str | None = None,
) -> tuple[PairStats, PairStats]: ...
def prefix_stats(
    rows: Points,
    cols: Points | None = None,
    logit_scale: float | Tensor = 1.0,
    *,
    prefixes: Sequence[int],
    denominator: Pairs,
    positives: Pairs = Pairs.NONE,
    offset: int | None = 0,
    sides: Literal["rows", "both"] = "rows",
    group: Group | None = None,
    backend: str | None = None,
) -> PairStats | tuple[PairStats, PairStats]:
    r"""``pair_stats`` of normalised embeddings for several prefixes of their features (Matryoshka embeddings).

    .. math:: l_{kij} = \mathrm{logit\_scale}_i
              \frac{\langle x_i[:d_k], y_j[:d_k] \rangle}{\max(\|x_i[:d_k]\|, \epsilon) \max(\|y_j[:d_k]\|, \epsilon)}

    with :math:`\epsilon` = 1e-12. The backend ``"cpu"`` computes all products of one sweep as running sums, so that all
    prefixes cost what the longest one does and some exponentials. That holds for the longest prefix and for those that
    are multiples of 32. The others, all of them in a ``group``, and those of every other backend take a sweep each,
    with the same result. From one sweep a prefix counts as zero where it is shorter than 1e-18 times (float64: 1e-150
    times) the largest entry of its row up to the longest prefix.

    Args:
        prefixes: their lengths, ascending, each from 1 to d.
        rows: the other arguments, and the errors from them, are those of ``pair_stats``.

    Returns:
        ``PairStats`` of the rows, or with ``sides="both"`` those of the rows and of the columns; fields are [K, m] for
        K prefixes. Differentiable once with respect to both ``z`` and ``logit_scale``. A row whose prefix is shorter
        than epsilon has its gradient divided by epsilon; in float16, where that leaves the range, such a gradient is 0
        or the largest number.

    Raises:
        TypeError: prefixes that are no sequence of integers.
        ValueError: no prefix, prefixes that do not ascend or exceed the number of features.

    Kusupati et al., "Matryoshka Representation Learning", arXiv 2205.13147.
    """
    check_choice("sides", sides, SIDES)
    sets = {"denominator": denominator, "positives": positives}
    args = problem_of(rows, cols, logit_scale, sets, None, None, offset, False, group)
    ends = check_prefixes(prefixes, args.rows.shape[1])
    name = backend_of(args, backend)
    together = of_one_sweep(ends) if group is None and registry.has(name, "prefix_stats") else ()

    def alone(end: int) -> Found:
        x, y = (None if p is None else p._replace(z=p.z[:, :end]) for p in (rows, cols))
        more: dict[str, Any] = {**sets, "offset": offset, "normalize": True, "group": group, "backend": name}
        if sides == "both":
            return pair_stats(cast("Points", x), y, logit_scale, sides="both", **more)
        return (pair_stats(cast("Points", x), y, logit_scale, sides="rows", **more),)

    of_ends = {end: alone(end) for end in ends if end not in together}
    swept = _swept(args, together, sides == "both", name) if together else ()
    found = _in_order(ends, of_ends, together, swept) if of_ends else swept
    return found[0] if sides == "rows" else (found[0], found[-1])


def of_one_sweep(ends: Sequence[int]) -> tuple[int, ...]:
    """Those that one sweep serves, if there are several."""
    fitting = *(end for end in ends[:-1] if end % PREFIX_UNIT == 0), ends[-1]
    return fitting[-MAX_PREFIXES:] if len(fitting) > 1 else ()


def _swept(args: Problem, ends: Sequence[int], both_sides: bool, backend: str) -> Found:
    """The statistics for prefixes that one sweep serves."""
    x, of_rows = _points(args.rows, ends)
    y, of_cols = (None, of_rows) if args.cols is None else _points(args.cols, ends)
    problem = args._replace(rows=x, cols=y, logit_scale=torch.ones_like(of_rows[0, 0]))
    both = both_sides and y is not None
    stats = apply(PrefixFunction, *problem, args.logit_scale * of_rows, of_cols, ends, both, backend)
    sides = PairStats(*stats[:N_RESULTS]), PairStats(*stats[N_RESULTS : 2 * N_RESULTS] if both else stats[:N_RESULTS])
    return sides if both_sides else sides[:1]


def _points(z: Tensor, ends: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Points up to the last end, whose products are in range, and what normalises their prefixes [ends, n].

    A row is multiplied by a power of two: that rounds nothing in bfloat16. Its logits do not depend on it.
    """
    is_float16, dtype = z.dtype == torch.float16, accumulation_dtype(z.dtype)
    z = (z.float() if is_float16 else z)[:, : ends[-1]]
    peak = z.detach().abs().amax(1).to(dtype).nan_to_num(nan=1.0, posinf=1.0)  # prefixes before such a feature are fine
    peak = peak.masked_fill(peak == 0, 1.0).clamp_min(torch.finfo(dtype).tiny)
    factor = torch.frexp(peak).mantissa / peak
    z = z * factor[:, None].to(z.dtype)
    sizes = [b - a for a, b in pairwise((0, *ends))]
    squares = torch.stack([torch.linalg.vector_norm(x, dim=1, dtype=dtype).square() for x in z.split(sizes, 1)])
    squares = squares.cumsum(0)
    zero = squares == 0  # where the root has no gradient
    norms = squares.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)
    inverse = 1 / norms.clamp_min(NORM_EPS * factor)
    return z, inverse.masked_fill(zero, 0.0) if is_float16 else inverse  # 1 / NORM_EPS is beyond float16


def _in_order(ends: Sequence[int], alone: dict[int, Found], together: Sequence[int], swept: Found) -> Found:
    """The statistics of all prefixes from those of a sweep each and those of one sweep."""
    for k, end in enumerate(together):
        alone[end] = tuple(PairStats(*(field[k] for field in side)) for side in swept)
    sides = zip(*(alone[end] for end in ends), strict=True)
    return tuple(PairStats(*(torch.stack(fields) for fields in zip(*side, strict=True))) for side in sides)
