# SPDX-License-Identifier: Apache-2.0
"""Hugging Face transformers: models with ``return_loss=True`` compute their contrastive loss by pycl's engine.

A model keeps its class, its forward and its output. Inside of :func:`patch` its forward runs as it is, but for the
logits: they are known by their formula, which tells pycl the loss that the model makes of them, and they are computed
only when somebody looks at them. No N x N matrix is stored for the loss.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ._forward import forward_of
from ._imports import AfterImport
from ._models import FAMILIES, module_of

__all__ = ["patch", "unpatch"]

_gathers: dict[str, bool] = {}  # of every family that is patched: whether it takes the batch of all processes
_originals: dict[type, Any] = {}


def patch(*families: str, gather: bool = False) -> None:
    """Make models of transformers compute their contrastive losses by pycl's engine, those that exist and new ones.

    The value and the gradients are the model's own, with its label smoothing, directions, scales and clamps. A model
    whose loss is no function of products of embeddings runs its own code, with one ``FallbackWarning``. Patching again
    adds families, and sets ``gather`` anew for those that are named.

    Args:
        families: such as ``"clip"`` or ``"siglip2"``, the folders of ``transformers.models``; none for all that the
            installed transformers has.
        gather: the loss of the batches of all processes, with a gradient that is right where DistributedDataParallel
            averages (``group="world"``). FLAVA gathers itself, as its configuration says.

    Raises:
        ImportError: transformers is not installed.
        ValueError: a family that has no contrastive loss or is not in the installed transformers.
    """
    there = _installed()
    for family in families:
        if family not in there:
            known = "is not in the installed transformers" if family in FAMILIES else "is no model with such a loss"
            raise ValueError(f"families: {family!r} {known}; there are {', '.join(map(repr, sorted(there)))}")
    wanted = families or tuple(there)
    _gathers.update(dict.fromkeys(wanted, gather))
    _imports.install([module_of(family) for family in wanted])


def unpatch() -> None:
    """Take :func:`patch` back: all classes have their own forward again.

    Raises:
        ImportError: transformers is not installed.
    """
    _installed()
    _imports.remove()
    _gathers.clear()
    while _originals:
        model, original = _originals.popitem()
        model.forward = original  # type: ignore[attr-defined]  # a module's class


def verdict(kind: type) -> str | None:
    """What computes the loss of a class of models; None for any other class."""
    for c in kind.__mro__:
        family = FAMILIES.get(c.__module__.rpartition(".modeling_")[2])
        if family is None or c.__name__ not in family.classes or not c.__module__.startswith("transformers."):
            continue
        own_code = dict(family.own_code).get(c.__name__)
        if own_code is None and c in _originals:
            return "fused"
        return f"the library's own code: {own_code or 'call pycl.compat.transformers.patch()'}"
    return None


def _installed() -> list[str]:
    """The families that the installed transformers has; nothing of it is imported."""
    spec = sys.modules.get("transformers") or importlib.util.find_spec("transformers")
    places = getattr(spec, "__path__", None) or getattr(spec, "submodule_search_locations", None)
    if not places:
        raise ImportError("patch() and unpatch() need transformers: pip install transformers")
    models = [Path(place) / "models" for place in places]
    return [name for name in FAMILIES if any((at / name / f"modeling_{name}.py").is_file() for at in models)]


def _patch_module(module: ModuleType) -> None:
    name = module.__name__.rpartition(".modeling_")[2]
    family = FAMILIES[name]
    for model, why in [*((model, "") for model in family.models), *family.own_code]:
        kind = vars(module).get(model)
        if kind is not None and kind not in _originals:
            _originals[kind] = original = vars(kind)["forward"]
            kind.forward = forward_of(original, family.asks, lambda: _gathers[name], why)


_imports = AfterImport(_patch_module)
