# SPDX-License-Identifier: Apache-2.0
"""Why two training curves part: one training with two losses that compute the same number, step by step.

An encoder of scikit-learn's digits is trained with NT-Xent in plain torch (or lightly's) and with pycl's, from the same
weights on the same views, in float32 and in float64, at a stable and at an unstable learning rate. Beside them the
plain loss is compared with itself: with the rows of every batch in another order, and from weights of which one is
moved by 1e-7 of its size. Prints how far apart the losses are at a step, and by how much that grows in a step.

    python examples/curves.py --out runs/curves                    # writes chaos.png there, in seconds
    python examples/curves.py --library lightly                    # pip install lightly
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from common.images.pictures import STYLE, plt
from common.tables import grid
from sklearn.datasets import load_digits
from torch import Tensor, nn

import pycl

TEMPERATURE, BATCH, WIDTH = 0.1, 256, 128
RATES = {"stable": 0.5, "unstable": 4.0}  # of gradient descent
CLIP_NORM = 1.0
GONE = 1e-2  # from this relative difference on, two curves look different
SHOWN = (1, 2, 4, 8, 16, 32, 64)

Loss = Callable[[Tensor, Tensor], Tensor]


class Variant(NamedTuple):
    """What is compared with the plain loss of the same dtype."""

    title: str
    dtype: torch.dtype
    ours: bool = False
    shuffled: bool = False  # rows of a batch in another order
    moved: float = 0.0  # of one weight


VARIANTS = (
    Variant("float32, pycl", torch.float32, ours=True),
    Variant("float32, rows in another order", torch.float32, shuffled=True),
    Variant("float32, a weight moved by 1e-7", torch.float32, moved=1e-7),
    Variant("float64, pycl", torch.float64, ours=True),
    Variant("float64, a weight moved by 1e-7", torch.float64, moved=1e-7),
)


def plain(z1: Tensor, z2: Tensor) -> Tensor:
    """NT-Xent with the whole matrix."""
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    logits = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(len(z)).roll(len(z1)))


def of_lightly() -> Loss:
    from pycl.bench.workloads.baselines import declare_torchvision

    declare_torchvision()  # its CUDA build does not import beside a CPU build of torch
    try:
        from lightly.loss import NTXentLoss
    except ImportError as error:
        sys.exit(f"--library lightly: {error}: pip install lightly")
    return NTXentLoss(temperature=TEMPERATURE)


def draw_batches(steps: int) -> Tensor:
    """Two views [steps, 2, BATCH, 64] of each step's images: the same for every run."""
    images, draw = torch.from_numpy(load_digits().data) / 16, torch.Generator().manual_seed(0)
    found = []
    for _ in range(steps):
        views = images[torch.randperm(len(images), generator=draw)[:BATCH]].expand(2, -1, -1)
        noise = torch.randn(views.shape, generator=draw, dtype=views.dtype)
        found.append((views + 0.1 * noise) * (torch.rand(views.shape, generator=draw) > 0.3))
    return torch.stack(found)


def train(batches: Tensor, loss_of: Loss, lr: float, variant: Variant) -> list[float]:
    """The loss at every step."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(64, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 64))
    encoder.to(variant.dtype)
    with torch.no_grad():
        encoder[0].weight[0, 10] *= 1 + variant.moved  # a pixel that is not always blank
    optimizer, losses = torch.optim.SGD(encoder.parameters(), lr=lr), []
    order = torch.randperm(BATCH) if variant.shuffled else slice(None)
    for views in batches.to(variant.dtype):
        loss = loss_of(*(encoder(view[order]) for view in views))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), CLIP_NORM)
        optimizer.step()
        losses.append(loss.item())
    return losses


def gaps(batches: Tensor, reference: Loss, lr: float) -> dict[str, list[float]]:
    """Relative differences from the reference of the same dtype, a number a step."""
    base = {d: train(batches, reference, lr, Variant("", d)) for d in (torch.float32, torch.float64)}
    ours = pycl.NTXentLoss(TEMPERATURE)
    found = {}
    for variant in VARIANTS:
        losses = train(batches, ours if variant.ours else reference, lr, variant)
        pairs = zip(losses, base[variant.dtype], strict=True)
        found[variant.title] = [abs(a - b) / abs(b) for a, b in pairs]
    return found


def growth(gap: list[float]) -> float:
    """By what a difference is multiplied in a step, of a line through its logarithm until it is ``GONE``."""
    end = next((step for step, g in enumerate(gap) if g > GONE), len(gap))
    steps = [step for step in range(end) if gap[step] > 0]
    return float(np.exp(np.polyfit(steps, np.log([gap[s] for s in steps]), 1)[0])) if len(steps) > 1 else float("nan")


def draw(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    colours = ("#1b7f5c", "#b8b8b8", "#c0504d", "#1f4e9c", "#d99a2b")
    with plt.rc_context(STYLE | {"figure.dpi": 100}):
        figure, panels = plt.subplots(1, len(found), figsize=(9.0, 3.6), sharey=True, layout="constrained")
        for axes, (name, of) in zip(panels, found.items(), strict=True):
            for (title, gap), colour in zip(of.items(), colours, strict=True):
                axes.plot(range(1, len(gap) + 1), [g or None for g in gap], color=colour, lw=1.3, label=title)
            axes.set(yscale="log", xlabel="step", title=f"{name} learning rate, {RATES[name]:g}")
        panels[0].set_ylabel("relative difference of the losses")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        plt.close(figure)


def main(argv: list[str] | None = None) -> dict[str, dict[str, list[float]]]:
    """Prints the tables and draws the picture; the differences by learning rate and variant."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--library", choices=["torch", "lightly"], default="torch", help="whose loss is the reference")
    parser.add_argument("--max-steps", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("demo-out"))
    args = parser.parse_args(argv)
    if args.max_steps < 2:
        parser.error(f"--max-steps must be at least 2, got {args.max_steps}")
    reference = of_lightly() if args.library == "lightly" else plain
    batches = draw_batches(args.max_steps)
    found = {name: gaps(batches, reference, lr) for name, lr in RATES.items()}
    steps = [step for step in SHOWN if step <= args.max_steps]
    for name, of in found.items():
        rows = [[t, *(f"{g[s - 1]:.0e}" for s in steps), f"x {growth(g):.2f}"] for t, g in of.items()]
        print(f"\n{name} learning rate, {RATES[name]:g}: relative difference from {args.library}'s loss after step")
        print("\n".join(grid([["", *map(str, steps), "in a step"], *rows])))
    draw(found, args.out / "chaos.png")
    return found


if __name__ == "__main__":
    main()
