# SPDX-License-Identifier: Apache-2.0
"""Drop-ins against the libraries they stand for: ``python -m pycl.bench.dropins [--sizes 128,512,2048] [--json DIR]``.

Forward and backward, both in one process, in turn; each row's values and gradients are compared first.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import report
from .peers import declare_torchvision
from .timing import interleaved
from .work import Function, step_of

DIM, SIZES, SECONDS = 128, (128, 512, 2048), 4.0
SLOWEST, FROM = 0.9, 512  # times as fast as the peer: at least that, and faster at this size and above
TOLERANCE = 1e-3  # of the largest entry, float32
Make = Callable[[Any], Function]  # the loss on tensors, from the module that has its class


class DropIn(NamedTuple):
    name: str
    distribution: str
    peer: str  # the module there
    ours: str  # the module in pycl.compat
    make: Make
    views: int = 2  # tensors [N, d] with a gradient
    largest: int = sys.maxsize  # N beyond which the peer takes 9 GB or more


class _Encoder(nn.Module):
    """Stands for a sentence model: embeddings are what it is given."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["embedding"]}


def _simclr(make: Make) -> Make:
    """A loss on labelled rows, for two views: row i of one and row i of the other have label i."""

    def build(module: Any) -> Function:
        loss = make(module)
        return lambda a, b: loss(torch.cat([a, b]), torch.arange(len(a)).repeat(2))

    return build


def _classes(make: Make) -> Make:
    """A loss on labelled rows, eight of each class."""

    def build(module: Any) -> Function:
        loss = make(module)
        return lambda a: loss(a, torch.arange(len(a)) % max(1, len(a) // 8))

    return build


def _scaled(make: Make) -> Make:
    def build(module: Any) -> Function:
        loss, scale, bias = make(module), torch.tensor(10.0), torch.tensor(-10.0)
        return lambda a, b: loss(_unit(a), _unit(b), scale, bias)

    return build


def _embedded(make: Make) -> Make:
    def build(module: Any) -> Function:
        loss = make(module)
        return lambda *views: loss.compute_loss_from_embeddings(list(views), None)

    return build


def _unit(z: Tensor) -> Tensor:
    return torch.nn.functional.normalize(z, dim=1)


PML, ST = "pytorch_metric_learning.losses", "sentence_transformers.losses"
DROPINS = (
    DropIn("lightly NTXentLoss", "lightly", "lightly.loss", "lightly", lambda m: m.NTXentLoss()),
    DropIn("lightly DCLLoss", "lightly", "lightly.loss", "lightly", lambda m: m.DCLLoss()),
    DropIn("lightly DCLWLoss", "lightly", "lightly.loss", "lightly", lambda m: m.DCLWLoss()),
    DropIn("open_clip ClipLoss", "open_clip_torch", "open_clip.loss", "open_clip", _scaled(lambda m: m.ClipLoss())),
    DropIn("open_clip SigLipLoss", "open_clip_torch", "open_clip.loss", "open_clip", _scaled(lambda m: m.SigLipLoss())),
    DropIn(
        "PML NTXentLoss, two views",
        "pytorch-metric-learning",
        PML,
        "pml.losses",
        _simclr(lambda m: m.NTXentLoss()),
        largest=256,
    ),
    DropIn(
        "PML SelfSupervisedLoss(NTXentLoss)",
        "pytorch-metric-learning",
        PML,
        "pml.losses",
        lambda m: m.SelfSupervisedLoss(m.NTXentLoss()),
        largest=256,
    ),
    DropIn(
        "PML SupConLoss, 8 a class",
        "pytorch-metric-learning",
        PML,
        "pml.losses",
        _classes(lambda m: m.SupConLoss()),
        views=1,
    ),
    DropIn("info-nce-pytorch InfoNCE", "info-nce-pytorch", "info_nce", "info_nce", lambda m: m.InfoNCE()),
    DropIn(
        "sentence-transformers MultipleNegativesRankingLoss",
        "sentence-transformers",
        ST,
        "sentence_transformers",
        _embedded(lambda m: m.MultipleNegativesRankingLoss(_Encoder(None))),
    ),
)


def measure(dropin: DropIn, size: int, theirs: Any, seconds: float) -> dict[str, Any]:
    """One row: times of ours and, where its memory allows, the peer's, after their answers were compared."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(size, DIM, generator=generator).requires_grad_() for _ in range(dropin.views)]
    ours = step_of(dropin.make(importlib.import_module(f"pycl.compat.{dropin.ours}")), inputs)
    steps: dict[str, Callable[[], Any]] = {"ours": ours}
    answer = ours()
    if size <= dropin.largest:
        steps["peer"] = step_of(dropin.make(theirs), inputs)
        for mine, right in zip(answer, steps["peer"](), strict=True):
            apart = float((mine - right).abs().max() / right.abs().max())
            if not apart <= TOLERANCE:
                raise AssertionError(f"{dropin.name}, N = {size}: {apart:.2g} from the peer, limit {TOLERANCE:g}")
    times = interleaved(steps, seconds=seconds)
    return {"name": dropin.name, "size": size, "time_s": {name: time._asdict() for name, time in times.items()}}


def tables(record: dict[str, Any]) -> list[report.Table]:
    cells = []
    for row in record["rows"]:
        ours, peer = (row["time_s"].get(name, {}).get("median") for name in ("ours", "peer"))
        faster = None if peer is None else peer / ours
        wanted = 1.0 if row["size"] >= FROM else SLOWEST
        met = "-" if faster is None else "yes" if faster >= wanted else "no"
        cells.append(
            [
                row["name"],
                str(row["size"]),
                "not run: 9 GB or more" if peer is None else report.milliseconds(peer),
                report.milliseconds(ours),
                "-" if faster is None else f"{faster:.1f} x",
                met,
            ]
        )
    title = f"Forward and backward, d = {DIM}, float32, both in one process, medians"
    target = f"faster (>= {SLOWEST} x below N = {FROM})"
    return [(title, ("drop-in", "N", "the library (ms)", "ours (ms)", "vs the library", target), cells)]


header, remarks = report.header, report.remarks


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every library that is installed; returns 1 where a row misses its target."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m pycl.bench.dropins", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--sizes", type=lambda text: [int(n) for n in text.split(",")], default=SIZES, metavar="N,...")
    parser.add_argument("--only", default="", metavar="TEXT", help="drop-ins with this in their name")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"spent on a row (default {SECONDS:g})")
    parser.add_argument("--json", type=Path, metavar="DIR", help="write the record there as cpu-dropins.json")
    options = parser.parse_args(arguments)
    declare_torchvision()
    record = report.new_record("dropins", [])
    record["command"] = "python -m pycl.bench.dropins"
    record["peers"] = {}
    for dropin in (dropin for dropin in DROPINS if options.only in dropin.name):
        try:
            theirs = importlib.import_module(dropin.peer)
        except ImportError as error:
            record["peers"][dropin.distribution] = {"version": None, "why_not": str(error)}
            continue
        version = importlib.metadata.version(dropin.distribution)
        record["peers"][dropin.distribution] = {"version": version, "why_not": None}
        for size in options.sizes:
            print(f"{dropin.name}, N = {size}", file=sys.stderr)
            record["rows"].append(measure(dropin, size, theirs, options.seconds))
    print(report.layout(header(record), tables(record), remarks(record)))
    if options.json:
        (options.json / "cpu-dropins.json").write_text(json.dumps(record, indent=1) + "\n")
    return int(any(line[-1] == "no" for line in tables(record)[0][2]))


if __name__ == "__main__":
    sys.exit(main())
