# SPDX-License-Identifier: Apache-2.0
"""What every answer is, in float64: from the formula, and in blocks of rows where the matrices of a formula are large.

Neither shares code with what is measured. Blocks give what the formula gives; a test says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pycl.testing import formulas

from . import float64_modifiers, sinkhorn
from .losses import LOGIT_SCALE, TEMPERATURE
from .objectives import OBJECTIVE_WORKLOADS
from .workload import Function, in_float64, step_of

FORMULA_ROWS = 1024  # up to which the formula itself answers
BLOCK_ENTRIES = 2**27  # of one block of logits: 1 GiB

FORMULAS: dict[str, Function] = {  # as in the papers
    "clip": lambda image, text: formulas.clip(image, text, LOGIT_SCALE).mean(),
    "siglip": lambda *inputs: formulas.siglip(*inputs).mean(),
    "nt_xent": lambda *views: formulas.nt_xent(torch.stack(views), TEMPERATURE).mean(),
    "mv_dhel": lambda *views: formulas.mv_dhel(torch.stack(views), TEMPERATURE).mean(),
}


def clip(image: Tensor, text: Tensor) -> Tensor:
    both = log_sum_exp(image, text, LOGIT_SCALE, False) + log_sum_exp(text, image, LOGIT_SCALE, False)
    return (both / 2 - LOGIT_SCALE * (image * text).sum(1)).mean()


def siglip(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    own = (scale * (image * text).sum(1) + bias).sum()
    return (softplus_sum(image, text, scale, bias) - own) / len(image)


def nt_xent(*views: Tensor) -> Tensor:
    z = F.normalize(torch.cat(views))
    positive = (z * z.roll(len(z) // 2, 0)).sum(1) / TEMPERATURE
    return (log_sum_exp(z, z, 1 / TEMPERATURE, True) - positive).mean()


def mv_dhel(*views: Tensor) -> Tensor:
    unit = [F.normalize(z) for z in views]
    positives = [(a * b).sum(1) / TEMPERATURE for i, a in enumerate(unit) for b in unit[:i]]
    energy = sum((log_sum_exp(z, z, 1 / TEMPERATURE, True) for z in unit), start=unit[0].new_zeros(()))
    return (energy - torch.stack(positives).logsumexp(0)).mean()


def codes(scores: Tensor) -> Tensor:
    u, v = alternated(scores)
    return (scores / sinkhorn.EPSILON + u[:, None] + v).exp()


def potentials(z: Tensor, prototypes: Tensor) -> Tensor:
    return torch.cat(alternated(z @ prototypes.T))


def swav(crops: Tensor, prototypes: Tensor) -> Tensor:
    terms = []
    for i in range(sinkhorn.CODE_CROPS):
        q = codes(crops[i].detach() @ prototypes.detach().T)
        for v in range(len(crops)):
            if v != i:
                log_p = (crops[v] @ prototypes.T / sinkhorn.TEMPERATURE).log_softmax(1)
                terms.append(-(q * log_p).sum(1).mean())
    return torch.stack(terms).mean()


def alternated(scores: Tensor) -> tuple[Tensor, Tensor]:
    u, v = scores.new_zeros(scores.shape[0]), scores.new_zeros(scores.shape[1])
    for _ in range(sinkhorn.ITERATIONS):
        v = math.log(len(u) / len(v)) - (scores / sinkhorn.EPSILON + u[:, None]).logsumexp(0)
        u = -(scores / sinkhorn.EPSILON + v).logsumexp(1)
    return u, v


IN_BLOCKS: dict[str, Callable[..., Tensor]] = {
    "clip": clip,
    "siglip": siglip,
    "nt_xent": nt_xent,
    "mv_dhel": mv_dhel,
    "sinkhorn": codes,
    "sinkhorn, out=": codes,
    "potentials": potentials,
    "swav": swav,
    **float64_modifiers.IN_BLOCKS,
    **{name: workload.dense for name, workload in OBJECTIVE_WORKLOADS.items()},  # whole, at any size
}


def expected(loss: str, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The value, and the gradient of every input that requires one, in float64."""
    is_small = max(len(x) for x in inputs if x.dim()) <= FORMULA_ROWS
    function = FORMULAS[loss] if is_small and loss in FORMULAS else IN_BLOCKS[loss]
    return step_of(function, in_float64(inputs))()


def repeated(exact: Sequence[Tensor], pick: Tensor) -> list[Tensor]:
    """The answer of ``clip`` on points ``pick``, each as often as any other, from that on the points themselves.

    Every sum of exponentials grows by the factor of repetition, which leaves the softmax of a point as it was.
    """
    value, *gradients = exact
    times = len(pick) / len(gradients[0])
    return [value + math.log(times), *(gradient[pick] / times for gradient in gradients)]


def log_sum_exp(a: Tensor, b: Tensor, scale: float, skip_self: bool) -> Tensor:
    """``log sum_j exp(scale <a_i, b_j>)``, over all ``j`` or all but ``i``."""
    found: Tensor = _LogSumExp.apply(a, b, scale, skip_self)
    return found


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, scale: float, skip_self: bool) -> Tensor:
        found = torch.cat([logits.logsumexp(1) for _, logits in _blocks(a, b, scale, skip_self)])
        ctx.save_for_backward(a, b, found)
        ctx.options = scale, skip_self
        return found

    @staticmethod
    def backward(ctx: Any, d_found: Tensor) -> tuple[Tensor, Tensor, None, None]:
        a, b, found = ctx.saved_tensors
        scale, skip_self = ctx.options
        d_a, d_b = [], torch.zeros_like(b)
        for rows, logits in _blocks(a, b, scale, skip_self):
            weight = logits.sub_(found[rows, None]).exp_().mul_(scale * d_found[rows, None])
            d_a.append(weight @ b)
            d_b.addmm_(weight.T, a[rows])
        return torch.cat(d_a), d_b, None, None


def softplus_sum(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """``sum_ij log(1 + exp(scale <a_i, b_j> + bias))``."""
    found: Tensor = _SoftplusSum.apply(a, b, scale, bias)
    return found


class _SoftplusSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(a, b, scale, bias)
        return torch.stack([F.softplus(scale * sims + bias).sum() for _, sims in _blocks(a, b, 1.0, False)]).sum()

    @staticmethod
    def backward(ctx: Any, d_found: Tensor) -> tuple[Tensor, ...]:
        a, b, scale, bias = ctx.saved_tensors
        d_a, d_b, d_scale, d_bias = [], torch.zeros_like(b), torch.zeros_like(scale), torch.zeros_like(bias)
        for rows, sims in _blocks(a, b, 1.0, False):
            weight = torch.sigmoid(scale * sims + bias)
            d_a.append(weight @ b)
            d_b.addmm_(weight.T, a[rows])
            d_scale += (weight * sims).sum()
            d_bias += weight.sum()
        return d_found * scale * torch.cat(d_a), d_found * scale * d_b, d_found * d_scale, d_found * d_bias


def _blocks(a: Tensor, b: Tensor, scale: float, skip_self: bool) -> Iterator[tuple[slice, Tensor]]:
    height = max(1, BLOCK_ENTRIES // len(b))
    for start in range(0, len(a), height):
        rows = slice(start, start + height)
        logits = (scale * a[rows]) @ b.T
        if skip_self:
            logits.diagonal(start).fill_(-torch.inf)
        yield rows, logits
