# SPDX-License-Identifier: Apache-2.0
"""The losses as modules: arguments are checked at construction, ``forward`` calls the function of the same name.

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
from pycl.distributed.ranks import Group
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


class _ViewsLoss(Loss):
    def forward(self, *views: Tensor | Sequence[Tensor]) -> Tensor:
        """``forward(views)`` with all views in one tensor or sequence, or ``forward(z1, z2, ...)``."""
        return self._call(_gather(views))


def _gather(views: Sequence[Any]) -> Any:
    return views[0] if len(views) == 1 else views


class NTXentLoss(_ViewsLoss):
    """Module of :func:`pycl.functional.nt_xent`."""

    function = staticmethod(functional.nt_xent)

    def __init__(
        self,
        temperature: float = 0.5,
        *,
        learnable_temperature: bool = False,
        reduction: str = "mean",
        normalize: bool = True,
        group: Group | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(locals())


class InfoNCELoss(Loss):
    """Module of :func:`pycl.functional.info_nce`."""

    function = staticmethod(functional.info_nce)

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        symmetric: bool = False,
        learnable_temperature: bool = False,
        reduction: str = "mean",
        normalize: bool = True,
        group: Group | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(locals())

    def forward(self, query: Tensor, key: Tensor, negatives: Tensor | None = None) -> Tensor:
        """Queries ``[N, d]``, their keys ``[N, d]``, shared negatives ``[M, d]`` or None for the batch's keys."""
        return self._call(query, key, negatives)


class CLIPLoss(Loss):
    """Module of :func:`pycl.functional.clip`; the model owns the logit scale and passes it."""

    function: ClassVar[Callable[..., Tensor]] = staticmethod(functional.clip)

    def __init__(
        self,
        *,
        reduction: str = "mean",
        normalize: bool = False,
        group: Group | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(locals())

    def forward(
        self, image: Tensor, text: Tensor, logit_scale: float | Tensor, logit_bias: float | Tensor | None = None
    ) -> Tensor:
        """Image features ``[N, d]``, text features ``[N, d]``, the scale (not its logarithm) and the bias."""
        return self._call(image, text, logit_scale, logit_bias)


class SigLIPLoss(CLIPLoss):
    """Module of :func:`pycl.functional.siglip`; called as :class:`CLIPLoss` is, with the bias a must."""

    function = staticmethod(functional.siglip)
    __init__ = CLIPLoss.__init__  # else Python 3.10 takes the signature of __new__ for the class's


class DCLLoss(_ViewsLoss):
    """Module of :func:`pycl.functional.dcl`."""

    function = staticmethod(functional.dcl)

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        learnable_temperature: bool = False,
        reduction: str = "mean",
        normalize: bool = True,
        group: Group | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(locals())


class DCLWLoss(_ViewsLoss):
    """Module of :func:`pycl.functional.dclw`."""

    function = staticmethod(functional.dclw)

    def __init__(
        self,
        temperature: float = 0.1,
        sigma: float = 0.5,
        *,
        learnable_temperature: bool = False,
        reduction: str = "mean",
        normalize: bool = True,
        group: Group | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(locals())


class DHELLoss(_ViewsLoss):
    """Module of :func:`pycl.functional.dhel`."""

    function = staticmethod(functional.dhel)

    def __init__(
        self,
        temperature: float = 0.3,
        *,
        learnable_temperature: bool = False,
        reduction: str = "mean",
        normalize: bool = True,
        group: Group | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(locals())


class MVDHELLoss(_ViewsLoss):
    """Module of :func:`pycl.functional.mv_dhel`."""

    function = staticmethod(functional.mv_dhel)

    def __init__(
        self,
        temperature: float = 0.5,
        *,
        learnable_temperature: bool = False,
        reduction: str = "mean",
        normalize: bool = True,
        group: Group | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(locals())


class MVInfoNCELoss(_ViewsLoss):
    """Module of :func:`pycl.functional.mv_info_nce`."""

    function = staticmethod(functional.mv_info_nce)

    def __init__(
        self,
        temperature: float = 0.5,
        *,
        denominator: str = "all",
        learnable_temperature: bool = False,
        reduction: str = "mean",
        normalize: bool = True,
        group: Group | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(locals())


class PolyViewLoss(_ViewsLoss):
    """Module of :func:`pycl.functional.poly_view`."""

    function = staticmethod(functional.poly_view)

    def __init__(
        self,
        temperature: float = 0.2,
        *,
        mean: str = "geometric",
        learnable_temperature: bool = False,
        reduction: str = "mean",
        normalize: bool = True,
        group: Group | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(locals())


class SupConLoss(Loss):
    """Module of :func:`pycl.functional.sup_con`."""

    function = staticmethod(functional.sup_con)

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        form: str = "out",
        learnable_temperature: bool = False,
        reduction: str = "mean",
        normalize: bool = True,
        group: Group | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(locals())

    def forward(self, *views: Tensor | Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        """``forward(views, labels)`` or ``forward(z1, z2, ..., labels)``; the labels are last or given by name."""
        if labels is not None:
            return self._call(_gather(views), labels)
        if len(views) < 2:
            raise TypeError("labels are missing: call loss(views, labels)")
        return self._call(_gather(views[:-1]), views[-1])
