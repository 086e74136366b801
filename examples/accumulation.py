# SPDX-License-Identifier: Apache-2.0
"""What accumulated gradients do to an in-batch loss, measured, with the training libraries that are installed.

Two towers see the left and the right halves of 1024 of scikit-learn's digits. A step of the whole batch is compared
with a step of four micro-batches of 256: in plain torch, with ``pycl.cached_step``, and in the loops of transformers,
accelerate, Lightning and open_clip. Then with BatchNorm in the towers. Last, the rows that accelerate deals out twice.

    python examples/accumulation.py                                # seconds
    pip install transformers accelerate pytorch-lightning open_clip_torch
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from common.accumulation.libraries import LIBRARIES, Batches, missing, shards
from common.accumulation.towers import Step, Towers, cut, halves
from common.tables import grid
from torch import nn

import pycl

ROWS, PARTS, TRAINED = 1024, 4, 100
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "LayerNorm": nn.LayerNorm,
    "GroupNorm": partial(nn.GroupNorm, 8),
    "BatchNorm": nn.BatchNorm1d,
}


class Compared(NamedTuple):
    """A step relative to that of the whole batch: 1, 1, 1, 0 and 1 are right."""

    loss: float
    norm: float  # of the gradient
    cosine: float
    error: float  # |g - whole| / |whole|
    scale: float  # gradient of the scale


def whole(model: Towers, batches: Batches) -> Step:
    """One batch of all rows."""
    model.contrast(**model(*map(torch.cat, zip(*batches, strict=True)))).backward()
    return model.taken()


def accumulate(model: Towers, batches: Batches) -> Step:
    """The mean over the micro-batches, each with its own candidates."""
    for batch in batches:
        (model.contrast(**model(*batch)) / len(batches)).backward()
    return model.taken()


def cached(model: Towers, batches: Batches) -> Step:
    """``pycl.cached_step`` in chunks as large as a micro-batch."""
    images, texts = map(torch.cat, zip(*batches, strict=True))
    pycl.cached_step(model.contrast, (model.left, images), (model.right, texts), chunk_size=len(batches[0][0]))
    return model.taken()


def compare(found: Step, right: Step) -> Compared:
    a, b = found.weights.double(), right.weights.double()
    cosine, error = F.cosine_similarity(a, b, dim=0), (a - b).norm() / b.norm()
    norm = a.norm() / b.norm()
    return Compared(found.loss / right.loss, norm.item(), cosine.item(), error.item(), found.scale / right.scale)


def train(model: Towers, batches: Batches) -> Towers:
    """On the whole batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(TRAINED):
        optimizer.zero_grad()
        whole(model, batches)
        optimizer.step()
    optimizer.zero_grad()
    model.losses.clear()
    return model


def against_whole(step: Callable[[Towers, Batches], Step], model: Towers, batches: Batches) -> Compared:
    return compare(step(deepcopy(model), batches), whole(deepcopy(model), batches))


def ways(batches: Batches) -> dict[str, dict[str, Compared | str]]:
    """By what is done and when; a line instead where the library is not installed."""
    found: dict[str, dict[str, Compared | str]] = {}
    models = {"new": Towers(), "trained": train(Towers(), batches)}
    plain = {"plain accumulation": (accumulate, ()), "pycl.cached_step": (cached, ())}
    for name, (step, modules) in (plain | LIBRARIES).items():
        if absent := missing(modules):
            found[name] = dict.fromkeys(models, f"not installed: {', '.join(absent)}")
        else:
            found[name] = {when: against_whole(step, model, batches) for when, model in models.items()}
    return found


def norms(batches: Batches) -> dict[str, Compared]:
    """Of ``cached_step`` in trained towers with each layer."""
    models = {title: train(Towers(norm), batches) for title, norm in NORMS.items()}
    models["BatchNorm, eval()"] = deepcopy(models["BatchNorm"]).eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="cached_step: BatchNorm1d")  # it is what is measured
        return {title: against_whole(cached, model, batches) for title, model in models.items()}


def repeated(batches: Batches) -> str:
    """What accelerate deals out of six rows to two processes in batches of four, and what that does to a loss."""
    dealt = [shard[0] for shard in shards(6, 4)]
    images, texts = batches[0]
    model = train(Towers(), batches)
    rows = torch.tensor(dealt).flatten()
    losses = [model.contrast(**model(images[r], texts[r])).item() for r in (rows, rows.unique())]
    return f"rank 0 gets rows {dealt[0]}, rank 1 {dealt[1]}: a loss of {losses[0]:.3f}; of the six rows {losses[1]:.3f}"


def cells(compared: Compared | str) -> list[str]:
    if isinstance(compared, str):
        return [compared, "", "", "", ""]
    return [*(f"{number:.3f}" for number in compared[:3]), f"{compared.error:.0e}", f"{compared.scale:.2f}"]


HEAD = ["loss", "norm", "cosine", "error", "scale"]


def main(argv: list[str] | None = None) -> tuple[dict[str, dict[str, Compared | str]], dict[str, Compared]]:
    """Prints the tables; what is in the first two."""
    argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0]).parse_args(argv)
    batches = cut(halves(ROWS), ROWS // PARTS)
    found, by_norm = ways(batches), norms(batches)
    for when in ("new", "trained"):
        print(f"\n{PARTS} x {ROWS // PARTS} against {ROWS} rows, {when} towers")
        print("\n".join(grid([["", *HEAD], *([name, *cells(of[when])] for name, of in found.items())])))
    print(f"\npycl.cached_step in chunks of {ROWS // PARTS}, trained towers with")
    print("\n".join(grid([["", *HEAD], *([name, *cells(of)] for name, of in by_norm.items())])))
    if not missing(("accelerate",)):
        print(f"\naccelerate, six rows for two processes in batches of four: {repeated(batches)}")
    return found, by_norm


if __name__ == "__main__":
    main()
