# SPDX-License-Identifier: Apache-2.0
"""solo-learn's losses with a momentum encoder: ``mocov2plus_loss_func``, ``mocov3_loss_func``, ``ressl_loss_func``."""

from __future__ import annotations

from torch import Tensor

from pycl import functional
from pycl.compat._common import all_ranks, as_input, nothing, of_one_dtype, signed, signed_scale
from pycl.core.pairs import Pairs, Points
from pycl.distributed.ranks import LOCAL
from pycl.engine.average import pair_average
from pycl.engine.reductions import pair_stats
from pycl.functional._common import widen


def mocov2plus_loss_func(query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.1) -> Tensor:
    r"""solo-learn's ``mocov2plus_loss_func``: every query finds its key among the keys of a queue.

    With ``s`` the product over temperature, of vectors as they are given, and K keys in the queue::

        loss = mean_i [ log( exp s(query_i, key_i) + sum_k exp s(query_i, queue_k) ) - s(query_i, key_i) ]

    By :func:`pycl.functional.info_nce`, whose errors are these (but a negative temperature is none). No product with
    the queue is stored. The loss is that of this rank.

    Shape:
        query and key [N, d], queue [d, K]; a scalar in their dtype (float32 under autocast).
    """
    query, key = of_one_dtype(query, key)
    query, queue = of_one_dtype(query, queue)
    anchor, positive = signed(query, temperature)
    loss = functional.info_nce(anchor, key, queue.t(), temperature=positive, normalize=False, group=LOCAL)
    return as_input(loss, query)


def mocov3_loss_func(query: Tensor, key: Tensor, temperature: float = 0.2) -> Tensor:
    r"""solo-learn's ``mocov3_loss_func``: every query finds its key among those of all ranks.

    With ``s`` the cosine over temperature, j over the keys of all ranks and T the temperature::

        loss = 2 T mean_i [ log sum_j exp s(query_i, key_j) - s(query_i, key_i) ]

    By :func:`pycl.functional.info_nce`, whose errors are these (but a negative temperature is none). On several ranks
    keys are constants, as in solo-learn; the mean is over the rank's queries, weighted where ranks bring batches of
    different sizes, which solo-learn does not take.

    Shape:
        query and key [N, d]; a scalar in their dtype (float32 under autocast).
    """
    query, key = of_one_dtype(query, key)
    group = all_ranks()
    if group is None and query.shape == key.shape and len(query) == 1:
        return as_input(nothing(query, key), query)
    anchor, positive = signed(query, temperature)
    keys = key if group is None else key.detach()
    loss = functional.info_nce(anchor, keys, temperature=positive, group=group or LOCAL)
    return as_input(loss * (2 * temperature), query)


def ressl_loss_func(
    q: Tensor, k: Tensor, queue: Tensor, temperature_q: float = 0.1, temperature_k: float = 0.04
) -> Tensor:
    r"""solo-learn's ``ressl_loss_func``: queries relate to a queue as the keys of the other view do.

    Of vectors as they are given, with K keys in the queue::

        t_ij = softmax_j(<k_i, queue_j> / temperature_k)
        loss = mean_i [ log sum_j exp(<q_i, queue_j> / temperature_q) - sum_j t_ij <q_i, queue_j> / temperature_q ]

    The targets t are constants. The second sum needs the queue's means under them: neither matrix is stored. The loss
    is that of this rank.

    Shape:
        q and k [N, d], queue [K, d]; a scalar in their dtype (under autocast float32, on a CPU autocast's).

    Raises:
        RuntimeError: vectors of two dtypes outside autocast.
        ValueError: vectors that are not [n, d] with one d, a temperature of 0.
    """
    q, queue = of_one_dtype(q, queue)
    k, _ = of_one_dtype(k, queue)
    scale, candidates = signed_scale(temperature_q), Points(queue)
    lse = pair_stats(Points(q), candidates, scale, denominator=Pairs.ALL, offset=None).lse
    means = pair_average(
        Points(k.detach()), candidates, queue, signed_scale(temperature_k), offset=None, detach_weights=True
    )
    return as_input((lse - scale * (widen(q) * means).sum(1)).mean(), q, "product")
