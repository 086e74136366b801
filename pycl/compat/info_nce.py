# SPDX-License-Identifier: Apache-2.0
"""info-nce-pytorch: ``from pycl.compat.info_nce import InfoNCE, info_nce`` instead of ``from info_nce``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pycl import functional
from pycl.compat._common import as_input, nothing, of_one_dtype, signed
from pycl.compat._peer import find_peer, forward_names
from pycl.core.pairs import Points
from pycl.distributed.ranks import LOCAL
from pycl.engine.own import own_logits
from pycl.engine.reduction import check_reduction
from pycl.engine.validation import check_choice
from pycl.functional._common import Scalar, to_logit_scale, unit

__all__ = ["InfoNCE", "info_nce"]
__getattr__, __dir__ = forward_names(__name__, "info_nce", "info-nce-pytorch")

_Base: Any = getattr(find_peer("info_nce"), "InfoNCE", nn.Module)


class InfoNCE(_Base):
    """info-nce-pytorch's ``InfoNCE``, the module of :func:`info_nce`, which says what it computes."""

    def __init__(self, temperature: Scalar = 0.1, reduction: str = "mean", negative_mode: str = "unpaired") -> None:
        super().__init__()
        self.temperature = temperature
        self.reduction = reduction
        self.negative_mode = negative_mode

    def forward(self, query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None) -> Tensor:
        return info_nce(query, positive_key, negative_keys, self.temperature, self.reduction, self.negative_mode)


def info_nce(
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor | None = None,
    temperature: Scalar = 0.1,
    reduction: str = "mean",
    negative_mode: str = "unpaired",
) -> Tensor:
    r"""info-nce-pytorch's ``info_nce``: find the own key among all keys, or among the own key and the negatives.

    With ``s`` the cosine over temperature::

        no negatives:  term_i = log sum_j exp s(q_i, k_j)                        - s(q_i, k_i)
        negatives:     term_i = log( exp s(q_i, k_i) + sum_m exp s(q_i, n_m) )   - s(q_i, k_i)

    where the negatives are shared, ``negative_mode="unpaired"``, or each query's own, ``"paired"``. The logits of
    the first two are never stored; those of paired negatives, [N, M], are, beside their [N, M, d] numbers.

    For half inputs everything is in float32, and the loss is rounded to their dtype, as the package returns it
    (float32 under autocast). A negative temperature looks for the least similar key.

    Shape:
        query and positive_key [N, d], negative_keys [M, d] or [N, M, d]; a scalar, or [N] with ``reduction="none"``.

    Raises:
        RuntimeError: two dtypes that are to be multiplied, outside autocast.
        ValueError: inputs of other shapes or that do not fit, an unknown reduction or mode, a temperature of 0.
    """
    _check(query, positive_key, negative_keys, negative_mode)
    query, positive_key, negative_keys = _of_dtypes(query, positive_key, negative_keys)
    query, temperature = signed(query, temperature)
    if negative_keys is None and len(query) == 1:
        check_reduction(reduction)
        loss = nothing(query, positive_key).expand(1 if reduction == "none" else ())
    elif negative_keys is not None and (negative_mode == "paired" or len(negative_keys) == 0):
        loss = _paired(query, positive_key, negative_keys.expand(len(query), -1, -1), temperature, reduction)
    else:
        loss = functional.info_nce(
            query, positive_key, negative_keys, temperature=temperature, reduction=reduction, group=LOCAL
        )
    return as_input(loss, query)


def _of_dtypes(query: Tensor, key: Tensor, negatives: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """What the package multiplies must have one dtype; next to negatives the own key need not, which makes a sum."""
    if negatives is None:
        return *of_one_dtype(query, key), None
    query, negatives = of_one_dtype(query, negatives)
    common = torch.promote_types(query.dtype, key.dtype)
    return query.to(common), key.to(common), negatives


def _paired(query: Tensor, positive_key: Tensor, negatives: Tensor, temperature: Scalar, reduction: str) -> Tensor:
    check_reduction(reduction)
    q, k = unit(query), unit(positive_key)
    cosines = own_logits(Points(query), negatives, normalize=True)
    logits = torch.cat([(q * k).sum(1, keepdim=True), cosines], 1) * to_logit_scale(temperature)
    own = torch.zeros(len(q), dtype=torch.long, device=q.device)
    return cross_entropy(logits, own, reduction=reduction)


def _check(query: Tensor, positive_key: Tensor, negative_keys: Tensor | None, negative_mode: str) -> None:
    for name, x in (("query", query), ("positive_key", positive_key)):
        if x.dim() != 2:
            raise ValueError(f"{name} must have shape [N, d], got {tuple(x.shape)}")
    if query.shape != positive_key.shape:
        raise ValueError(
            f"positive_key must have the shape of query, {tuple(query.shape)}, got {tuple(positive_key.shape)}"
        )
    if negative_keys is None:
        return
    check_choice("negative_mode", negative_mode, ("unpaired", "paired"))
    n, d = query.shape
    wanted = f"[{n}, M, {d}]" if negative_mode == "paired" else f"[M, {d}]"
    shape = negative_keys.shape
    right = len(shape) == 3 and shape[0] == n if negative_mode == "paired" else len(shape) == 2
    if not right or shape[-1] != d:
        raise ValueError(f"negative_keys must have shape {wanted} where {negative_mode}, got {tuple(shape)}")
