# SPDX-License-Identifier: Apache-2.0
"""Arguments of objectives, maybe lists of tensors and modules: cast, made into leaves, cut for ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pycl.core.problem import accumulation_dtype
from pycl.testing.objectives.arguments import flattened
from pycl.testing.objectives.row import Arguments


def changed(x: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The argument with every floating tensor of it changed, parameters of modules too."""
    tensors, rebuild = flattened(x)
    return rebuild(change(t) if t.is_floating_point() else t for t in tensors.values())


def cast(arguments: Arguments, dtype: torch.dtype) -> Arguments:
    """Tensors in a dtype; the parameters of modules in at least float32, as models keep them."""
    wide = accumulation_dtype(dtype)

    def converted(x: Any) -> Any:
        to = wide if isinstance(x, nn.Module) else dtype
        return changed(x, lambda t: t.detach().to(to))

    return {name: converted(x) for name, x in arguments.items()}


def as_leaves(arguments: Arguments) -> Arguments:
    """Copies that ask for gradients."""
    copies: Arguments = changed(arguments, lambda t: t.detach().clone().requires_grad_())
    return copies


def leaves_of(arguments: Arguments) -> dict[str, Tensor]:
    """Every floating tensor by the name of its argument."""
    return {name: x for name, x in flattened(arguments)[0].items() if x.is_floating_point()}


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
