# SPDX-License-Identifier: Apache-2.0
"""InfoNCE with soft targets: a student learns a teacher's softmax over the batch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pycl.core.pairs import Pairs, Points
from pycl.engine.average import pair_average
from pycl.engine.reduction import check_reduction, reduce
from pycl.engine.reductions import pair_cross_entropy
from pycl.functional._common import Scalar, check_matched, check_positive, check_together, to_logit_scale, unit
from pycl.functional._options import Options, loss

if TYPE_CHECKING:
    from typing_extensions import Unpack


@loss()
def soft_info_nce(
    student_query: Tensor,
    student_key: Tensor,
    teacher_query: Tensor,
    teacher_key: Tensor,
    *,
    temperature: Scalar = 0.07,
    teacher_temperature: Scalar = 0.07,
    symmetric: bool = False,
    reduction: str = "mean",
    **options: Unpack[Options],
) -> Tensor:
    r"""Cross entropy of the student's softmax over the keys with that of a teacher.

    With ``s_ij = <q_i, k_j> / temperature`` of the student and ``t_ij`` of the teacher, over its own temperature::

        term_i = - sum_j softmax_j(t_ij) log softmax_j(s_ij)  =  log sum_j exp s_ij  -  sum_j softmax_j(t_ij) s_ij

    The second sum is ``<q_i, c_i> / temperature`` with c_i the mean of the student's keys under the teacher's softmax,
    so that neither matrix is stored. The own key has no part of its own: a teacher with a low temperature points at it,
    and then this is InfoNCE. ``symmetric=True`` averages query-to-key and key-to-query, each with the teacher's softmax
    in that direction.

    The teacher is a constant: its embeddings and its temperature get no gradient. The value is at least the entropy of
    the teacher's softmax; the Kullback-Leibler divergence is what exceeds it.

    Args:
        student_query, student_key: ``[N, d]``; float64, float32, bfloat16 or float16.
        teacher_query, teacher_key: ``[N, e]``, of any width, always normalised.
        temperature: of the student, positive number or 0-d tensor.
        teacher_temperature: positive number or 0-d tensor.
        symmetric: average both directions.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        options: ``normalize``, of the student, ``group`` and ``backend``: :class:`pycl.functional.Options`.

    Returns:
        A scalar, or ``[N]`` with ``"none"``; float32 (float64 for float64 students).

    Raises:
        TypeError: embeddings that are not floating point.
        ValueError: differing shapes of query and key, numbers of rows or devices, an empty batch, a temperature that is
            not positive, an unknown reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Zheng et al., "ReSSL: Relational Self-Supervised Learning with Weak Augmentation", arXiv 2107.09282, whose
    candidates are a queue; between modalities the affinity mimicking of Wu et al., "TinyCLIP: CLIP Distillation via
    Affinity Mimicking and Weight Inheritance", arXiv 2309.12314, which is symmetric.
    """
    check_reduction(reduction)
    scale = to_logit_scale(temperature)
    teacher_scale = 1.0 / check_positive("teacher_temperature", teacher_temperature)
    check_matched(student_query=student_query, student_key=student_key)
    check_matched(teacher_query=teacher_query, teacher_key=teacher_key)
    check_together(student_query=student_query, teacher_query=teacher_query)
    # without positives it is the log-sum-exp alone
    free = pair_cross_entropy(
        Points(student_query),
        Points(student_key),
        scale,
        denominator=Pairs.ALL,
        positives=Pairs.NONE,
        offset=None,
        sides="both" if symmetric else "rows",
        reduction=reduction,
        **options,
    )
    q, k = (unit(x, options["normalize"]) for x in (student_query, student_key))
    # a mean has the teacher's precision: never less than the student's
    precision = torch.promote_types(q.dtype, k.dtype)
    teacher = [x.detach().double() if precision == torch.float64 else x.detach() for x in (teacher_query, teacher_key)]
    soft = partial(_mean_logits, scale=teacher_scale, options=options)
    mean = soft(q, k, *teacher)
    if symmetric:
        mean = (mean + soft(k, q, *reversed(teacher))) / 2
    return free - reduce(scale * mean, reduction, options["group"])


def _mean_logits(q: Tensor, k: Tensor, seen_q: Tensor, seen_k: Tensor, scale: Scalar, options: Options) -> Tensor:
    """The mean of ``<q_i, k_j>`` under the teacher's softmax over j, [N]."""
    mean = pair_average(
        Points(seen_q),
        Points(seen_k),
        k,
        scale,
        offset=None,
        normalize=True,
        detach_weights=True,
        group=options["group"],
        backend=options["backend"],
    )
    return (q * mean.to(q.dtype)).sum(1)
