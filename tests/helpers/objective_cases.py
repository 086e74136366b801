# SPDX-License-Identifier: Apache-2.0
"""Arguments of objectives, maybe lists of tensors and modules: cast, made into leaves, cut for ranks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pycl.core.problem import accumulation_dtype
from pycl.testing.objectives.row import Arguments


def changed(x: Any, change: Callable[[Tensor], Tensor], of_module: Callable[[Tensor], Tensor] | None = None) -> Any:
    """The argument with every floating tensor of it changed, and in a copy of a module every parameter."""
    if isinstance(x, Tensor):
        return change(x) if x.is_floating_point() else x
    if isinstance(x, nn.Module):
        twin = copy.deepcopy(x)
        for parameter in twin.parameters():
            parameter.data = (of_module or change)(parameter.data)
        return twin
    if isinstance(x, (list, tuple)):
        return type(x)(changed(y, change, of_module) for y in x)
    return x


def cast(arguments: Arguments, dtype: torch.dtype) -> Arguments:
    """Tensors in a dtype; the parameters of modules in at least float32, as models keep them."""
    wide = accumulation_dtype(dtype)
    return {name: changed(x, lambda t: t.to(dtype), lambda t: t.to(wide)) for name, x in arguments.items()}


def as_leaves(arguments: Arguments) -> Arguments:
    """Copies that ask for gradients."""
    return {
        name: changed(x, lambda t: t.detach().clone().requires_grad_(), lambda t: t.detach().clone())
        for name, x in arguments.items()
    }


def leaves_of(arguments: Arguments) -> dict[str, Tensor]:
    """Every floating tensor by the name of its argument."""

    def inside(name: str, x: Any) -> Iterator[tuple[str, Tensor]]:
        if isinstance(x, Tensor) and x.is_floating_point():
            yield name, x
        elif isinstance(x, nn.Module):
            yield from ((f"{name}.{own}", parameter) for own, parameter in x.named_parameters())
        elif isinstance(x, (list, tuple)):
            for k, y in enumerate(x):
                yield from inside(f"{name}[{k}]", y)

    return dict(found for name, x in arguments.items() for found in inside(name, x))


def values_and_gradients(
    call: Callable[[Arguments, Mapping[str, Any]], tuple[Tensor, ...]],
    arguments: Arguments,
    scalars: Mapping[str, Tensor],
    cotangents: list[Tensor] | None = None,
) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    """The values, and gradients of their weighted sum for every leaf and scalar; None where there is none."""
    arguments = as_leaves(arguments)
    scalars = {name: value.detach().clone().requires_grad_() for name, value in scalars.items()}
    found = call(arguments, scalars)
    leaves = {**leaves_of(arguments), **scalars}
    weights = cotangents or [torch.ones_like(x, dtype=torch.float64) for x in found]
    total = sum((x.double() * w).sum() for x, w in zip(found, weights, strict=True) if x.requires_grad)
    gradients: tuple[Tensor | None, ...] = (None,) * len(leaves)
    if isinstance(total, Tensor):
        gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return [x.detach() for x in found], dict(zip(leaves, gradients, strict=True))


def share_of_rank(arguments: Arguments, axes: Mapping[str, int], rank: int, ends: list[int], n: int) -> Arguments:
    """This rank's part of every argument with an axis of instances; one of another length is cut in proportion."""

    def part(x: Tensor, axis: int) -> Tensor:
        cuts = [round(end * x.shape[axis] / n) for end in ends]
        return x.tensor_split(cuts, axis)[rank]

    def cut(name: str, x: Any) -> Any:
        if name not in axes:
            return x
        if isinstance(x, (list, tuple)):
            return type(x)(part(y, axes[name]) for y in x)
        return part(x, axes[name])

    return {name: cut(name, x) for name, x in arguments.items()}
