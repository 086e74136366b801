# SPDX-License-Identifier: Apache-2.0
"""One row of what is worth watching while a contrastive model is trained."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from pycl import metrics
from pycl.core.pairs import Points
from pycl.engine.views import stack_views
from pycl.functional._common import Scalar, Views, as_scalar, check_positive, unit


@torch.no_grad()
def measure(
    embeddings: Views,
    ids: Tensor | None = None,
    *,
    codes: Tensor | None = None,
    temperature: Scalar | None = None,
    bins: int = 64,
) -> dict[str, Any]:
    r"""Measures of a batch as plain numbers and lists: a row of a :class:`RunLog`, but for its step.

    Embeddings are put on the unit sphere first.

    =========================================  =====================================================================
    ``alignment``                              mean of :func:`pycl.metrics.alignment` over all unordered pairs of
                                               views; left out where there is one view
    ``uniformity``                             mean of :func:`pycl.metrics.uniformity` over the views; 0 where there
                                               is one instance
    ``effective_rank``                         :func:`pycl.metrics.effective_rank` of the first view
    ``positives``, ``negatives``               :func:`pycl.metrics.similarity_histogram` of all V N points: counts of
                                               ordered pairs in ``bins`` bins of equal width
    ``edges``                                  the range of these bins, ``[-1.0, 1.0]``
    ``assignment_entropy``, ``perplexity``,    :func:`pycl.metrics.assignments`, where there are codes
    ``dead``
    ``temperature``                            where it is given
    =========================================  =====================================================================

    The similarities are counted tile by tile: no matrix of all pairs is stored. There are no gradients, and no random
    number is drawn. Every process measures its own batch.

    Args:
        embeddings: views ``[V, N, d]``, or a sequence of V tensors ``[N, d]``; V >= 2, or with ids V >= 1; float64,
            float32, bfloat16 or float16.
        ids: int ``[N]``, classes for instance numbers: pairs of one class are the positives of the histograms.
        codes: ``[B, K]`` of samples over prototypes, with rows that sum to 1.
        temperature: positive number or tensor with one element.
        bins: of the histograms.

    Raises:
        TypeError: embeddings that are not floating point, ids or bins that are not integers, a temperature that is no
            number.
        ValueError: too few views, views of differing shape, dtype or device, an empty batch, entries that are not
            finite, ids of another length, bins < 1, a temperature that is not positive, codes as
            :func:`pycl.metrics.assignments` refuses them.
    """
    points, n_views = _points(embeddings, ids)
    z = points.z
    views = z.view(n_views, -1, z.shape[1]).unbind()
    row: dict[str, Any] = {}
    if n_views > 1:
        row["alignment"] = _mean([metrics.alignment(x, y) for x, y in combinations(views, 2)])
    row["uniformity"] = _mean([metrics.uniformity(view) for view in views])
    row["effective_rank"] = metrics.effective_rank(unit(views[0]))
    instances = torch.arange(len(views[0]), device=z.device) if ids is None else ids
    positives, negatives, edges = metrics.similarity_histogram(z, bins=bins, ids=instances.repeat(n_views))
    row |= {"positives": positives.tolist(), "negatives": negatives.tolist(), "edges": edges[[0, -1]].tolist()}
    if codes is not None:
        found = metrics.assignments(codes)
        row |= {"assignment_entropy": found.entropy, "perplexity": found.perplexity, "dead": found.dead}
    if temperature is not None:
        given = as_scalar("temperature", temperature)
        number = float(given.detach()) if isinstance(given, Tensor) else given
        row["temperature"] = float(check_positive("temperature", number))  # which does not look at a GPU's tensors
    return row


def _points(embeddings: Views, ids: Tensor | None) -> tuple[Points, int]:
    """``stack_views`` with the argument's own name in the message, and no infinity or nan."""
    try:
        points, n_views = stack_views(embeddings, ids)
    except (TypeError, ValueError) as error:
        name = "ids" if str(error).startswith("labels") else "embeddings"
        raise type(error)(f"{name}: {error}") from error
    if points.z.shape[1] == 0:
        raise ValueError("embeddings must have at least one feature, got d = 0")
    if not points.z.isfinite().all():
        raise ValueError("embeddings must be finite, got inf or nan")
    return points, n_views


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
