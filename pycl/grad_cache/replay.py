# SPDX-License-Identifier: Apache-2.0
"""What has to be kept, found or watched to run a function of modules twice with one and the same outcome."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def random_state() -> list[Tensor]:
    """States of the CPU's generator and of those of all CUDA devices, if any is in use."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]


def set_random_state(states: Sequence[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for device, state in enumerate(states[1:]):
        torch.cuda.set_rng_state(state, device)


class Buffers:
    """Buffers of modules and their values now; one that was assigned anew becomes the former tensor again.

    Expanded ones are left alone: nothing can be written into them.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.saved = {
            (module, name): (buffer, buffer.detach().clone())
            for module in modules
            for name, buffer in module.named_buffers(recurse=False)
            if not any(n > 1 and stride == 0 for n, stride in zip(buffer.shape, buffer.stride(), strict=True))
        }

    def put_back(self) -> None:
        with torch.no_grad():
            for (module, name), (buffer, value) in self.saved.items():
                if getattr(module, name) is not buffer:
                    setattr(module, name, buffer)
                buffer.copy_(value)


@contextmanager
def watch(modules: Sequence[Module], ran: set[Module]) -> Iterator[None]:
    """Notes which of the modules run: a function may refer to more of them than it calls."""
    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_pre_hook(lambda module, _: ran.add(module)).remove)
        yield


def modules_of(thing: Any, depth: int = 4) -> Iterator[nn.Module]:
    """The modules that are ``thing``, or that a callable refers to: method, partial, function, object."""
    if isinstance(thing, nn.Module):
        yield from thing.modules()
        return
    if depth == 0 or isinstance(thing, (Tensor, type)) or inspect.ismodule(thing) or inspect.isbuiltin(thing):
        return
    parts: list[Any] = []
    if isinstance(thing, functools.partial):
        parts = [thing.func, *thing.args, *thing.keywords.values()]
    elif inspect.ismethod(thing):
        parts = [thing.__self__]
    elif hasattr(thing, "__wrapped__"):
        parts = [thing.__wrapped__]
    elif inspect.isfunction(thing):
        parts = [*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
        with suppress(ValueError):  # a name that has no value yet
            scope = inspect.getclosurevars(thing)
            parts += [*scope.nonlocals.values(), *scope.globals.values()]
    else:
        parts = list(getattr(thing, "__dict__", {}).values())
    for part in parts:
        yield from modules_of(part, depth - 1)
