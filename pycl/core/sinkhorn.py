# SPDX-License-Identifier: Apache-2.0
"""Sinkhorn's alternation in the log domain, for anything that can reduce the logits over the samples.

With logits ``L = scores / epsilon`` [B, K] and ``u = 0`` at the start, an iteration is the prototype step and then the
sample step::

    v_k = log(B m_k) - log sum_b exp(L_bk + u_b)
    u_b = log(B a_b) - log sum_k exp(L_bk + v_k)

with the marginals ``m`` of the prototypes and ``a`` of the samples. After either step ``exp(L_bk + u_b + v_k)`` has the
mass B. With two different masses a constant would move from ``u`` to ``v`` in every iteration and take their last
digits.

After any number of iterations this equals the published algorithm. Do not shift each sample's scores first: that would
be another ``u`` to start from, and other codes before convergence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor

from pycl.core.problem import SinkhornProblem
from pycl.core.tracing import observed


def step(lse: Tensor, target: Tensor | None = None, penalty: float = math.inf, epsilon: float = 1.0) -> Tensor:
    """A potential from the log-sum-exps of its side. None is a target of 0; a finite penalty makes a marginal soft."""
    potential = -lse if target is None else target - lse
    return potential if penalty == math.inf else potential * (penalty / (penalty + epsilon))


def prototype_potential(
    columns: Callable[[Tensor | None], Tensor],
    prototype_step: Callable[[Tensor], Tensor],
    iterations: int,
) -> Tensor:
    """``v`` after a number of iterations, at least one.

    Args:
        columns: from ``v`` to ``log sum_b exp(L_bk + u_b)`` over all samples, those of other ranks too, ``u`` from the
            sample step, or 0 where ``v`` is None.
        prototype_step: from those log-sum-exps to ``v``.
        iterations: how many prototype steps.
    """
    v = None
    for _ in range(iterations):
        v = prototype_step(columns(v))
    return cast("Tensor", v)


def solve(
    columns: Callable[[SinkhornProblem, Tensor | None], Tensor],
    codes: Callable[[SinkhornProblem, Tensor], tuple[Tensor, Tensor]],
    t: SinkhornProblem,
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes and both potentials of stored scores, in ``iterations + 1`` reads of them."""
    v = prototype_potential(partial(columns, t), lambda lse: step(lse, t.prototype_target), t.iterations)
    return *codes(t, v), v


class NotFiniteError(ValueError):
    """Scores with NaN or infinity, or with a row or a column of nothing but -inf."""


def check_finite(t: SinkhornProblem, u: Tensor, v: Tensor, alone: bool = True) -> None:
    """Raise NotFiniteError if a potential is infinite or NaN; the message says which scores are the cause.

    With ``alone=False`` a prototype that is ruled out here may have samples on other ranks.

    Looks at CPU tensors only: there it costs B + K products, and a GPU would have to be waited for.
    """
    if u.device.type != "cpu" or observed() or math.isfinite(u.dot(u).item() + v.dot(v).item()):
        return
    if u.isfinite().all() and v.isfinite().all():
        return
    scores = t.scores
    if t.out is not None and t.out.data_ptr() == scores.data_ptr():
        raise NotFiniteError("scores had NaN, infinity or a row or column of -inf; out=scores has overwritten where")
    bad = (scores.isnan() | (scores == torch.inf)).nonzero()
    if len(bad):
        b, k = bad[0].tolist()
        raise NotFiniteError(
            f"scores must be finite (or -inf for a pair that is ruled out), got {len(bad)} that are not, "
            f"the first {scores[b, k].item()} at [{b}, {k}]"
        )
    for dim, what in ((1, "row"), (0, "column")):
        empty = (scores == -torch.inf).all(dim).nonzero().flatten().tolist()
        if empty and (dim == 1 or alone):
            raise NotFiniteError(f"scores must have a finite entry in every {what}, {what} {empty[0]} has only -inf")
    if not alone:
        raise NotFiniteError("scores are fine on this rank, but NaN, infinite or ruled out on another")
    raise NotFiniteError(f"scores / epsilon is beyond the range of its dtype, epsilon={t.epsilon:g}")
