# SPDX-License-Identifier: Apache-2.0
"""Circle loss on class labels, in plain torch on strips of rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pycl.backends import registry
from pycl.core.tracing import eager
from pycl.distributed.ranks import Agreement, agree, all_reduce_sum, rows_of_all
from pycl.engine.reduction import check_reduction
from pycl.engine.views import check_labels
from pycl.functional._common import check_features, check_number, no_autocast, unit
from pycl.functional._options import Options, loss
from pycl.ops.autograd import OnceDifferentiable

if TYPE_CHECKING:
    from typing_extensions import Unpack

ROWS = 128  # of a strip; of 16 to 1024 the fastest at 512 and at 8,192 points


@loss()
def circle(
    z: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.4,
    gamma: float = 80.0,
    reduction: str = "mean",
    **options: Unpack[Options],
) -> Tensor:
    r"""Circle loss on class labels: every similarity is pulled as hard as it is far from its optimum.

    With s the cosine, m the margin, P(i) the other points of i's class, N(i) the points of other classes::

        a_ip = -gamma [1 + m - s_ip]+ (s_ip - (1 - m)),    b_in = gamma [s_in + m]+ (s_in - m)
        term_i = log( 1 + sum_{p in P(i)} exp a_ip * sum_{n in N(i)} exp b_in )

    Both factors ``[.]+`` are constants: no gradient flows through them. An anchor without positives or without
    negatives contributes 0. **The mean runs over the anchors whose term is not 0**; where there is none it is 0.

    Logits that are quadratic in the similarity are in no kernel: plain torch runs on strips of the matrix, whatever the
    backend, and no ``torch.compile`` looks inside.

    Args:
        z: ``[N, d]``; float64, float32, bfloat16 or float16.
        labels: integers ``[N]``.
        margin: m, a number of at least 0.
        gamma: positive number.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        options: ``normalize``, ``group`` and ``backend``: :class:`pycl.functional.Options`. The columns of a group are
            gathered, also for a ``Ring``.

    Returns:
        A scalar, or ``[N]`` with ``"none"``; float32 (float64 for float64 input).

    Raises:
        TypeError: embeddings that are not floating point, labels that are not integers.
        ValueError: not ``[N, d]``, an empty batch, labels of another length or device, a margin or gamma out of range,
            an unknown reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed; a second derivative.

    Sun et al., "Circle Loss: A Unified Perspective of Pair Similarity Optimization", arXiv 2002.10857, equation 6;
    values, defaults and the mean are those of pytorch-metric-learning's ``CircleLoss``.
    """
    check_reduction(reduction)
    margin, gamma = check_number("margin", margin, 0, math.inf), check_number("gamma", gamma, math.ulp(0.0), math.inf)
    check_features(z=z)
    labels = check_labels(labels, z.shape[0], z)
    registry.choose(options["backend"], z.device.type, z.dtype)
    everyone = agree(
        options["group"],
        z.device,
        [z.shape[0]],
        operator="circle",
        margin=margin,
        gamma=gamma,
        reduction=reduction,
        dtype=str(z.dtype),
        gradient=z.requires_grad and torch.is_grad_enabled(),
    )
    return _circle(unit(z, options["normalize"]), labels, margin, gamma, reduction, everyone)


class _Points(NamedTuple):
    """Rows and columns in the order of their labels, so that the positives of a strip are one block of columns."""

    rows: Tensor
    cols: Tensor
    row_labels: Tensor
    col_labels: Tensor
    itself: Tensor  # the column of each row
    margin: float
    gamma: float


@eager
def _circle(
    u: Tensor, labels: Tensor, margin: float, gamma: float, reduction: str, everyone: Agreement | None
) -> Tensor:
    order = labels.argsort(stable=True)
    col_labels, col_order = rows_of_all(labels, everyone).sort(stable=True)
    start = 0 if everyone is None else everyone.starts[everyone.ranks.rank][0]
    itself = col_order.argsort()[start + order]
    rows, cols = u[order], rows_of_all(u, everyone)[col_order]
    summed = reduction != "none"
    found: Tensor
    found, count = _Circle.apply(rows, cols, labels[order], col_labels, itself, margin, gamma, summed)
    if not summed:
        return found.new_empty(len(u)).index_copy(0, order, found)
    if everyone is not None:
        count, found = all_reduce_sum(count, everyone.group), found * everyone.ranks.size
    return found / count.clamp_min(1) if reduction == "mean" else found


class _Circle(torch.autograd.Function):
    """The terms of the rows; or their sum, with its gradient at once, and how many are not 0."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, cols: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        *of_points, ctx.summed = rest
        points = _Points(rows, cols, *of_points)
        *tensors, margin, gamma = points
        wanted = ctx.summed and ctx.needs_input_grad[0]
        terms, *gradients = _sweep(points, torch.ones_like(rows[:, 0]) if wanted else None)
        ctx.save_for_backward(rows, cols, *(gradients if ctx.summed else tensors[2:]))
        ctx.numbers = margin, gamma
        count = (terms > 0).sum()
        ctx.mark_non_differentiable(count)
        return terms.sum() if ctx.summed else terms, count

    @staticmethod
    def backward(ctx: Any, d_terms: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        rows, cols, *rest = ctx.saved_tensors
        if ctx.summed:
            gradients = [gradient * d_terms for gradient in rest]
        else:
            _, *gradients = _sweep(_Points(rows, cols, *rest, *ctx.numbers), d_terms)
        return *(OnceDifferentiable.apply(gradient, rows, cols, d_terms) for gradient in gradients), *(None,) * 6


def _strips(p: _Points) -> Iterator[tuple[slice, slice]]:
    """Strips of rows, and the columns that have a label of one of the rows."""
    first = torch.searchsorted(p.col_labels, p.row_labels).tolist()
    last = torch.searchsorted(p.col_labels, p.row_labels, right=True).tolist()
    for start in range(0, len(p.rows), ROWS):
        stop = min(start + ROWS, len(p.rows))
        yield slice(start, stop), slice(first[start], last[stop - 1])


@torch.no_grad()
def _sweep(p: _Points, weights: Tensor | None) -> tuple[Tensor, ...]:
    """The terms; with weights of the terms also gradients of the rows and of the columns."""
    terms = torch.empty_like(p.rows[:, 0])
    d_rows, d_cols = torch.empty_like(p.rows), torch.zeros_like(p.cols)
    with no_autocast(p.rows):
        for i, j in _strips(p):
            far = p.rows[i] @ p.cols.T
            near = 1 - far[:, j]
            same = p.row_labels[i, None] == p.col_labels[j]
            mine = same & (torch.arange(j.start, j.stop, device=far.device) != p.itself[i, None])
            far, of_negatives = _logits(far, p)
            of_negatives[:, j].masked_fill_(same, -torch.inf)
            near, of_positives = _logits(near, p)
            of_positives.masked_fill_(~mine, -torch.inf)
            (negatives, n), (positives, m) = _exponentials(of_negatives), _exponentials(of_positives)
            exponent = negatives + positives
            terms[i] = -logsigmoid(-exponent)
            if weights is None:
                continue
            pull = (p.gamma * weights[i] * torch.sigmoid(exponent))[:, None]
            gradient = of_negatives.mul_(far).mul_(pull / n)
            gradient[:, j] -= of_positives.mul_(near).mul_(pull / m)
            torch.mm(gradient, p.cols, out=d_rows[i])
            d_cols.addmm_(gradient.T, p.rows[i])
    return terms, d_rows, d_cols


def _logits(x: Tensor, p: _Points) -> tuple[Tensor, Tensor]:
    """With ``x = [x + m]+``: that, and ``gamma x (x - 2 m)``: of negatives with x = s, of positives with x = 1 - s."""
    x = x.add_(p.margin).clamp_min_(0)
    return x, (x * (-2 * p.margin * p.gamma)).addcmul_(x, x, value=p.gamma)


def _exponentials(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The log-sum-exps; the logits become exponentials whose sums, at least 1, come too."""
    top = logits.amax(1, keepdim=True)
    top = top.masked_fill_(top == -torch.inf, 0)
    total = logits.sub_(top).exp_().sum(1, keepdim=True)
    return (top + total.log()).squeeze(1), total.clamp_min_(1)
