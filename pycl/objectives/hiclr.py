# SPDX-License-Identifier: Apache-2.0
"""HiCLR: augmentations of growing strength, each learning from the weaker one before it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pycl.core.pairs import Pairs, Points
from pycl.engine.average import average_and_lse
from pycl.engine.extremes import pair_extremes
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
    u = unit(student)
    found = _against(torch.stack([u.detach(), unit(teacher.detach())]), candidates, scale, backend)
    along = scale * (u * (found.mean[0] - found.mean[1])).sum(-1)
    return (found.entropy[0] + along).mean()


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
    u = unit(torch.stack([query, normal, strong]))
    found = _against(u.detach(), candidates, scale, backend)
    positive = _positives(u.detach(), candidates, backend) if mine else candidates.key
    target = torch.stack([positive, found.mean[0], found.mean[1]])
    terms = (found.entropy + scale * (u * (found.mean - target)).sum(-1)).mean(1)
    return terms[0] + (terms[1] + terms[2]) / 2


class _Candidates(NamedTuple):
    key: Tensor  # unit rows [N, d], constant
    queue: Tensor  # unit rows [K, d], constant


class _Found(NamedTuple):
    """What V sets of N unit vectors find among their own keys and the queue; all constant.

    A cross entropy is ``entropy + scale <u, mean - target>``, ``target`` the candidates' mean under the targets. Its
    gradient is that of the product alone, since the mean is the gradient of the log-sum-exp.
    """

    mean: Tensor  # [V, N, d], of the candidates under the softmax
    entropy: Tensor  # [V, N], of the softmax: the log-sum-exp of the logits minus their mean


def _candidates(key: Tensor, queue: Tensor, **like: Tensor) -> _Candidates:
    check_matched(**like, key=key)
    check_features(**like, queue=queue)
    return _Candidates(unit(key.detach()), unit(queue.detach()))


def _against(u: Tensor, candidates: _Candidates, scale: Scalar, backend: str | None) -> _Found:
    """One call for all views: the mean of a teacher is its target, and that of a student gives its gradient."""
    scale = scale.detach() if isinstance(scale, Tensor) else scale
    key, queue = candidates
    means, rest = average_and_lse(Points(u.flatten(0, 1)), Points(queue), queue, scale, offset=None, backend=backend)
    away = means.view(u.shape) - key  # small differences of large logits keep their digits: all is relative to the key
    logits = scale * torch.stack([u * key, u * away]).sum(-1)
    ahead = logits[0] - rest.view(u.shape[:-1])
    share = (-ahead).sigmoid()  # of the queue
    return _Found(key + share.unsqueeze(-1) * away, -logsigmoid(ahead) - share * logits[1])


def _positives(u: Tensor, candidates: _Candidates, backend: str | None) -> Tensor:
    """The mean [N, d] of the own key and of the nearest neighbours of all views, each of them once."""
    points, queue = Points(u.flatten(0, 1)), Points(candidates.queue)
    found = pair_extremes(points, queue, negatives=Pairs.ALL, positives=Pairs.NONE, offset=None, backend=backend)
    a, b, c = found.negative_index.view(u.shape[:-1])
    new = torch.stack([torch.ones_like(a, dtype=torch.bool), b != a, (c != a) & (c != b)])
    near = candidates.queue[torch.stack([a, b, c])] * new.unsqueeze(-1)
    return (candidates.key + near.sum(0)) / (1 + new.sum(0)).unsqueeze(-1)
