# SPDX-License-Identifier: Apache-2.0
"""A model's own forward, whose logits are not computed on the way to its loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pycl.compat._peer import fall_back

from ._algebra import STARTERS
from ._lazy import Lazy, run
from ._losses import ASKED, Asked, Losses


class _Reading(TorchFunctionMode):
    """Makes lazy tensors of what may become logits, and takes part in what is done to them."""

    def __torch_function__(self, func: Any, types: Sequence[Any], args: Any = (), kwargs: Any = None) -> Any:
        if func in STARTERS or Lazy in types:
            return run(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def forward_of(
    original: Callable[..., Any], asks: str, gather: Callable[[], bool], own_code: str
) -> Callable[..., Any]:
    """The forward that takes the place of a model's own, which it runs; ``asks`` is the argument that wants a loss."""
    signature = inspect.signature(original)

    def wants_loss(model: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        try:
            wanted = signature.bind(model, *args, **kwargs).arguments.get(asks)
        except TypeError:  # which the forward itself says best
            return False
        if wanted is None:
            wanted = getattr(model.config, asks, False)
        return isinstance(wanted, Tensor) or bool(wanted)

    @wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not wants_loss(self, args, kwargs):
            return original(self, *args, **kwargs)
        if why := own_code or _traced():
            fall_back(type(self).__name__, why)
            return original(self, *args, **kwargs)
        token = ASKED.set(asked := Asked(gather()))
        try:
            with _Reading():
                found = original(self, *args, **kwargs)
        finally:
            ASKED.reset(token)
        found = _settled(found)
        if not asked.terms and _loss_of(found) is not None:
            fall_back(type(self).__name__, "its loss is made of logits in a way that pycl does not know")
        return found

    return forward


def _traced() -> str:
    """What sees the operators instead of running them, or nothing: it must see the library's."""
    if torch.compiler.is_compiling():
        return "torch.compile traces its forward; compile its towers instead"
    modes = torch._C._TorchDispatchModeKey
    graph = any(torch._C._get_dispatch_mode(key) is not None for key in (modes.FAKE, modes.PROXY, modes.FUNCTIONAL))
    return "its forward is traced" if graph or torch._C._is_tracing() or _transformed() else ""


def _transformed() -> bool:
    return bool(torch._C._are_functorch_transforms_active())


def _settled(found: Any) -> Any:
    """The output of a model, with its losses computed and its logits not."""
    if isinstance(found, Lazy):
        return found.formula.dense() if isinstance(found.formula, Losses) else found
    if type(found) is tuple:
        return tuple(map(_settled, found))
    if hasattr(found, "to_tuple"):  # a ModelOutput
        for name, value in found.items():
            if (settled := _settled(value)) is not value and not isinstance(value, tuple):
                found[name] = settled
    return found


def _loss_of(found: Any) -> Tensor | None:
    loss = found[0] if isinstance(found, tuple) else found.loss
    return loss if isinstance(loss, Tensor) and loss.dim() == 0 else None
