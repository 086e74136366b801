# SPDX-License-Identifier: Apache-2.0
"""Modalities of which instances lack some: who lacks what, and the losses over what is there in plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from pycl.testing.formulas.shared import log_sum


def lacking(modalities: int, instances: int, share: float, seed: int) -> Tensor:
    """Who has what, bool ``[V, N]``: each entry is missing with probability ``share``, but never the last one."""
    generator = Generator().manual_seed(seed)
    there = torch.rand(modalities, instances, generator=generator) >= share
    kept = torch.randint(modalities, (instances,), generator=generator)
    lost = ~there.any(0)
    there[kept[lost], lost.nonzero().squeeze(1)] = True
    return there


class Cosines(NamedTuple):
    """The points that are there: cosines over temperature of all of them, and which modality and instance each is."""

    s: Tensor
    view: Tensor
    instance: Tensor
    there: Tensor

    @property
    def others(self) -> Tensor:
        return ~torch.eye(len(self.s), dtype=torch.bool, device=self.s.device)

    @property
    def positive(self) -> Tensor:
        return (self.instance[:, None] == self.instance) & self.others

    def by_instance(self, x: Tensor, missing: float) -> Tensor:
        """A number a point as ``[V, n]`` of the instances with several modalities."""
        table = x.new_full(self.there.shape, missing).index_put((self.view, self.instance), x)
        return table[:, self.there.sum(0) > 1]

    def mean_over_partners(self, terms: Tensor) -> Tensor:
        """Mean of terms ``[P, P]`` over each point's positive pairs, then over the points that have one."""
        partners = self.positive.sum(1)
        return (terms.masked_fill(~self.positive, 0).sum(1)[partners > 0] / partners[partners > 0]).mean()


def dense(embeddings: tuple[Tensor, ...], there: Tensor, form: str, temperature: float) -> Tensor:
    """The mean that :func:`pycl.functional.multimodal` gives of the rows that are there, every matrix stored.

    Of every modality there must be two rows or more.
    """
    z = F.normalize(torch.cat(embeddings), dim=1)
    view, instance = there.nonzero(as_tuple=True)
    return FORMS[form](Cosines(z @ z.T / temperature, view, instance, there))


def _mv_info_nce(c: Cosines) -> Tensor:
    lse, aligned = (c.by_instance(log_sum(c.s, pairs), -torch.inf).logsumexp(0) for pairs in (c.others, c.positive))
    return (lse - aligned).mean()


def _mv_dhel(c: Cosines) -> Tensor:
    energy = log_sum(c.s, (c.view[:, None] == c.view) & c.others)
    aligned = c.by_instance(log_sum(c.s, c.positive), -torch.inf).logsumexp(0) - math.log(2)  # ordered pairs
    return (c.by_instance(energy, 0.0).sum(0) - aligned).mean()


def _poly_view(c: Cosines) -> Tensor:
    negative = log_sum(c.s, c.instance[:, None] != c.instance)
    return c.mean_over_partners(-F.logsigmoid(c.s - negative[:, None]))


def _pairwise_nt_xent(c: Cosines) -> Tensor:
    views = range(len(c.there))
    of_view = torch.stack([log_sum(c.s, (c.view == view) & c.others) for view in views], 1)  # [P, V]
    own = of_view.gather(1, c.view[:, None])
    return c.mean_over_partners(torch.logaddexp(own, of_view[:, c.view]) - c.s)


FORMS: dict[str, Callable[[Cosines], Tensor]] = {
    "mv_info_nce": _mv_info_nce,
    "mv_dhel": _mv_dhel,
    "poly_view": _poly_view,
    "pairwise_nt_xent": _pairwise_nt_xent,
}
