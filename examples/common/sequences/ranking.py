# SPDX-License-Identifier: Apache-2.0
"""How high a recommender ranks the item that came next, among all items, and a picture of how that grows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from common.runs import Curve
from common.sequences.data import Sequences, pad

CUTS = (5, 10, 20)
CHUNK = 256  # users ranked at a time
COLOURS = ("#7f7f7f", "#0072B2", "#D55E00", "#009E73")


def ranks(scores: Tensor, target: Tensor, seen: Tensor) -> Tensor:
    """``[B]``: how many items score at least as high as the target, ``[B]``, those of ``seen`` aside.

    ``scores`` is ``[B, 1 + items]``; column 0 is no item, and 0 pads ``seen``, ``[B, S]``.
    """
    target = target[:, None]
    others = scores.scatter(1, seen, -torch.inf).scatter(1, target, -torch.inf)
    return (others[:, 1:] >= scores.gather(1, target)).sum(1)


def hits_and_gains(found: Tensor) -> dict[str, float]:
    """HR@k and NDCG@k of ranks that count from 0."""
    gains = 1 / (found + 2.0).log2()
    measures = {}
    for k in CUTS:
        hit = found < k
        measures |= {f"hr_{k}": hit.double().mean().item(), f"ndcg_{k}": (hit * gains).double().mean().item()}
    return measures


def chunks(users: list[Tensor]) -> Iterator[list[Tensor]]:
    """The users, a few at a time: a user's scores are as many as there are items."""
    return (users[at : at + CHUNK] for at in range(0, len(users), CHUNK))


def popularity(data: Sequences) -> dict[str, float]:
    """The test's measures where everybody is recommended what most chose: what a recommender has to beat."""
    counts = torch.cat([user[:-2] for user in data.users]).bincount(minlength=data.items + 1).float()
    found = [
        ranks(counts.repeat(len(users), 1), torch.stack([u[-1] for u in users]), pad(u[:-1] for u in users))
        for users in chunks(data.users)
    ]
    return hits_and_gains(torch.cat(found))


def draw_curves(curves: dict[str, list[Curve]], path: Path, *, label: str, title: str) -> None:
    """A line for every run, ``(epoch, value)``, with a colour for every name; the thick one is the mean of its runs."""
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 130}):
        figure, axes = plt.subplots(figsize=(7.2, 3.8), layout="constrained")
        for (name, runs), colour in zip(curves.items(), COLOURS, strict=False):
            for run in runs:
                axes.plot(*zip(*run, strict=True), color=colour, linewidth=0.8, alpha=0.45)
            axes.plot(*_mean(runs), color=colour, linewidth=2.2, marker="o", markersize=4, label=name)
        axes.set(xlabel="epoch", ylabel=label, title=title, ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color="#e4e4e4", linewidth=0.7)
        axes.legend(frameon=False)
        figure.savefig(path)
        plt.close(figure)


def _mean(runs: Sequence[Curve]) -> tuple[list[float], list[float]]:
    points = torch.tensor(runs, dtype=torch.float64).mean(0)
    return points[:, 0].tolist(), points[:, 1].tolist()
