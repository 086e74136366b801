# SPDX-License-Identifier: Apache-2.0
"""The keyword arguments that all losses on the engine share, and the decorator that completes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypedDict, TypeVar

from pycl.distributed.ranks import Group, of_the_batch

F = TypeVar("F", bound=Callable[..., Any])


class Options(TypedDict, total=False):
    """What every loss takes besides its own arguments, by name.

    Attributes:
        normalize: L2-normalise the embeddings inside, with ``max(norm, 1e-12)``. True, but False for ``clip`` and
            ``siglip``, which take features as they are given.
        group: ranks that share the batch, each with instances of its own: None, ``"world"``, ``"local"``, a process
            group or :class:`pycl.distributed.Ring`; see :mod:`pycl.distributed`.
        backend: name of the backend to run on, ``"cpu"``, ``"triton"`` or ``"reference"``; None picks one.
    """

    normalize: bool
    group: Group | None
    backend: str | None


def loss(*, normalize: bool = True) -> Callable[[F], F]:
    """For a loss of a batch with ``**options: Unpack[Options]``: it always finds all three, here with their defaults.

    The ranks of a group hear of what it raises, and ``group`` is what the engine takes (:func:`of_the_batch`). Its
    signature names the three, for ``help`` and for the module of the loss.
    """
    defaults: Options = {"normalize": normalize, "group": None, "backend": None}

    def decorate(function: F) -> F:
        run = of_the_batch(function, defaults)
        signature = inspect.signature(function)
        *own, _ = signature.parameters.values()
        types = {name: getattr(kind, "__forward_arg__", kind) for name, kind in Options.__annotations__.items()}
        by_name = inspect.Parameter.KEYWORD_ONLY
        shared = [inspect.Parameter(name, by_name, default=x, annotation=types[name]) for name, x in defaults.items()]
        run.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]  # of a function
        return run

    return decorate
