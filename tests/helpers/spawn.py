# SPDX-License-Identifier: Apache-2.0
"""Tests on several processes: gloo on this machine's CPU."""

from __future__ import annotations

import datetime
import gc
import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

multiprocessing.set_forkserver_preload(["torch"])  # otherwise every rank takes a second and a half to import it


def _rank(rank: int, world: int, folder: str, seconds: float, body: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    timeout = datetime.timedelta(seconds=seconds)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=timeout)
    try:
        torch.save(body(rank, world, *args), Path(folder) / f"{rank}.pt")
        gc.collect()  # as in pycl.testing
    finally:
        dist.destroy_process_group()


def on_ranks(world: int, body: Callable[..., Any], *args: Any, seconds: float = 60) -> list[Any]:
    """What ``body(rank, world, *args)``, a function of a module, returns on every rank."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_rank, (world, folder, seconds, body, args), nprocs=world, start_method="forkserver")
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world)]
