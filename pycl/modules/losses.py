# SPDX-License-Identifier: Apache-2.0
"""The losses as modules: arguments are checked at construction, ``forward`` calls the function of the same name.

What a module is built with are the keyword arguments of its function (:class:`pycl.modules.base.Loss`). losses.pyi has
them written out, for IDEs and type checkers; ``make stubs`` writes it.

Losses on views take ``loss(views)`` with a tensor ``[V, N, d]`` or a sequence of ``[N, d]``, and ``loss(z1, z2, ...)``.
Arguments are attributes of the loss and may be set between steps. With ``learnable_temperature=True`` the logarithm of
the temperature is the parameter ``log_temperature`` [1], so that it stays positive; ``loss.temperature`` is then a
tensor with a gradient, and setting it sets the parameter. A ``Parameter`` given as temperature is one of the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor

from pycl import functional
from pycl.modules.base import Loss

__all__ = [
    "CLIPLoss",
    "DCLLoss",
    "DCLWLoss",
    "DHELLoss",
    "InfoNCELoss",
    "MVDHELLoss",
    "MVInfoNCELoss",
    "NTXentLoss",
    "PolyViewLoss",
    "SigLIPLoss",
    "SupConLoss",
]


class ViewsLoss(Loss):
    """A loss on views."""

    def forward(self, *views: Tensor | Sequence[Tensor]) -> Tensor:
        """``forward(views)`` with all views in one tensor or sequence, or ``forward(z1, z2, ...)``."""
        return self._call(_gather(views))


def _gather(views: Sequence[Any]) -> Any:
    return views[0] if len(views) == 1 else views


class NTXentLoss(ViewsLoss):
    """Module of :func:`pycl.functional.nt_xent`."""

    function = staticmethod(functional.nt_xent)


class InfoNCELoss(Loss):
    """Module of :func:`pycl.functional.info_nce`."""

    function = staticmethod(functional.info_nce)

    def forward(self, query: Tensor, key: Tensor, negatives: Tensor | None = None) -> Tensor:
        """Queries and keys ``[N, d]``, negatives ``[M, d]`` or ``[N, M, d]``, or None for the batch's keys."""
        return self._call(query, key, negatives)


class CLIPLoss(Loss):
    """Module of :func:`pycl.functional.clip`; the model owns the logit scale and passes it."""

    function: ClassVar[Callable[..., Tensor]] = staticmethod(functional.clip)

    def forward(
        self, image: Tensor, text: Tensor, logit_scale: float | Tensor, logit_bias: float | Tensor | None = None
    ) -> Tensor:
        """Image features ``[N, d]``, text features ``[N, d]``, the scale (not its logarithm) and the bias."""
        return self._call(image, text, logit_scale, logit_bias)


class SigLIPLoss(CLIPLoss):
    """Module of :func:`pycl.functional.siglip`; called as :class:`CLIPLoss` is, with the bias a must, and with ids."""

    function = staticmethod(functional.siglip)
    per_call = frozenset({"ids"})

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        ids: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """As :class:`CLIPLoss`; ``ids`` of the images and of the texts, ``[N]`` each."""
        return self._call(image, text, logit_scale, logit_bias, ids=ids)


class DCLLoss(ViewsLoss):
    """Module of :func:`pycl.functional.dcl`."""

    function = staticmethod(functional.dcl)


class DCLWLoss(ViewsLoss):
    """Module of :func:`pycl.functional.dclw`."""

    function = staticmethod(functional.dclw)


class DHELLoss(ViewsLoss):
    """Module of :func:`pycl.functional.dhel`."""

    function = staticmethod(functional.dhel)


class MVDHELLoss(ViewsLoss):
    """Module of :func:`pycl.functional.mv_dhel`."""

    function = staticmethod(functional.mv_dhel)


class MVInfoNCELoss(ViewsLoss):
    """Module of :func:`pycl.functional.mv_info_nce`."""

    function = staticmethod(functional.mv_info_nce)


class PolyViewLoss(ViewsLoss):
    """Module of :func:`pycl.functional.poly_view`."""

    function = staticmethod(functional.poly_view)


class SupConLoss(Loss):
    """Module of :func:`pycl.functional.sup_con`."""

    function = staticmethod(functional.sup_con)

    def forward(self, *views: Tensor | Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        """``forward(views, labels)`` or ``forward(z1, z2, ..., labels)``; the labels are last or given by name."""
        if labels is not None:
            return self._call(_gather(views), labels)
        if len(views) < 2:
            raise TypeError("labels are missing: call loss(views, labels)")
        return self._call(_gather(views[:-1]), views[-1])
