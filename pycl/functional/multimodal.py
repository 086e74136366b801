# SPDX-License-Identifier: Apache-2.0
"""The multi-view losses for modalities with an encoder each, of which an instance may lack some."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pycl.core.pairs import Pairs, Points
from pycl.distributed.ranks import agree, instances
from pycl.engine.reduction import check_reduction, zero_if_empty
from pycl.engine.reductions import pair_stats
from pycl.engine.validation import check_choice
from pycl.functional._common import Scalar, check_features, logits_of_views, to_logit_scale
from pycl.functional._options import Options, loss
from pycl.functional.nt_xent import pairwise_terms

if TYPE_CHECKING:
    from typing_extensions import Unpack


@loss()
def multimodal(
    modalities: Mapping[str, Tensor],
    present: Mapping[str, Tensor] | None = None,
    *,
    form: str = "mv_info_nce",
    temperature: Scalar = 0.5,
    reduction: str = "mean",
    **options: Unpack[Options],
) -> Tensor:
    r"""A multi-view loss over modalities such as image, text and sound, of which an instance may lack some.

    ``form`` is ``"mv_info_nce"``, ``"mv_dhel"``, ``"poly_view"`` (geometric) or ``"pairwise_nt_xent"``: the loss of
    that name, whose views are the modalities, **over what is there**. An entry that is missing is no anchor, no
    candidate and no positive; it is not computed. Sums and means over views run over those that the instance has. With
    nothing missing the value is that of the function itself.

    An instance with one modality has no positive: its entry is a negative of others, and it has no term. The mean runs
    over the terms there are; without any it is 0 with zero gradient.

    Args:
        modalities: for each name embeddings ``[N, d]``, row i of instance i; at least two. Or, where there is a mask,
            the rows alone that are there, in the order of the instances. float64, float32, bfloat16 or float16.
        present: bool ``[N]`` for the modalities that some instances lack: which ones have it. What a row holds that is
            not there does not matter.
        form: which loss.
        temperature: positive number or 0-d tensor.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        options: ``normalize``, ``group`` and ``backend``: :class:`pycl.functional.Options`.

    Returns:
        A scalar; or with ``"none"`` ``[N]`` of the first two forms and ``[V, N]`` of the others, in the order of
        ``modalities``, with 0 where there is no term. float32 (float64 for float64 input).

    Raises:
        TypeError: embeddings that are not floating point, masks that are not bool.
        ValueError: fewer than two modalities, shapes that do not fit, nothing there at all, a mask of an unknown
            modality, a temperature that is not positive, an unknown form, reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Koromilas et al., "A Principled Framework for Multi-View Contrastive Learning", arXiv 2507.06979, whose experiments
    on multimodal data have an encoder for each modality; Shidani et al., arXiv 2403.05490, for poly-view.
    """
    check_reduction(reduction)
    check_choice("form", form, FORMS)
    scale = to_logit_scale(temperature)
    batch = _packed(modalities, present, options)
    terms, has = FORMS[form](batch, scale, options)
    terms = terms.masked_fill(~has, 0.0)
    if reduction == "none":
        return terms
    everyone = agree(
        options["group"], terms.device, [int(has.sum())], operator="multimodal", form=form, reduction=reduction
    )
    n, ranks = (has.sum(), 1) if everyone is None else (everyone.n, everyone.ranks.size)
    if reduction == "sum":
        return terms.sum() * ranks
    return terms.sum() * ranks / torch.as_tensor(n).clamp_min(1)


class _Batch(NamedTuple):
    """Points of what is there, modality after modality, and where each lies in ``[V, N]``."""

    points: Points
    at: Tensor  # [P]
    there: Tensor  # bool [V, N]

    def table(self, x: Tensor, missing: float) -> Tensor:
        """One number per point as [V, N]."""
        full = x.new_full((self.there.numel(),), missing)
        return full.index_copy(0, self.at, x).view(self.there.shape)

    def pair_logits(self, scale: Scalar, normalize: bool) -> Tensor:
        """Logits of every instance's pairs of modalities [V, V, N]; -inf where one is missing, and of itself."""
        z = self.points.z
        full = z.new_zeros(self.there.numel(), z.shape[1]).index_copy(0, self.at, z)
        logits = logits_of_views(full, len(self.there), scale, normalize)
        itself = torch.eye(len(self.there), dtype=torch.bool, device=z.device).unsqueeze(-1)
        return logits.masked_fill(~(self.there & self.there.unsqueeze(1)) | itself, -torch.inf)


def _packed(modalities: Mapping[str, Tensor], present: Mapping[str, Tensor] | None, options: Options) -> _Batch:
    masks = _masks(modalities, present or {})
    n, rows = masks.shape[1], []
    for (name, z), mask in zip(modalities.items(), masks, strict=True):
        there = int(mask.sum())
        if len(z) not in (n, there):
            raise ValueError(f"modalities[{name!r}] must have {n} rows, or the {there} that are there, got {len(z)}")
        rows.append(z[mask] if len(z) == n else z)
    at = masks.flatten().nonzero().squeeze(1)
    dtype = reduce(torch.promote_types, (z.dtype for z in rows))
    ids = instances(n, at.device, options["group"])[at % n]
    return _Batch(Points(torch.cat([z.to(dtype) for z in rows]), ids, at // n), at, masks)


def _masks(modalities: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
    """Which instance has which modality, bool [V, N], once the arguments are known to fit."""
    if not isinstance(modalities, Mapping) or len(modalities) < 2:
        given = ", ".join(modalities) if isinstance(modalities, Mapping) else type(modalities).__name__
        raise ValueError(f"modalities must be a mapping of two modalities or more, got {given}")
    for name in present.keys() - modalities.keys():
        raise ValueError(f"present must be of modalities, {', '.join(map(repr, modalities))}, got {name!r}")
    for name, mask in present.items():
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            given = getattr(mask, "dtype", type(mask).__name__)
            raise TypeError(f"present[{name!r}] must be a bool tensor, got {given}")
    absent = {name for name, mask in present.items() if not mask.any()}  # may have no rows at all
    if absent == modalities.keys():
        raise ValueError("present must leave some instance some modality, got masks that are all False")
    check_features(**{f"modalities[{name!r}]": z for name, z in modalities.items() if name not in absent})
    some = {name: present.get(name, modalities[name]) for name in modalities}
    n, device = max(len(x) for x in some.values()), next(iter(modalities.values())).device
    for name, mask in present.items():
        if mask.dim() != 1 or mask.device != device:
            raise ValueError(f"present[{name!r}] must be [{n}] on {device}, got {tuple(mask.shape)} on {mask.device}")
    for name, x in some.items():
        if len(x) != n:
            raise ValueError(f"modalities must be of as many instances each, got {len(x)} of {name!r} and {n}")
    everything = torch.ones(n, dtype=torch.bool, device=device)
    return torch.stack([present.get(name, everything) for name in modalities])


def _mv_info_nce(batch: _Batch, scale: Scalar, options: Options) -> tuple[Tensor, Tensor]:
    stats = pair_stats(batch.points, None, scale, denominator=Pairs.OTHERS, positives=Pairs.POS_OTHER_VIEW, **options)
    several = batch.there.sum(0) > 1
    tables = (batch.table(x, -torch.inf).masked_fill(~several, 0.0) for x in (stats.lse, stats.pos_lse))
    lse, pos_lse = (x.logsumexp(0) for x in tables)  # of nothing but -inf the gradient would be NaN
    return lse - pos_lse, several


def _mv_dhel(batch: _Batch, scale: Scalar, options: Options) -> tuple[Tensor, Tensor]:
    stats = pair_stats(batch.points, None, scale, denominator=Pairs.NEG_SAME_VIEW, **options)
    several = batch.there.sum(0) > 1
    of_pairs = batch.pair_logits(scale, options["normalize"]).masked_fill(~several, 0.0)
    aligned = of_pairs.flatten(0, 1).logsumexp(0) - math.log(2)  # ordered pairs; the formula has each once
    return batch.table(zero_if_empty(stats.lse), 0.0).sum(0) - aligned, several


def _poly_view(batch: _Batch, scale: Scalar, options: Options) -> tuple[Tensor, Tensor]:
    stats = pair_stats(batch.points, None, scale, denominator=Pairs.NEGATIVE, **options)
    of_pairs = batch.pair_logits(scale, options["normalize"])
    missing, partners = of_pairs == -torch.inf, batch.there.sum(0) - 1
    log_p = F.logsigmoid(of_pairs.masked_fill(missing, 0.0) - batch.table(stats.lse, 0.0).unsqueeze(1))
    return -log_p.masked_fill(missing, 0.0).sum(1) / partners.clamp_min(1), batch.there & (partners > 0)


def _pairwise_nt_xent(batch: _Batch, scale: Scalar, options: Options) -> tuple[Tensor, Tensor]:
    points, n_views = batch.points, len(batch.there)
    own = pair_stats(points, None, scale, denominator=Pairs.NEG_SAME_VIEW, **options).lse
    half = int(batch.there[: n_views // 2].sum())
    alone = options["group"] is None and 0 < half < len(points.z)
    total, count = pairwise_terms(points, n_views, own, scale, half if alone else None, options)
    partners = batch.table(count, 0.0)
    return batch.table(total, 0.0) / partners.clamp_min(1), partners > 0


FORMS = {
    "mv_info_nce": _mv_info_nce,
    "mv_dhel": _mv_dhel,
    "poly_view": _poly_view,
    "pairwise_nt_xent": _pairwise_nt_xent,
}
