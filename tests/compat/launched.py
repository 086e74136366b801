# SPDX-License-Identifier: Apache-2.0
"""Processes as torchrun starts them, for trainers that meet in a group of their own; and the programs of a guide."""

from __future__ import annotations

import os
import re
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from parity import declare_torchvision

GUIDE = Path(__file__).parent.parent.parent / "docs" / "trainers.md"


def program(first_words: str) -> str:
    """The block of the guide that has these words."""
    found = re.findall(r"^```python[^\n]*\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    [block] = [block for block in found if first_words in block]
    return str(block)


def names_of(first_words: str) -> dict[str, Any]:
    """What that block defines."""
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(program(first_words), str(GUIDE), "exec", dont_inherit=True), names)
    return names


def _rank(rank: int, world: int, port: int, folder: str, body: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", TORCHELASTIC_RUN_ID="test", CUDA_VISIBLE_DEVICES="")
    declare_torchvision()
    torch.save(body(rank, world, *args), Path(folder) / f"{rank}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


def launched(world: int, body: Callable[..., Any], *args: Any) -> list[Any]:
    """What ``body(rank, world, *args)``, a function of a module, returns on ranks that have not met yet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_rank, (world, port, folder, body, args), nprocs=world, start_method="forkserver")
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world)]
