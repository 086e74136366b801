# SPDX-License-Identifier: Apache-2.0
"""Label smoothing without the matrix: the sum of an anchor's logits is its product with the sum of the candidates."""

from __future__ import annotations

from torch import Tensor

from pycl.core.pairs import Pairs, Points
from pycl.distributed.ranks import Group, agree
from pycl.engine.reductions import pair_stats
from pycl.functional._common import is_number


def check_smoothing(label_smoothing: float) -> float:
    """A number from 0 to 1, as that of torch's cross entropy."""
    if isinstance(label_smoothing, bool) or not is_number(label_smoothing):
        raise TypeError(f"label_smoothing must be a number, got {type(label_smoothing).__name__}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be between 0 and 1, got {label_smoothing}")
    return float(label_smoothing)


def product_sums(rows: Tensor, cols: Tensor, group: Group | None, backend: str | None) -> tuple[Tensor, int]:
    """The sum of ``<x_i, y_j>`` over the columns of all ranks, [m], and the number of those columns."""
    total = cols.sum(0, keepdim=True)
    everyone = agree(group, rows.device, [cols.shape[0]], operator="product_sums")
    if everyone is None:
        return (rows * total).sum(1), cols.shape[0]
    # one column of each rank, whose gradient comes home to its rank
    stats = pair_stats(
        Points(rows),
        Points(total),
        denominator=Pairs.NONE,
        positives=Pairs.OTHERS,
        offset=None,
        group=group,
        backend=backend,
    )
    return stats.pos_sum, everyone.n


def product_means(rows: Tensor, cols: Tensor, group: Group | None, backend: str | None) -> Tensor:
    """The mean of ``<x_i, y_j>`` over the columns of all ranks, [m]."""
    sums, n = product_sums(rows, cols, group, backend)
    return sums / n
