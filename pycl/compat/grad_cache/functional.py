# SPDX-License-Identifier: Apache-2.0
"""GradCache's decorators of ``grad_cache.functional``: calls that are cached, lists and ranks that are joined."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from pycl.compat.grad_cache import _alone
from pycl.grad_cache.replay import random_state, set_random_state

__all__ = ["cached", "cat_input_tensor", "gather_input_tensor"]


def cached(func: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """GradCache's ``cached``: a function of a model whose activations are not kept.

    The decorated function returns its representations, leaves that take the gradient of a loss, and behind them a
    function. Called with those leaves after the loss's backward, that runs the model again, with the random numbers of
    the first time, and sends their gradients through. As in GradCache, buffers of the model update in both runs.

    Raises:
        AssertionError: representations that are no tensors, or another number of them in the second run.
    """

    @wraps(func)
    def first(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        state = random_state()
        with torch.no_grad():
            found = _tensors(func(*args, **kwargs))
        leaves = tuple(t.detach().requires_grad_() for t in found)

        @wraps(func)
        def second(cache_reps: Tensor | tuple[Tensor, ...]) -> None:
            after = random_state()
            try:
                set_random_state(state)
                again = _tensors(func(*args, **kwargs))
            finally:
                set_random_state(after)
            cache = _tensors(cache_reps)
            if len(again) != len(cache):
                raise AssertionError(f"there are {len(again)} representations, got {len(cache)} to take gradients from")
            wanted = [(t, leaf.grad) for t, leaf in zip(again, cache, strict=True) if leaf.grad is not None]
            torch.autograd.backward([t for t, _ in wanted], [d_t for _, d_t in wanted])

        return (*leaves, second)

    return first


def _tensors(found: Any) -> tuple[Tensor, ...]:
    tensors = (found,) if isinstance(found, Tensor) else tuple(found)
    if not all(isinstance(t, Tensor) for t in tensors):
        raise AssertionError(f"representations must be tensors, got {[type(t).__name__ for t in tensors]}")
    return tensors


def cat_input_tensor(func: Callable[..., Any]) -> Callable[..., Any]:
    """GradCache's ``cat_input_tensor``: lists of tensors among the arguments become one tensor each.

    Keyword arguments, too, with which GradCache's own fails.
    """
    return _mapped(func, _joined)


def gather_input_tensor(func: Callable[..., Any], axis: int = 0) -> Callable[..., Any]:
    """GradCache's ``gather_input_tensor``: tensors among the arguments become those of all ranks, along an axis.

    Gradients go to the rank's own. Keyword arguments, too, with which GradCache's own fails.
    """
    return _mapped(func, lambda given: _alone.gathered(given, axis) if isinstance(given, Tensor) else given)


def _mapped(func: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
    @wraps(func)
    def call(*args: Any, **kwargs: Any) -> Any:
        return func(*map(change, args), **{name: change(value) for name, value in kwargs.items()})

    return call


def _joined(given: Any) -> Any:
    is_list = isinstance(given, list) and len(given) > 0 and all(isinstance(part, Tensor) for part in given)
    return torch.cat(given) if is_list else given
