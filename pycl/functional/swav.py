# SPDX-License-Identifier: Apache-2.0
"""SwAV: each crop predicts the prototype codes of the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pycl.core.pairs import Pairs, Points
from pycl.core.sinkhorn import prototype_potential, step
from pycl.distributed.ranks import Group, agree, all_reduce_logsumexp, all_reduce_sum, of_the_batch
from pycl.engine.reduction import check_reduction, share_of
from pycl.engine.reductions import pair_stats
from pycl.engine.validation import check_integer
from pycl.functional._common import Scalar, Views, check_features, to_logit_scale, unit
from pycl.functional._features import Stored, feature_logits
from pycl.functional._sinkhorn_args import check_epsilon, check_iterations, log_targets, uniform_target

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@of_the_batch
def swav(
    crops: Views,
    prototypes: Tensor,
    *,
    temperature: Scalar = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
    code_crops: Sequence[int] = (0, 1),
    queue: Views | None = None,
    queue_mask: Tensor | None = None,
    reduction: str = "mean",
    normalize: bool = False,
    group: Group | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Swapped prediction of Sinkhorn codes over several crops (SwAV).

    With codes ``q_i`` of each code crop i, from :func:`pycl.functional.sinkhorn` on its scores ``z_i @ prototypes.T``::

        term_b = 1/I sum_i 1/(V-1) sum_{v != i}  - sum_k q_i[b, k] log softmax_k(l_v[b, k])
               = 1/I sum_i 1/(V-1) sum_{v != i}  log sum_k exp(l_v[b, k]) - <z_v[b], o_i[b]> / temperature

    where ``l_v[b, k] = <z_v[b], c_k> / temperature`` and ``o_i[b] = sum_k q_i[b, k] c_k``: neither codes nor logits
    ``[B, K]`` have to be stored. On a CPU the codes of code crops that fit the workspace (:class:`pycl.set_workspace`)
    are kept for the backward. Codes are constants; crops and prototypes get gradients. Features and prototypes are
    taken **as they are given** (``normalize=False``): SwAV normalises both, the prototypes in place before each step
    (:meth:`pycl.Prototypes.normalize_`).

    Args:
        crops: V >= 2 crops, a tensor ``[V, B, d]`` or a sequence of ``[B, d]``.
        prototypes: ``[K, d]``.
        temperature: positive number or 0-d tensor.
        epsilon: entropy of the codes, in units of the scores.
        iterations: of Sinkhorn.
        code_crops: which crops have codes that the others predict, I of them.
        queue: earlier features, a tensor ``[I, Q, d]`` or a sequence of I ``[Q, d]``, which join the assignment of each
            code crop and have no other part.
        queue_mask: bool ``[Q]``, which rows of the queue take part; None for all. Nothing waits for its values, and a
            compiled graph is one for all of them.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        normalize: L2-normalise crops, queue and prototypes inside.
        group: ranks that share the prototypes: codes are assigned jointly, and the ranks' losses have the
            global batch's as their mean.
        backend: name of the backend to run on; None picks one.

    Returns:
        A scalar, or ``[B]`` with ``"none"``; float32 (float64 for float64 input).

    Raises:
        TypeError: features that are not floating point, numbers that are none.
        ValueError: fewer than two crops, crops of differing shape, a width other than the prototypes', a code crop that
            is not there or named twice, a queue of another number or width, a mask of another length or without a
            queue, a temperature or epsilon <= 0, iterations < 1.
        RuntimeError: the backend asked for is not built.

    Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", arXiv 2006.09882,
    equations 1 to 6; the gradients of the second line are the first one's.
    """
    check_reduction(reduction)
    check_features(prototypes=prototypes)
    z = stack("crops", crops, prototypes, least=2)
    codes = check_code_crops(code_crops, len(z))
    earlier = None if queue is None else stack("queue", queue, prototypes, least=len(codes), most=len(codes))
    if queue_mask is not None:
        check_mask(queue_mask, None if earlier is None else earlier.shape[1])
    epsilon = check_epsilon("epsilon", epsilon)
    iterations = check_iterations(iterations)
    facts: dict[str, Any] = {
        "K": prototypes.shape[0],
        "code_crops": len(codes),
        "iterations": iterations,
        "epsilon": epsilon,
    }
    everyone = agree(group, z.device, [z.shape[1]], operator="swav", dtype=str(z.dtype), reduction=reduction, **facts)
    if normalize:
        z, prototypes = unit(z), unit(prototypes)
        earlier = None if earlier is None else unit(earlier)
    scale = to_logit_scale(temperature)
    n_crops, n_samples, d = z.shape
    assign = partial(
        _code_means,
        queue_mask=queue_mask,
        prototypes=prototypes,
        epsilon=epsilon,
        iterations=iterations,
        group=everyone and everyone.group,
        backend=backend,
    )
    means = {i: assign(z[i], None if earlier is None else earlier[k]) for k, i in enumerate(codes)}
    lse = pair_stats(
        Points(z.reshape(-1, d)), Points(prototypes), scale, denominator=Pairs.ALL, offset=None, backend=backend
    ).lse.view(n_crops, n_samples)
    # a crop predicts the codes of all crops but its own. No index, which a GPU would be sent
    total = torch.stack(list(means.values())).sum(0)
    predicted = torch.stack([total - means[v] if v in means else total for v in range(n_crops)])
    counts = lse.new_full((n_crops, 1), len(codes))
    for i in codes:
        counts[i] -= 1
    agreement = (z.to(lse.dtype) * predicted).sum((0, 2)) * scale
    energy = (lse * counts).sum(0)
    return share_of((energy - agreement) / (len(codes) * (n_crops - 1)), reduction, everyone)


def _code_means(
    z: Tensor,
    earlier: Tensor | None,
    *,
    queue_mask: Tensor | None,
    prototypes: Tensor,
    epsilon: float,
    iterations: int,
    group: ProcessGroup | None,
    backend: str | None,
) -> Tensor:
    """The prototypes' mean under each sample's code [B, d], with a gradient to the prototypes."""
    z, keys = z.detach(), prototypes.detach()
    samples = z if earlier is None else torch.cat([earlier.detach().to(z.dtype), z])
    with torch.no_grad():
        if queue_mask is None:
            taking_part = None
            _, target = log_targets(None, None, samples.shape[0], keys.shape[0], samples, group)
        else:
            taking_part = torch.cat([queue_mask, queue_mask.new_ones(z.shape[0])])
            target = uniform_target(all_reduce_sum(taking_part.sum(dtype=torch.float64), group), keys.shape[0], samples)
        logits = feature_logits(samples, keys, epsilon, taking_part=taking_part, backend=backend)
    if isinstance(logits, Stored) and group is None and earlier is None:
        return logits.code_means_at_once(target, iterations, prototypes)
    with torch.no_grad():
        v = prototype_potential(
            lambda v: all_reduce_logsumexp(logits.prototype_lse(v), group), partial(step, target=target), iterations
        )
    return logits.code_means(v, z, prototypes)


def stack(name: str, tensors: Views, prototypes: Tensor, least: int, most: float = math.inf) -> Tensor:
    """``[V, N, d]`` of the prototypes' width from such a tensor or a sequence of V ``[N, d]``."""
    whole = tensors if isinstance(tensors, Tensor) else None
    if whole is not None:
        if whole.dim() != 3:
            raise ValueError(f"{name} must have shape [V, N, d] or be a sequence of [N, d], got {tuple(whole.shape)}")
        tensors = whole.unbind()
    if not least <= len(tensors) <= most:
        wanted = f"{least}, one for each code crop" if most == least else f"at least {least}"
        raise ValueError(f"{name} must be {wanted}, got {len(tensors)}")
    named = {f"{name}[{k}]": t for k, t in enumerate(tensors)}
    check_features(prototypes=prototypes, **named)
    for key, t in named.items():
        if t.shape != tensors[0].shape:
            raise ValueError(f"{key} must have the shape of {name}[0], {tuple(tensors[0].shape)}, got {tuple(t.shape)}")
    return torch.stack(list(tensors)) if whole is None else whole


def check_mask(mask: Tensor, n: int | None) -> None:
    """Which of n rows of a queue take part."""
    if n is None:
        raise ValueError("queue_mask is of a queue, got none")
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (n,):
        given = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"queue_mask must be a bool tensor [{n}], one entry for each row of the queue, got {given}")


def check_code_crops(code_crops: Sequence[int], n_crops: int) -> list[int]:
    """Different crops that exist, at least one."""
    codes = [check_integer("code_crops", i) for i in code_crops]
    if not codes or len(set(codes)) != len(codes) or not all(0 <= i < n_crops for i in codes):
        raise ValueError(f"code_crops must be different indices of the {n_crops} crops, got {tuple(codes)}")
    return codes
