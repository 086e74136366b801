# SPDX-License-Identifier: Apache-2.0
"""HiCLR: augmentations of growing strength, each learning from the weaker one before it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pycl.core.pairs import Pairs, Points
from pycl.engine.average import pair_average
from pycl.engine.matrix import pair_top
from pycl.engine.reductions import pair_stats
from pycl.functional._common import Scalar, check_features, check_matched, to_logit_scale, unit


def directional_consistency(
    student: Tensor,
    teacher: Tensor,
    key: Tensor,
    queue: Tensor,
    *,
    temperature: Scalar = 0.07,
    backend: str | None = None,
) -> Tensor:
    r"""A strong augmentation learns the similarities of a weaker one, and never the reverse.

    With the unit rows x of student and teacher, k of key and Q of queue::

        z(x)_i = [ <x_i, k_i>, <x_i, Q_1>, .., <x_i, Q_K> ] / temperature
        value  = mean_i - sum_j softmax(z(teacher)_i)_j log softmax(z(student)_i)_j

    That is the student's log-sum-exp minus its logit with the mean of the candidates under the teacher's softmax.

    Args:
        student: ``[N, d]``.
        teacher: ``[N, d]``, constant, and so is the temperature in its softmax.
        key: ``[N, d]``, constant.
        queue: ``[K, d]``, constant.
        temperature: positive number or 0-d tensor, of both.
        backend: name of the backend to run on; None picks one.

    Raises:
        TypeError: inputs that are not floating point.
        ValueError: shapes or devices that do not fit, an empty batch or queue, a temperature that is not positive, an
            unknown backend.
        RuntimeError: the backend asked for is not built.

    Zhang et al., "Hierarchical Consistent Contrastive Learning for Skeleton-Based Action Recognition with Growing
    Augmentations", arXiv 2211.13466. The authors' code takes the logarithm of a softmax, which is
    infinite in float16 at this temperature.
    """
    check_matched(student=student, teacher=teacher)
    candidates = _candidates(key, queue, student=student)
    scale = to_logit_scale(temperature)
    of_student = _scores(unit(student)[None], candidates, scale, backend)
    of_teacher = _scores(unit(teacher.detach())[None], candidates, _constant(scale), backend)
    return _divergence(of_student, of_teacher, candidates, scale, backend)[0]


def hiclr(
    query: Tensor,
    normal: Tensor,
    strong: Tensor,
    key: Tensor,
    queue: Tensor,
    *,
    temperature: Scalar = 0.07,
    mine: bool = False,
    backend: str | None = None,
) -> Tensor:
    r"""HiCLR: momentum contrast of the basic view, and two steps of directional consistency.

    With z as in :func:`directional_consistency`, and DC that function::

        L1    = mean_i - mean_{j in P_i} log softmax(z(query)_i)_j
        value = L1 + ( DC(normal, query) + DC(strong, normal) ) / 2

    ``P_i`` is the own key. With ``mine`` it also has the queue's nearest neighbours of query i, of normal i and of
    strong i, as a set: a neighbour of two of them counts once. Of equally near ones the first is taken.

    Args:
        query: ``[N, d]``, the basic augmentation; its gradient is that of L1.
        normal: ``[N, d]``; its gradient is that of DC(normal, query).
        strong: ``[N, d]``; its gradient is that of DC(strong, normal).
        key: ``[N, d]``, constant.
        queue: ``[K, d]``, constant.
        temperature: positive number or 0-d tensor.
        mine: whether the nearest neighbours are positives, as in the second half of the authors' training.
        backend: name of the backend to run on; None picks one.

    Raises:
        TypeError: inputs that are not floating point.
        ValueError: shapes or devices that do not fit, an empty batch or queue, a temperature that is not positive, an
            unknown backend.
        RuntimeError: the backend asked for is not built.

    Zhang et al., arXiv 2211.13466, the whole objective, with positives mined from the queue as in Guo et al., "AimCLR",
    arXiv 2112.03590.
    """
    check_matched(query=query, normal=normal)
    check_matched(query=query, strong=strong)
    candidates = _candidates(key, queue, query=query)
    scale = to_logit_scale(temperature)
    scores = _scores(unit(torch.stack([query, normal, strong])), candidates, scale, backend)
    teachers = _Scores(*(x[:2].detach() for x in scores))
    students = _Scores(*(x[1:] for x in scores))
    directional = _divergence(students, teachers, candidates, scale, backend)
    if mine:
        contrast = _mined(scores, candidates, scale, backend)
    else:
        contrast = -logsigmoid(scores.own[0] - scores.rest[0]).mean()
    return contrast + directional.mean()


class _Candidates(NamedTuple):
    key: Tensor  # unit rows [N, d], constant
    queue: Tensor  # unit rows [K, d], constant


class _Scores(NamedTuple):
    """Of V sets of N unit vectors."""

    u: Tensor  # [V, N, d]
    own: Tensor  # [V, N], the logits with the own keys
    rest: Tensor  # [V, N], log-sum-exps over the queue


def _candidates(key: Tensor, queue: Tensor, **like: Tensor) -> _Candidates:
    check_matched(**like, key=key)
    check_features(**like, queue=queue)
    return _Candidates(unit(key.detach()), unit(queue.detach()))


def _constant(scale: Scalar) -> Scalar:
    return scale.detach() if isinstance(scale, Tensor) else scale


def _scores(u: Tensor, candidates: _Candidates, scale: Scalar, backend: str | None) -> _Scores:
    rows, queue = Points(u.flatten(0, 1)), Points(candidates.queue)
    rest = pair_stats(rows, queue, scale, denominator=Pairs.ALL, offset=None, backend=backend).lse
    return _Scores(u, scale * (u * candidates.key).sum(-1), rest.view(u.shape[:-1]))


def _divergence(
    students: _Scores, teachers: _Scores, candidates: _Candidates, scale: Scalar, backend: str | None
) -> Tensor:
    """The cross entropies [V] of students with their teachers, from the mean of the candidates under each teacher."""
    rows, queue = Points(teachers.u.flatten(0, 1)), Points(candidates.queue)
    means = pair_average(rows, queue, candidates.queue, _constant(scale), offset=None, backend=backend)
    share = (teachers.own - teachers.rest).sigmoid().unsqueeze(-1)  # of the own key
    means = torch.lerp(means.view_as(teachers.u), candidates.key.to(means.dtype), share.to(means.dtype))
    return (torch.logaddexp(students.own, students.rest) - scale * (students.u * means).sum(-1)).mean(1)


def _mined(scores: _Scores, candidates: _Candidates, scale: Scalar, backend: str | None) -> Tensor:
    """L1 with the nearest neighbours of all three views among the positives."""
    rows = Points(scores.u.detach().flatten(0, 1))
    _, index = pair_top(rows, Points(candidates.queue), 1, offset=None, backend=backend)
    index = index.view(scores.own.shape)
    new = torch.ones_like(index, dtype=torch.bool)
    new[1], new[2] = index[1] != index[0], (index[2] != index[0]) & (index[2] != index[1])
    logits = scale * (scores.u[0] * candidates.queue[index]).sum(-1)
    positives = (scores.own[0] + logits.masked_fill(~new, 0).sum(0)) / (1 + new.sum(0))
    return (torch.logaddexp(scores.own[0], scores.rest[0]) - positives).mean()
