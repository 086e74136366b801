# SPDX-License-Identifier: Apache-2.0
"""One training step in a process of its own: ``python -m pycl.bench.training.step JSON``."""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Any

import torch
from torch import Tensor

import pycl

from ..measure.peak import growth, in_fresh_process
from ..workloads.baselines import declare_torchvision
from ..workloads.workload import Function
from .recipes import RECIPES, Recipe

WARM_UP = 8  # rows; loads the code, starts the threads and makes the optimizer's state


def measured(recipe: str, size: int, chunk: int | None, side: str) -> dict[str, float]:
    """``seconds``, ``loss_seconds``, ``peak_mib`` and the ``value`` of the loss in one step of a fresh process."""
    job = {"recipe": recipe, "size": size, "chunk": chunk, "side": side, "threads": torch.get_num_threads()}
    return in_fresh_process(__name__, job, f"a step of {recipe} ({side})")


class Clocked:
    """A loss whose forward and backward run at once, between two looks at the clock.

    What it returns has the gradient that was found for the embeddings, not the loss's value.
    """

    def __init__(self, loss: Function) -> None:
        self.loss = loss
        self.seconds = 0.0
        self.value = 0.0

    def __call__(self, *embeddings: Tensor) -> Tensor:
        leaves = [z.detach().requires_grad_() for z in embeddings]
        start = time.perf_counter()
        value = self.loss(*leaves)
        value.backward()
        self.seconds = time.perf_counter() - start
        self.value = value.item()
        found = 0 * value.detach()
        for z, leaf in zip(embeddings, leaves, strict=True):
            found = found + (z * leaf.grad).sum()  # type: ignore[operator]  # a leaf has one after a backward
        return found


def loss_of(recipe: Recipe, side: str) -> Function:
    """The loss of ``"ours"``, of the ``"peer"``, or ``"eager"``."""
    if side == "eager":
        return recipe.dense
    library = recipe.library
    return library.make(importlib.import_module(library.peer if side == "peer" else f"pycl.compat.{library.ours}"))


def step_here(job: dict[str, Any]) -> dict[str, float]:
    """What ``measured`` returns; the peak is right only in a fresh process."""
    torch.set_num_threads(job["threads"])
    declare_torchvision()
    torch.manual_seed(0)
    recipe = RECIPES[job["recipe"]]
    encoders = recipe.build()
    parameters = [p for encoder in dict.fromkeys(encoders) for p in encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    loss = Clocked(loss_of(recipe, job["side"]))

    def step(batch: tuple[Tensor, Tensor], chunk: int | None) -> None:
        optimizer.zero_grad()
        if chunk is None:
            loss(*(encoder(x) for encoder, x in zip(encoders, batch, strict=True))).backward()
        else:
            pycl.cached_step(loss, *zip(encoders, batch, strict=True), chunk_size=chunk)
        optimizer.step()

    step(recipe.batch(WARM_UP), None)
    batch = recipe.batch(job["size"])
    found = growth(lambda: step(batch, job["chunk"]))
    return found | {"loss_seconds": loss.seconds, "value": loss.value}


if __name__ == "__main__":
    print(json.dumps(step_here(json.loads(sys.argv[1]))))
