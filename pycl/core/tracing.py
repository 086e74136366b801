# SPDX-License-Identifier: Apache-2.0
"""Whether a call only runs, or is recorded: a recorder must see every operator, and its tensors have no values."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor, is_legacy_batchedtensor
from torch.nn import Parameter

from pycl.core.problem import accumulation_dtype

F = TypeVar("F", bound=Callable[..., Any])
_PLAIN = Tensor, Parameter  # classes of tensors that are what they seem


def observed() -> bool:
    """By torch.compile, export, jit.trace, a transform of torch.func, FakeTensorMode, make_fx, any dispatch mode."""
    return bool(
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._is_tracing()
    )


def needs_dispatch(args: Iterable[Any]) -> bool:
    """Whether only torch's dispatcher knows what a call with these arguments means.

    Besides what is observed: a tensor of another class, or one that is not what lies in its memory.
    """
    return observed() or any(isinstance(x, Tensor) and (type(x) not in _PLAIN or _stands_for_another(x)) for x in args)


def _stands_for_another(x: Tensor) -> bool:
    """Minus its memory, a batch, or a tensor of a transform of torch.func, maybe after the transform has ended."""
    return x.is_neg() or is_legacy_batchedtensor(x) or is_functorch_wrapped_tensor(x)


def eager(function: F) -> F:
    """Keep torch.compile out of a function: around it the graph is broken, and inside nothing is traced.

    ``torch.compiler.disable`` once there is something to disable: it imports torch._dynamo, which takes a second.
    """
    disabled = None

    @wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        nonlocal disabled
        if disabled is None:
            if "torch._dynamo" not in sys.modules:
                return function(*args, **options)
            disabled = torch.compiler.disable(function)
        return disabled(*args, **options)

    return cast("F", run)


def log(number: float | Tensor, like: Tensor) -> float | Tensor:
    """The natural logarithm of a number of points. In a graph that is traced for any number it has no value yet."""
    if isinstance(number, Tensor):
        return number.log()
    if not observed():
        return math.log(number)
    return torch.full((), number, dtype=accumulation_dtype(like.dtype), device=like.device).log()
