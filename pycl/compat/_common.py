# SPDX-License-Identifier: Apache-2.0
"""What drop-ins for several libraries share: all ranks as a group, the dtype of the result, swapped prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy

from pycl.core.sinkhorn import NotFiniteError
from pycl.core.tracing import observed
from pycl.distributed.ranks import LOCAL, Group, agree, several_ranks, together
from pycl.functional import sinkhorn
from pycl.functional._common import Scalar, as_scalar, to_logit_scale, widen


def all_ranks() -> dist.ProcessGroup | None:
    """The group of all ranks where there are several, otherwise None."""
    return dist.group.WORLD if several_ranks() else None


@together
def check_even(z: Tensor, *, group: Group | None) -> None:
    """What is joined in one shape on all ranks: anything else ends or stops the processes in the collective."""
    agree(group, z.device, [len(z)], dtype=str(z.dtype), **{"the number of samples": len(z)})


def as_input(loss: Tensor, embeddings: Tensor, on_cpu: str = "float32") -> Tensor:
    """A loss in the dtype of the library's, which is that of the embeddings unless autocast is on.

    Under autocast a cross entropy is float32 anywhere. What ends in ``exp``, ``logsumexp`` or ``sum`` is so on a GPU,
    but autocast on a CPU leaves those alone. The result then has the dtype ``on_cpu``: of the ``"product"``, which is
    autocast's own, of the ``"input"`` where there is no product, or of ``"both"`` where the input meets the product.
    """
    device, dtype = embeddings.device.type, embeddings.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:  # which autocast does not touch
        if device != "cpu" or on_cpu == "float32":
            return loss
        if on_cpu != "input":
            half = torch.get_autocast_dtype(device)
            dtype = half if on_cpu == "product" else torch.promote_types(dtype, half)
    return loss if loss.dtype == dtype else loss.to(dtype)


def of_one_dtype(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two sets that a library multiplies: autocast makes their dtypes one, plain torch refuses two."""
    if a.dtype == b.dtype:
        return a, b
    if not torch.is_autocast_enabled(a.device.type) or torch.float64 in (a.dtype, b.dtype):
        raise RuntimeError(
            f"embeddings must have one and the same dtype outside autocast, got {a.dtype} and {b.dtype}: "
            f"convert one with .to({a.dtype})"
        )
    common = torch.promote_types(a.dtype, b.dtype)
    return a.to(common), b.to(common)


def is_negative(temperature: Scalar) -> bool:
    """A number below 0; a tensor is looked at where that costs nothing: on the CPU, in eager mode."""
    if isinstance(temperature, Tensor) and (temperature.device.type != "cpu" or observed()):
        return False
    return bool(temperature < 0)


def signed_scale(temperature: Scalar) -> Scalar:
    """``1 / temperature`` of either sign."""
    return -to_logit_scale(-temperature) if is_negative(temperature) else to_logit_scale(temperature)


def signed(query: Tensor, temperature: Scalar) -> tuple[Tensor, Scalar]:
    """The same products over a temperature that is not negative."""
    return (-query, -temperature) if is_negative(temperature) else (query, temperature)


def nothing(*inputs: Scalar | None) -> Tensor:
    """The loss of one candidate, which is the positive: exactly 0 with a graph; NaN where an entry is not finite."""
    return reduce(add, [(widen(z) * 0).sum() for z in inputs if isinstance(z, Tensor)])


def codes_of(scores: Tensor, **options: Any) -> Tensor:
    """:func:`pycl.functional.sinkhorn` that makes NaN of scores which are not finite, as the libraries do.

    A step with an overflow is then skipped by a ``GradScaler``, not the end of the training.
    """
    try:
        return sinkhorn(scores, **(options | {"group": options.get("group") or LOCAL}))
    except NotFiniteError:
        return torch.full_like(scores, torch.nan, dtype=options.get("dtype"))


def soft_cross_entropy(scores: Tensor, codes: Tensor, temperature: Scalar) -> Tensor:
    """Mean over samples of ``-sum_k codes_k log softmax_k(scores / temperature)``, in at least float32."""
    scores = widen(scores)
    return cross_entropy(scores / as_scalar("temperature", temperature), codes.to(scores.dtype))


def swapped_prediction(
    scores: Sequence[Tensor], codes: Sequence[Tensor], loss: Callable[[Tensor, Tensor], Tensor]
) -> list[Tensor]:
    """For every crop its cross entropies with the codes of the other crops, summed; codes belong to the first crops.

    A cross entropy is linear in the codes: one with their sum does for all.
    """
    others = [[c for i, c in enumerate(codes) if i != v] for v in range(len(scores))]
    return [loss(crop, reduce(add, wanted)) for crop, wanted in zip(scores, others, strict=True) if wanted]
