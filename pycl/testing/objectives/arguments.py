# SPDX-License-Identifier: Apache-2.0
"""The tensors inside the arguments of an objective, which may be lists, dictionaries and modules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

Rebuild = Callable[[Iterable[Tensor]], Any]


def flattened(x: Any) -> tuple[dict[str, Tensor], Rebuild]:
    """The tensors by name, parameters of modules too; and what puts others of their number in their places."""

    def rebuild(tensors: Iterable[Tensor]) -> Any:
        return _with(x, iter(tensors))

    return dict(_inside("", x)), rebuild


def _inside(name: str, x: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(x, Tensor):
        yield name, x
    elif isinstance(x, nn.Module):
        yield from ((f"{name}.{own}", parameter) for own, parameter in x.named_parameters())
    elif isinstance(x, dict):
        for key, y in x.items():
            yield from _inside(f"{name}.{key}" if name else key, y)
    elif isinstance(x, (list, tuple)):
        for k, y in enumerate(x):
            yield from _inside(f"{name}[{k}]", y)


def _with(x: Any, tensors: Iterator[Tensor]) -> Any:
    if isinstance(x, Tensor):
        return next(tensors)
    if isinstance(x, nn.Module):
        twin = copy.deepcopy(x)
        for name, _ in x.named_parameters():
            owner, _, own = name.rpartition(".")
            twin.get_submodule(owner)._parameters[own] = next(tensors)  # type: ignore[assignment]  # maybe no leaf
        return twin
    if isinstance(x, dict):
        return {key: _with(y, tensors) for key, y in x.items()}
    if isinstance(x, (list, tuple)):
        return type(x)(_with(y, tensors) for y in x)
    return x
