# SPDX-License-Identifier: Apache-2.0
"""Sinkhorn's equal assignment of samples to prototypes: from stored scores, or from features without storing them."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pycl.backends import registry
from pycl.core.problem import SinkhornProblem
from pycl.core.sinkhorn import check_finite, prototype_potential, solve, step
from pycl.distributed.ranks import Group, agree, all_reduce_logsumexp, of_the_batch
from pycl.functional._common import check_features
from pycl.functional._features import feature_logits
from pycl.functional._sinkhorn_args import (
    check_epsilon,
    check_iterations,
    check_out,
    check_penalty,
    check_scores,
    log_targets,
)
from pycl.ops import sinkhorn as operators


@of_the_batch
@torch.no_grad()
def sinkhorn(
    scores: Tensor,
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    sample_marginal: Tensor | None = None,
    prototype_marginal: Tensor | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    group: Group | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Assignment of samples to prototypes that uses the prototypes equally (SwAV, DINOv2, DINOv3).

    With ``L = scores / epsilon`` and ``u = 0``, each iteration is the prototype step, then the sample step::

        v_k = log(B m_k) - log sum_b exp(L_bk + u_b)
        u_b = log(B a_b) - log sum_k exp(L_bk + v_k)
        code_bk = softmax_k(L_bk + v_k)

    which after any number of iterations is the published algorithm (``m`` and ``a`` uniform), here in the log domain:
    no epsilon overflows, and nothing is shifted, because a shift of each sample's scores changes the codes until
    convergence. The scores are read ``iterations + 1`` times. Codes are constants: no gradient flows through them.

    Args:
        scores: ``[B, K]``, usually ``features @ prototypes.T``; float64, float32, bfloat16 or float16. An entry of
            ``-inf`` rules its pair out. A layout whose columns are not next to each other costs a copy.
        epsilon: entropy of the assignment, in units of the scores.
        iterations: at least 1.
        sample_marginal: ``a`` [B], positive with a sum of 1 over all ranks; None for ``1 / B``.
        prototype_marginal: ``m`` [K], positive with a sum of 1; None for ``1 / K``.
        dtype: of the codes: that of the scores (None) or float32.
        out: contiguous ``[B, K]`` memory for the codes, maybe ``scores`` itself, which they then replace.
        group: ranks that share the prototypes, each with samples of its own, of any number.
        backend: name of the backend to run on; None picks one. ``"cuda"`` does all iterations in one launch and takes
            no group.

    Returns:
        Codes ``[B, K]``; every row sums to 1. On a CPU 128 KiB of them or more take the memory of earlier ones that
        are gone, whose pages the system need not clear; up to 256 MiB of such memory stay with the process.

    Raises:
        TypeError: scores that are not floating point, an epsilon or iterations that are no numbers.
        ValueError: scores that are not ``[B, K]`` with B, K >= 1 (B may be 0 on some ranks of a group), epsilon <= 0,
            iterations < 1, a marginal of another shape, with entries <= 0 or another sum, a dtype that is neither, an
            out of another shape, dtype or device or that overlaps the scores in part; on the CPU also scores of NaN or
            +inf and rows or columns of nothing but -inf, by index (on a GPU, where looking would wait for the device,
            their codes are NaN); a K, epsilon or iterations that differ between ranks.
        RuntimeError: the backend asked for is not built or cannot do this.

    Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", arXiv 2006.09882,
    equations 3 to 5 and listing 1; Cuturi, "Sinkhorn Distances", arXiv 1306.0895, algorithm 1.
    """
    check_scores(scores, dtype, may_be_empty=group is not None)
    if out is not None:
        check_out(out, scores, dtype)
    epsilon, iterations = check_epsilon("epsilon", epsilon), check_iterations(iterations)
    n_samples, n_prototypes = scores.shape
    given = {"sample_marginal is given": sample_marginal is not None}
    facts: dict[str, Any] = {"operator": "sinkhorn", "K": n_prototypes, "epsilon": epsilon, "iterations": iterations}
    everyone = agree(group, scores.device, [n_samples], dtype=str(scores.dtype), **facts, **given)
    ranks = everyone and everyone.group
    targets = log_targets(sample_marginal, prototype_marginal, n_samples, n_prototypes, scores, ranks)
    t = SinkhornProblem(
        scores=scores.detach() if scores.stride(1) == 1 or n_prototypes == 1 else scores.detach().contiguous(),
        epsilon=epsilon,
        iterations=iterations,
        sample_target=targets[0],
        prototype_target=targets[1],
        dtype=out.dtype if out is not None else scores.dtype if dtype is None else dtype,
        out=out,
    )
    operator = registry.SINKHORN if ranks is None else registry.SINKHORN_STEPS
    name = registry.choose(backend, scores.device.type, scores.dtype, operator)
    if ranks is None:
        codes, u, v = operators.sinkhorn(t, name)
    else:

        def columns(t: SinkhornProblem, potential: Tensor | None) -> Tensor:
            return all_reduce_logsumexp(operators.columns(t, potential, name), ranks)

        codes, u, v = solve(columns, partial(operators.codes, backend=name), t)
    check_finite(t, u, v, alone=ranks is None)
    return codes


@of_the_batch
@torch.no_grad()
def sinkhorn_potentials(
    z: Tensor,
    prototypes: Tensor,
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    sample_marginal: Tensor | None = None,
    prototype_marginal: Tensor | None = None,
    sample_penalty: float = math.inf,
    prototype_penalty: float = math.inf,
    normalize: bool = False,
    group: Group | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Potentials of :func:`sinkhorn` from features and prototypes, without the matrix of scores ``<z_b, c_k>``.

    ``exp(<z_b, c_k> / epsilon + u_b + v_k)`` is the code of sample b for prototype k: give ``u`` and ``v`` to the
    engine as row and column bias. Costs ``2 iterations`` sweeps of ``B K d`` multiply-adds and memory for vectors. On a
    CPU scores that fit the workspace (:class:`pycl.set_workspace`) are computed once and kept until the end.

    A finite penalty makes a marginal soft (unbalanced transport): its Kullback-Leibler divergence costs ``penalty`` in
    units of the scores, and its step is multiplied by ``penalty / (penalty + epsilon)``; at 0 the marginal is free.

    Args:
        z: features ``[B, d]``; float64, float32, bfloat16 or float16; taken as they are given.
        prototypes: ``[K, d]``.
        epsilon: as in :func:`sinkhorn`, and so are iterations, the marginals and the backend.
        sample_penalty: >= 0; infinite to meet the samples' marginal.
        prototype_penalty: >= 0; infinite to meet the prototypes' marginal.
        normalize: L2-normalise features and prototypes inside.
        group: as in :func:`sinkhorn`, with at least one sample on every rank.

    Returns:
        The samples' potential ``u`` [B] and the prototypes' ``v`` [K], in nats; float32 (float64 for float64 features).

    Raises:
        TypeError: features or prototypes that are not floating point, numbers that are none.
        ValueError: B, K or d = 0, widths or devices that differ, a penalty < 0, and as in :func:`sinkhorn`.
        RuntimeError: the backend asked for is not built.

    Chizat et al., "Scaling Algorithms for Unbalanced Optimal Transport Problems", arXiv 1607.05816, section 3.
    """
    check_features(z=z, prototypes=prototypes)
    epsilon, iterations = check_epsilon("epsilon", epsilon), check_iterations(iterations)
    sample_penalty = check_penalty("sample_penalty", sample_penalty)
    prototype_penalty = check_penalty("prototype_penalty", prototype_penalty)
    n_samples, n_prototypes = z.shape[0], prototypes.shape[0]
    penalties = {"sample_penalty": sample_penalty, "prototype_penalty": prototype_penalty}
    penalties |= {"sample_marginal is given": sample_marginal is not None}
    facts: dict[str, Any] = {"operator": "potentials", "K": n_prototypes, "epsilon": epsilon, "iterations": iterations}
    everyone = agree(group, z.device, [z.shape[0]], dtype=str(z.dtype), **facts, **penalties)
    ranks = everyone and everyone.group
    targets = log_targets(sample_marginal, prototype_marginal, n_samples, n_prototypes, z, ranks)
    sample_step = partial(step, target=targets[0], penalty=sample_penalty, epsilon=epsilon)
    prototype_step = partial(step, target=targets[1], penalty=prototype_penalty, epsilon=epsilon)
    soft = sample_step if min(sample_penalty, prototype_penalty) < math.inf else None
    logits = feature_logits(z, prototypes, epsilon, targets[0], soft, normalize=normalize, backend=backend)
    v = prototype_potential(lambda v: all_reduce_logsumexp(logits.prototype_lse(v), ranks), prototype_step, iterations)
    return sample_step(logits.sample_lse(v)), v


def dino_codes(
    teacher_output: Tensor,
    teacher_temp: float,
    *,
    n_masked_patches_tensor: Tensor | None = None,
    n_iterations: int = 3,
    group: Group | None = None,
    backend: str | None = None,
) -> Tensor:
    """Targets of a DINO or iBOT teacher by :func:`sinkhorn` instead of centring, called as DINOv2 and DINOv3 do.

    All samples, of both global crops or all masked patches, are assigned jointly, at ``epsilon = teacher_temp``.

    Args:
        teacher_output: ``[..., K]`` prototype scores of the teacher's head; leading dimensions are samples.
        teacher_temp: positive; DINOv2 warms up from 0.04 to 0.07.
        n_masked_patches_tensor: taken because iBOT's trainers pass it, and not read: how many samples there are, here
            and on other ranks, cancels out of the codes.
        n_iterations: at least 1.
        group: ranks that share the prototypes, each with samples of its own, of any number; ``None`` for this batch
            alone, where the official code takes the default group by itself.
        backend: name of the backend to run on; None picks one.

    Returns:
        Targets in the shape of ``teacher_output``, float32 (float64 for float64 scores), rows sum to 1.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`sinkhorn`.

    Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", arXiv 2304.07193, section 4;
    Siméoni et al., "DINOv3", arXiv 2508.10104.
    """
    if not isinstance(teacher_output, Tensor) or teacher_output.dim() < 2:
        raise ValueError(
            f"teacher_output must have shape [..., K], got {getattr(teacher_output, 'shape', teacher_output)}"
        )
    codes = sinkhorn(
        teacher_output.flatten(0, -2),
        epsilon=check_epsilon("teacher_temp", teacher_temp),
        iterations=n_iterations,
        dtype=torch.promote_types(teacher_output.dtype, torch.float32),
        group=group,
        backend=backend,
    )
    return codes.view(teacher_output.shape)
