# SPDX-License-Identifier: Apache-2.0
"""What all losses as modules have in common: their arguments, a learnable temperature, copies and files."""

from __future__ import annotations

import math
from collections.abc import Callable
from inspect import Parameter, Signature, signature
from itertools import takewhile
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pycl.backends import registry
from pycl.distributed.ranks import check_group, named
from pycl.engine.reduction import check_reduction
from pycl.engine.validation import check_choice
from pycl.functional._common import check_positive, widen
from pycl.functional._smoothing import check_smoothing
from pycl.functional.multi_view import DENOMINATORS, MEANS
from pycl.functional.sup_con import FORMS
from pycl.modules.docstrings import Composed, without_self

CHOICES = {"denominator": DENOMINATORS, "mean": MEANS, "form": FORMS}
OF_RANKS = "the candidates of all ranks come with group='world'"
FOREIGN = {  # arguments of other libraries' losses, and what there is for them
    **dict.fromkeys(("gather_distributed", "gather_with_grad", "local_loss", "world_size"), OF_RANKS),
    "tau": "it is called temperature",
    "memory_bank_size": "a queue is an argument of the call, InfoNCELoss()(query, key, queue)",
}
POSITIVE = ("temperature", "sigma", "epsilon")


def arguments_of(function: Callable[..., Any], per_call: frozenset[str]) -> Signature:
    """What the module of a function is built with; the tensors that the function takes by position are left out."""
    given = signature(function).parameters.values()
    named = [p for p in given if p.kind is Parameter.KEYWORD_ONLY and p.name not in per_call]
    if any(p.name == "temperature" for p in named):
        named.append(Parameter("learnable_temperature", Parameter.KEYWORD_ONLY, default=False, annotation="bool"))
    numbers = takewhile(lambda p: type(p.default) in (int, float), named)
    positional = [p.replace(kind=Parameter.POSITIONAL_OR_KEYWORD) for p in numbers]
    return Signature([*positional, *named[len(positional) :]], return_annotation=None)


class Loss(nn.Module):
    """A function as a module: keeps its keyword arguments, checks them, and takes new ones: ``loss.reduction = "sum"``.

    A subclass names its ``function``. Its arguments are those that the function takes by name, the leading numbers also
    by position, and where there is a temperature ``learnable_temperature`` besides.
    """

    function: ClassVar[Callable[..., Tensor]]
    arguments: ClassVar[Signature]  # of the subclass that names the function
    fixed: ClassVar[frozenset[str]] = frozenset({"learnable_temperature"})  # arguments that make parameters or buffers
    per_call: ClassVar[frozenset[str]] = frozenset()  # arguments of the function that the module itself finds

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "function" in cls.__dict__:
            cls.arguments = arguments_of(cls.function, cls.per_call)
        own = cls.__dict__.get("__init__")
        shown = getattr(cls, "arguments", None) if own is None else without_self(own)
        cls.__signature__ = shown  # type: ignore[attr-defined]  # what inspect and help look for first
        if "function" in cls.__dict__ and cls.__doc__ and cls.function.__doc__:  # python -OO leaves none
            cls.__doc__ = Composed(cls.__doc__)  # type: ignore[assignment]  # a string where one looks at it

    def __new__(cls, *args: Any, **options: Any) -> Loss:
        for name in options.keys() & FOREIGN.keys():
            raise TypeError(f"{cls.__name__} takes no {name}: {FOREIGN[name]}")
        return super().__new__(cls)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__()
        try:
            bound = self.arguments.bind(*args, **options)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}: {error}") from None
        bound.apply_defaults()
        given = dict(bound.arguments)
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
            registry.check_name(value)
        elif name == "label_smoothing":
            check_smoothing(value)
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
        elif name == "temperature" and isinstance(value, nn.Parameter):
            options.pop(name, None)
            super().__setattr__(name, value)
        elif name in options:
            options[name] = self.check(name, value)
        else:
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
