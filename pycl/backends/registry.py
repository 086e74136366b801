# SPDX-License-Identifier: Apache-2.0
"""Which backend runs: a backend that was asked for runs or raises; the automatic choice says once what it took."""

from __future__ import annotations

import functools
import importlib
import logging
import os
from types import ModuleType
from typing import NamedTuple

import torch

log = logging.getLogger("pycl")

# Operators a backend may lack; "pair_stats" stands for all on pairs of points. For Sinkhorn on stored scores one launch
# for all iterations comes before one for each, which is what a process group needs ("sinkhorn_columns").
PAIRS, SINKHORN, SINKHORN_STEPS = "pair_stats", "sinkhorn", "sinkhorn_columns"


class Entry(NamedTuple):
    """A backend: its module, and what the automatic choice takes it for."""

    module: str  # fulfils pycl.backends.protocol
    devices: tuple[str, ...]  # types of devices whose tensors it is the choice for
    operators: tuple[str, ...] | None = None  # None for all that it has


BACKENDS = {  # best first
    "cuda": Entry("pycl.backends.cuda", ("cuda",), (SINKHORN,)),
    "triton": Entry("pycl.backends.triton.backend", ("cuda",)),
    "cpu": Entry("pycl.backends.cpu", ("cpu",)),
    "reference": Entry("pycl.backends.reference", ("cpu", "cuda")),
}


class BackendUnavailable(RuntimeError):
    """A backend that was asked for by name cannot run; the message says why and how to get it."""


@functools.cache
def load(name: str) -> ModuleType:
    """The module of a backend; raises ``BackendUnavailable`` where its compiled part is missing or does not load."""
    try:
        return importlib.import_module(BACKENDS[name].module)
    except BackendUnavailable:
        raise
    except Exception as error:  # a broken Triton may raise anything
        said = f"{type(error).__name__}: {error}"
        raise BackendUnavailable(f"backend={name!r} is not available: it fails to load ({said})") from error


def has(name: str, operator: str) -> bool:
    """Whether a backend that can be loaded has an operator."""
    return hasattr(load(name), operator)


@functools.cache
def why_not(
    name: str,
    device_type: str,
    dtype: torch.dtype = torch.float32,
    operator: str = PAIRS,
    modifiers: tuple[str, ...] = (),
) -> str | None:
    """The reason why a backend cannot serve tensors of a device type and dtype, or ``None`` where it can."""
    try:
        backend = load(name)
    except BackendUnavailable as error:
        return str(error)
    if backend.DEVICES is not None and device_type not in backend.DEVICES:
        wanted = " or ".join(backend.DEVICES)
        return f"backend={name!r} runs on {wanted} tensors, got tensors on {device_type}"
    if not hasattr(backend, operator):
        return f"backend={name!r} has no {operator}; leave the choice to backend=None or name another"
    if dtype not in backend.DTYPES:
        wanted = ", ".join(map(str, backend.DTYPES))
        return f"backend={name!r} takes {wanted}, got {dtype}; backend='reference' takes it, slowly"
    if missing := [kind for kind in modifiers if kind not in getattr(backend, "MODIFIERS", ())]:
        return f"backend={name!r} has no {missing[0]} of pairs; backend='reference' has it, slowly"
    return None


def installed(device_type: str, dtype: torch.dtype = torch.float32, operator: str = PAIRS) -> list[str]:
    """The backends that can serve tensors of this device type and dtype, best first."""
    return [name for name in _in_order(device_type, operator) if why_not(name, device_type, dtype, operator) is None]


def preferred(device_type: str, operator: str = PAIRS) -> list[str]:
    """The backends that are the choice for an operator on a device type, best first, whether they can run or not."""
    return [
        name
        for name, entry in BACKENDS.items()
        if device_type in entry.devices and (entry.operators is None or operator in entry.operators)
    ]


def _in_order(device_type: str, operator: str) -> list[str]:
    return list(dict.fromkeys((*preferred(device_type, operator), *BACKENDS)))


def check_name(name: str) -> None:
    """Raise ValueError unless a backend has this name."""
    if name not in BACKENDS:
        raise ValueError(f"backend must be None or one of {list(BACKENDS)}, got {name!r}")


def choose(
    name: str | None,
    device_type: str,
    dtype: torch.dtype = torch.float32,
    operator: str = PAIRS,
    modifiers: tuple[str, ...] = (),
) -> str:
    """The backend to use for tensors of a device type and dtype.

    Args:
        name: what the caller asked for, or ``None`` for ``$PYCL_BACKEND`` and then the automatic choice.
        device_type: ``"cpu"``, ``"cuda"``, ...
        dtype: of the embeddings or the scores.
        operator: what the backend has to have.
        modifiers: the kinds of modifiers it has to have, of ``pycl.core.modifiers.KINDS``.

    Raises:
        ValueError: the name is not a backend's.
        BackendUnavailable: the backend is not built, or does not run on this device or with this dtype.
    """
    name = name or os.environ.get("PYCL_BACKEND") or None
    if name is None:
        return _automatic(device_type, dtype, operator, modifiers)
    check_name(name)
    if reason := why_not(name, device_type, dtype, operator, modifiers):
        raise BackendUnavailable(reason)
    return name


# torch.compiler.assume_constant_result sets this too, after it has imported torch._dynamo, which takes a second
choose._dynamo_marked_constant = True  # type: ignore[attr-defined]  # not every callable has one
has._dynamo_marked_constant = True  # type: ignore[attr-defined]  # as above


@functools.cache
def _automatic(device_type: str, dtype: torch.dtype, operator: str, modifiers: tuple[str, ...]) -> str:
    skipped: list[str] = []
    for name in _in_order(device_type, operator):  # those after the first that can serve are not even imported
        if (reason := why_not(name, device_type, dtype, operator, modifiers)) is None:
            break
        skipped.append(reason)
    reasons = "; ".join(skipped)
    # not the best there is: a slow path must not be a silent one
    level = logging.WARNING if reasons else logging.INFO
    what = "" if operator == PAIRS else f"{operator} of "
    of = f"{what}{device_type} tensors of {str(dtype).removeprefix('torch.')}"
    log.log(level, "pycl uses backend %r for %s%s", name, of, f" ({reasons})" if reasons else "")
    return name
