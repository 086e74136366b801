# SPDX-License-Identifier: Apache-2.0
"""A checkpoint on disk: whole or not there at all, and with it everything that decides how the training goes on."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.flags import Refused

State = dict[str, Any]


def write(state: State, path: Path) -> None:
    """Replaces the file at once: whoever reads it, also after a crash, finds the old state or the new one.

    Raises:
        Refused: it could not be written, as on a full disk; the old file is as it was.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _settle(path.parent)
    except (OSError, RuntimeError) as error:  # torch says RuntimeError where the file system refuses a write
        part.unlink(missing_ok=True)
        kept = f"; the one of before is still at {path}" if path.exists() else ""
        raise Refused(f"the checkpoint could not be written to {path.parent}: {_reason(error)}{kept}") from error


def _settle(folder: Path) -> None:
    """The new name survives a power cut, too."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]  # one of both, as asked above
    return (getattr(error, "strerror", None) or str(error)).splitlines()[0]


def read(path: Path) -> State:
    """The state in a file. Its tensors stay on the CPU; it can hold no code.

    Raises:
        Refused: no such file, or what is in it is no checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise Refused(f"--resume: there is no checkpoint {path}") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise Refused(f"--resume: {path} is no checkpoint, or a damaged one; --resume never starts over") from error
    if not isinstance(state, dict) or not {"step", "steps", "settings"} <= state.keys():
        raise Refused(f"--resume: {path} is no checkpoint of these examples")
    return state


def random_state() -> State:
    """The state of every generator that an example may draw from."""
    kind, keys, *rest = np.random.get_state()
    state: State = {"python": random.getstate(), "torch": torch.get_rng_state()}
    state["numpy"] = (kind, [int(key) for key in keys], *rest)
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: State) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
