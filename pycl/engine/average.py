# SPDX-License-Identifier: Apache-2.0
"""Means of the candidates' values under every anchor's softmax: attention over any pair set."""

from __future__ import annotations

import sys
from typing import cast

from torch import Tensor

from pycl.core.pairs import Pairs, Points
from pycl.core.problem import Problem
from pycl.distributed.ranks import Group
from pycl.engine.modifiers import Modified
from pycl.engine.reductions import backend_of
from pycl.engine.validation import check_values, one_set, problem_of
from pycl.ops.autograd import AverageFunction, MeanLogitFunction, apply
from pycl.ops.sharded import sharded

if sys.version_info >= (3, 11):
    from typing import Unpack
else:
    from typing_extensions import Unpack


def pair_average(
    rows: Points,
    cols: Points | None,
    values: Tensor,
    logit_scale: float | Tensor = 1.0,
    *,
    pairs: Pairs = Pairs.ALL,
    row_bias: Tensor | None = None,
    col_bias: Tensor | None = None,
    offset: int | None = 0,
    normalize: bool = False,
    detach_weights: bool = False,
    group: Group | None = None,
    backend: str | None = None,
    **changes: Unpack[Modified],
) -> Tensor:
    r"""The mean of the candidates' values under every anchor's softmax, [m, dv].

    .. math:: o_i = \sum_j p_{ij} v_j, \qquad
              p_{ij} = \frac{e^{l_{ij}}}{\sum_{k \in \mathrm{pairs}(i)} e^{l_{ik}}}
              \text{ for } j \in \mathrm{pairs}(i), \text{ else } 0

    With the gradient g of o, a logit has :math:`p_{ij} \langle g_i, v_j - o_i \rangle` and a value
    :math:`\sum_i p_{ij} g_i`. Neither direction stores a matrix.

    A cross entropy with soft targets takes no second matrix, either: it is the student's log-sum-exp minus
    ``logit_scale * (x * mean).sum(1)``, where ``mean`` is ``pair_average`` of the student's ``y`` with the teacher's
    points and scale.

    Args:
        values: [n, dv], floating point, on the device of the points.
        detach_weights: the softmax is a constant: of all arguments the values alone get a gradient.
        group: the candidates and their values are those of all ranks; the rest as in ``pair_stats``.
        rows: the other arguments, and the errors from them, are those of ``pair_stats``.

    Returns:
        The means in float32 (float64 for float64 points); 0 for an anchor without pairs, with no gradient from it.
        Differentiable once with respect to ``values``, both ``z``, ``logit_scale`` and both biases.

    Raises:
        TypeError: values that are not floating point.
        ValueError: values of another length or on another device.
    """
    sets = one_set(pairs)
    args = problem_of(rows, cols, logit_scale, sets, row_bias, col_bias, offset, normalize, group, **changes)
    args = args.as_rectangular()
    check_values(values, args)
    name = backend_of(args, backend)
    if detach_weights:
        args = Problem._make(field.detach() if isinstance(field, Tensor) else field for field in args)
    args, shards = sharded(
        group,
        "pair_average",
        args,
        dv=values.shape[1],
        values=str(values.dtype),
        values_gradient=str(values.requires_grad),
        detach_weights=str(detach_weights),
    )
    return cast("Tensor", apply(AverageFunction, *args, values, name, shards)[0])


def mean_logit(
    rows: Points,
    cols: Points,
    logit_scale: float | Tensor = 1.0,
    *,
    pairs: Pairs = Pairs.ALL,
    col_bias: Tensor | None = None,
    offset: int | None = 0,
    group: Group | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""The mean of every anchor's logits under its own softmax, [m]: its log-sum-exp minus the softmax's entropy.

    .. math:: \bar l_i = \sum_j p_{ij} l_{ij}, \qquad
              \frac{\partial \bar l_i}{\partial l_{ij}} = p_{ij} (1 + l_{ij} - \bar l_i)

    Four matrix products with the backward on a CPU, where ``pair_average`` of the candidates takes seven; one more each
    where a logit may be larger than 20. Arguments, dtypes and errors are those of ``pair_average``. An anchor without
    pairs has 0 and no gradient.
    """
    args = problem_of(rows, cols, logit_scale, one_set(pairs), None, col_bias, offset, False, group).as_rectangular()
    name = backend_of(args, backend)
    args, shards = sharded(group, "mean_logit", args)
    return cast("Tensor", apply(MeanLogitFunction, *args, name, shards)[0])


def average_and_lse(
    rows: Points,
    cols: Points,
    values: Tensor,
    logit_scale: float | Tensor = 1.0,
    *,
    offset: int | None = 0,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """``pair_average`` over all pairs, and the log-sum-exps [m] of its softmax, which have no gradient.

    Where the columns are constant and the values are the columns, the mean times the scale is the gradient of the
    log-sum-exp: one call then serves a softmax, its log-sum-exp and the backward.
    """
    args = problem_of(rows, cols, logit_scale, one_set(Pairs.ALL), None, None, offset, False).as_rectangular()
    check_values(values, args)
    means, shift = apply(AverageFunction, *args, values, backend_of(args, backend), None)
    return means, -shift
