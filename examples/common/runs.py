# SPDX-License-Identifier: Apache-2.0
"""Several trainings by one command: every value of a flag with every seed, and what they found together."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterable, Iterator, Sequence
from statistics import mean, pstdev
from typing import Any

import torch

from common import step_profile
from common.logs import LOG
from common.tables import grid, spread
from common.trainer import Trainer
from pycl import viz
from pycl.backends import registry

Row = dict[str, Any]


def each(args: argparse.Namespace, flag: str, values: Sequence[Any]) -> Iterator[argparse.Namespace]:
    """The flags of one training after the other, each with a folder of its own where there are several."""
    seeds = range(args.seed, args.seed + args.seeds)
    for value in values:
        for seed in seeds:
            one = copy.copy(args)
            setattr(one, flag, value)
            one.seed, one.seeds = seed, 1
            if len(values) > 1:
                one.out = one.out / str(value)
            if len(seeds) > 1:
                one.out = one.out / f"seed-{seed}"
            yield one


def train(trainer: Trainer, name: str) -> Row:
    """Trains; the profile, and on the first rank what the log says of the first and of the last step."""
    trainer.fit()
    args = trainer.args
    found: Row = {"name": name, "seed": args.seed, "profile": step_profile.profile(trainer)}
    if trainer.ranks.first:
        rows = viz.read(args.out / LOG)
        viz.dashboard(rows, args.out / "dashboard.png")
        measured = [row for row in rows if "loss" not in row]
        losses = [row["loss"] for row in rows if "loss" in row]
        found |= {"before": measured[0], "after": measured[-1], "last_loss": losses[-1]}
    return found


def summarise(found: Sequence[Row], device: str) -> Row:
    """What all trainings found, as JSON: for every name a pair (mean, standard deviation) of every measure."""
    run = {"seeds": sorted({one["seed"] for one in found}), "backend": registry.choose(None, device)}
    names = {}
    for name in dict.fromkeys(one["name"] for one in found):
        mine = [one for one in found if one["name"] == name]
        stages = {stage: _over_seeds(one[stage] for one in mine) for stage in ("before", "after")}
        names[name] = stages | {"profile": mine[0]["profile"], "last_loss": [one["last_loss"] for one in mine]}
    return {"run": run | {"torch": torch.__version__}, "trainings": names}


def _over_seeds(rows: Iterable[Row]) -> Row:
    rows = list(rows)
    numbers = [key for key, value in rows[0].items() if isinstance(value, int | float)]
    return {key: (mean(row[key] for row in rows), pstdev(row[key] for row in rows)) for key in numbers}


def table(summary: Row, title: str, columns: dict[str, str]) -> list[str]:
    """Measures in percent, given as key: head, of the untrained network and of every training."""
    trainings = summary["trainings"]
    rows = {"untrained": next(iter(trainings.values()))["before"]}
    rows |= {name: stages["after"] for name, stages in trainings.items()}
    return grid(
        [
            [title, *columns.values()],
            *([name, *(spread(row[key], 100) for key in columns)] for name, row in rows.items()),
        ]
    )


def profiles(summary: Row) -> str:
    """The profile of every training, as text."""
    return "\n".join(
        f"\n{name}, {step_profile.table(stages['profile'])}" for name, stages in summary["trainings"].items()
    )
