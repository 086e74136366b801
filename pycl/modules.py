# SPDX-License-Identifier: Apache-2.0
"""The losses as modules: arguments are checked at construction, ``forward`` calls the function of the same name.

Losses on views take ``loss(views)`` with a tensor ``[V, N, d]`` or a sequence of ``[N, d]``, and ``loss(z1, z2, ...)``.
Arguments are attributes of the loss and may be set between steps. With ``learnable_temperature=True`` the logarithm of
the temperature is the parameter ``log_temperature`` [1], so that it stays positive; ``loss.temperature`` is then a
tensor with a gradient, and setting it sets the parameter. A ``Parameter`` given as temperature is one of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pycl import backends, functional
from pycl.distributed import Group, check_group, named
from pycl.functional._common import check_positive, widen
from pycl.functional.multi_view import DENOMINATORS, MEANS
from pycl.functional.sup_con import FORMS
from pycl.reduction import check_reduction
from pycl.validation import check_choice

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

CHOICES = {"denominator": DENOMINATORS, "mean": MEANS, "form": FORMS}
OF_RANKS = "the candidates of all ranks come with group='world'"
FOREIGN = {  # arguments of other libraries' losses, and what there is for them
    **dict.fromkeys(("gather_distributed", "gather_with_grad", "local_loss", "world_size"), OF_RANKS),
    "tau": "it is called temperature",
    "memory_bank_size": "a queue is an argument of the call, InfoNCELoss()(query, key, queue)",
}
POSITIVE = ("temperature", "sigma", "epsilon")


class Loss(nn.Module):
    """Keeps the keyword arguments of ``function``, checks them, and takes new ones: ``loss.reduction = "sum"``.

    A subclass writes its signature out and hands ``locals()`` on, so each argument is named in one place.
    """

    function: ClassVar[Callable[..., Tensor]]
    fixed: ClassVar[frozenset[str]] = frozenset({"learnable_temperature"})  # arguments that make parameters or buffers

    def __new__(cls, *args: Any, **options: Any) -> Loss:
        for name in options.keys() & FOREIGN.keys():
            raise TypeError(f"{cls.__name__} takes no {name}: {FOREIGN[name]}")
        return super().__new__(cls)

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__()
        given = {name: value for name, value in arguments.items() if name not in ("self", "__class__")}
        learnable = given.pop("learnable_temperature", False)
        self.options = {name: self.check(name, value) for name, value in given.items()}
        if learnable:
            self.initial_temperature = float(self.options.pop("temperature"))
            self.log_temperature = nn.Parameter(torch.empty(1))  # of a dimension, or FSDP could not shard it
            self.reset_parameters()
        elif isinstance(given.get("temperature"), nn.Parameter):
            self.temperature = given["temperature"]

    def check(self, name: str, value: Any) -> Any:
        """The value of an argument in the form that is kept; raises what the function would."""
        if name == "reduction":
            check_reduction(value)
        elif name == "group":
            check_group(value)
        elif name == "backend" and value is not None:
            check_choice("backend", value, backends.KNOWN)
        elif name in CHOICES:
            check_choice(name, value, CHOICES[name])
        elif name in POSITIVE:
            number = check_positive(name, value)
            return value if isinstance(value, Tensor) else number
        return value

    def reset_parameters(self) -> None:
        """Give a learnable temperature the value it was built with."""
        if "log_temperature" in self._parameters:
            nn.init.constant_(self.log_temperature, math.log(self.initial_temperature))

    def __getattr__(self, name: str) -> Any:
        if name in (options := self.__dict__.get("options", {})):
            return options[name]
        if name == "temperature" and "log_temperature" in self._parameters:
            return self._learned_temperature()
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        options = self.__dict__.get("options", {})
        if name in self.fixed:
            raise AttributeError(f"{name} of {type(self).__name__} is fixed when it is built: build another one")
        if name == "temperature" and "log_temperature" in self._parameters:
            self.initial_temperature = float(check_positive(name, value))
            self.reset_parameters()
        elif name in options and not isinstance(value, nn.Parameter):
            options[name] = self.check(name, value)
        else:
            if isinstance(value, nn.Parameter):
                options.pop(name, None)
            super().__setattr__(name, value)

    def _learned_temperature(self) -> Tensor:
        return widen(self.log_temperature).exp().reshape(())

    def _call(self, *inputs: Any, **state: Any) -> Tensor:
        options = self.options | state
        if "log_temperature" in self._parameters:
            options["temperature"] = self._learned_temperature()
        elif "temperature" in self._parameters:
            options["temperature"] = self._parameters["temperature"]
        return type(self).function(*inputs, **options)

    def extra_repr(self) -> str:
        shown = {name: value for name, value in self.options.items() if value is not None}
        if "log_temperature" in self._parameters:
            shown = {"temperature": f"{self._learned_temperature().item():.4g} (learnable)", **shown}
        return ", ".join(f"{name}={value}" for name, value in shown.items())

    def __getstate__(self) -> dict[str, Any]:
        """For copies and files: a process group goes by its name and is looked up when the loss is called."""
        group = self.options.get("group")
        return self.__dict__ | {"options": self.options | {"group": named(group)}}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(key := f"{prefix}log_temperature")
        if "log_temperature" in self._parameters and isinstance(saved, Tensor) and saved.dim() == 0:
            state_dict[key] = saved.reshape(1)  # of earlier versions
        super()._load_from_state_dict(state_dict, prefix, *args)


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
