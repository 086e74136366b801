# SPDX-License-Identifier: Apache-2.0
"""The dense form of a loss that others have to beat: its formula, or a faster spelling where there is one.

A formula of :mod:`pycl.testing.formulas` is written to be read. A baseline has to be in its best form, so a loss has a
second spelling here where that spelling was measured to be faster, and a test holds it to the formula. Both take the
same arguments. A spelling here returns the mean.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pycl.testing import formulas

from .workload import Function

Number = formulas.Number


def siglip(image: Tensor, text: Tensor, logit_scale: Number, logit_bias: Number) -> Tensor:
    """Softplus of all less the diagonal: the formula multiplies the matrix by one of signs."""
    logits = logit_scale * image @ text.T + logit_bias
    return F.softplus(logits).sum() / len(logits) - logits.diagonal().mean()


def nt_xent(views: Tensor, temperature: Number) -> Tensor:
    """One cross entropy for two views: the formula masks the matrix twice. More views have more than one positive."""
    if len(views) != 2:
        return formulas.nt_xent(views, temperature).mean()
    z = F.normalize(views, dim=-1).flatten(0, 1)
    logits = z @ z.T / temperature
    logits.fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(z) // 2))


def mv_dhel(views: Tensor, temperature: Number) -> Tensor:
    """One batched product, its diagonals filled in place: the formula masks a copy of every view's matrix."""
    z = F.normalize(views, dim=-1)
    logits = z @ z.mT / temperature
    logits.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    positives = torch.einsum("vid,wid->ivw", z, z) / temperature
    first, second = torch.triu_indices(len(z), len(z), 1, device=z.device)
    return (logits.logsumexp(2).sum(0) - positives[:, first, second].logsumexp(1)).mean()


FASTER: dict[str, Function] = {"siglip": siglip, "nt_xent": nt_xent, "mv_dhel": mv_dhel}


def fastest(name: str) -> Function:
    """The mean of a loss of :mod:`pycl.testing.formulas` in the fastest dense spelling that is known."""
    formula: Function = getattr(formulas, name)

    def mean(*inputs: Tensor, **options: Number) -> Tensor:
        return formula(*inputs, **options).mean()

    return FASTER.get(name, mean)
