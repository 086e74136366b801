# SPDX-License-Identifier: Apache-2.0
"""Several trainings by one command: every value of a flag with every seed, and what they found together."""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import torch

from common import step_profile
from common.logs import LOG
from common.tables import count, grid, spread
from common.trainer import Trainer
from pycl import viz
from pycl.backends import registry

Row = dict[str, Any]
Curve = list[tuple[float, float]]  # epoch, value
Measure = tuple[str, float, int]  # label, factor, decimals


def each(args: argparse.Namespace, flag: str, values: Sequence[Any]) -> Iterator[argparse.Namespace]:
    """The flags of one training after the other, each with a folder of its own where there are several."""
    values, seeds = list(dict.fromkeys(values)), range(args.seed, args.seed + args.seeds)
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


def train(trainer: Trainer, name: str, *, profile: bool = True, dense: bool = True) -> Row:
    """Trains; the profile, and on the first rank what the log says: losses, and the measurements from first to last."""
    trainer.fit()
    args = trainer.args
    found: Row = {"name": name, "seed": args.seed, "steps": trainer.steps}
    found["profile"] = step_profile.profile(trainer, dense=dense) if profile else None
    if trainer.ranks.first:
        rows = viz.read(args.out / LOG)
        viz.dashboard(rows, args.out / "dashboard.png")
        found["measured"] = [row for row in rows if "loss" not in row]
        found["losses"] = [row["loss"] for row in rows if "loss" in row]
    return found


def summarise(found: Sequence[Row], args: argparse.Namespace, settings: Sequence[str], device: str) -> Row:
    """What all trainings found, as JSON: for every name a pair (mean, standard deviation) of every measure.

    ``settings`` are the flags beyond those of every run that say what was trained. The profile is of the first seed.
    """
    run = {key: getattr(args, key) for key in ("batch_size", "epochs", "max_steps", "lr", "amp", *settings)}
    run |= {"steps": found[0]["steps"], "seeds": sorted({one["seed"] for one in found})}
    run |= {"backend": registry.choose(None, device), "torch": torch.__version__}
    names = {}
    for name in dict.fromkeys(one["name"] for one in found):
        mine = [one for one in found if one["name"] == name]
        stages = {
            stage: _over_seeds(one["measured"][at] for one in mine) for stage, at in (("before", 0), ("after", -1))
        }
        names[name] = stages | {"profile": mine[0]["profile"], "last_loss": [one["losses"][-1] for one in mine]}
    return {"run": run, "trainings": names}


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


def compare(title: str, measures: dict[str, Measure], stages: dict[str, Row]) -> list[str]:
    """A line for each measure, a column for each stage; a dash where a stage lacks it."""
    rows = [[title, *stages]]
    for key, (label, factor, decimals) in measures.items():
        rows.append([label, *(spread(stage.get(key), factor, decimals) for stage in stages.values())])
    return grid(rows)


def curves(found: Sequence[Row], key: str) -> dict[str, list[Curve]]:
    """How a measure in percent goes with the epochs: for every name a curve for each seed."""
    lines: dict[str, list[Curve]] = {}
    for one in found:
        points = [(row["epoch"], 100 * row[key]) for row in one["measured"]]
        lines.setdefault(one["name"], []).append(points)
    return lines


def over_seeds(summary: Row) -> str:
    """What the figures of a table are."""
    return f"mean ± standard deviation over {count(len(summary['run']['seeds']), 'seed')}"


def profiles(summary: Row) -> str:
    """The profile of every training, as text."""
    trainings = summary["trainings"]
    heads = [f"{name}, " if len(trainings) > 1 else "" for name in trainings]
    return "\n".join(
        f"\n{head}{step_profile.table(stages['profile'])}"
        for head, stages in zip(heads, trainings.values(), strict=True)
    )


def write(summary: Row, out: Path) -> None:
    """Keeps the summary beside the pictures, and says what is there."""
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(f"\nwritten to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
