# SPDX-License-Identifier: Apache-2.0
"""A training step of Hugging Face's CLIPModel with and without ``pycl.compat.transformers.patch()``, and its memory.

``python -m pycl.bench.transformers [--sizes 1024,4096] [--dims 128,512] [--json DIR]``. The towers are tiny and random,
so that the step is its loss. The times are taken in turn, in one process. A peak is that of one step in a fresh
process, above the inputs. What the loss takes of it is what a step without one, whose value is the mean of the
embeddings, does not take; where a peak is in the towers' backward, that may be less than nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pycl
from pycl.compat import transformers as drop_in

from .measure.memory import WARM_UP, _high_water_mib, _restart_high_water_mib
from .measure.timing import interleaved
from .present import record as records
from .workloads.baselines import declare_torchvision

TOWER = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = TOWER | {"vocab_size": 64, "max_position_embeddings": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
VISION = TOWER | {"image_size": 8, "patch_size": 4}
TOLERANCE = 1e-5  # of the value, float32

Inputs = dict[str, Tensor]


def model(dim: int) -> Any:
    """CLIP with a layer in each tower and embeddings [N, dim]."""
    from transformers import CLIPConfig, CLIPModel, logging

    logging.set_verbosity_error()
    torch.manual_seed(0)
    return CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=dim))


def inputs(n: int) -> Inputs:
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.randint(3, 64, (n, 4), generator=generator),
        "pixel_values": torch.randn(n, 3, 8, 8, generator=generator),
    }


def loss_of(clip: Any, batch: Inputs) -> Tensor:
    loss: Tensor = clip(**batch, return_loss=True).loss
    return loss


def of_towers(clip: Any, batch: Inputs) -> Tensor:
    """The mean of the embeddings, which takes the towers and no loss."""
    image = clip.get_image_features(pixel_values=batch["pixel_values"]).pooler_output
    text = clip.get_text_features(input_ids=batch["input_ids"]).pooler_output
    mean: Tensor = torch.stack([(z / z.norm(dim=-1, keepdim=True)).mean() for z in (image, text)]).mean()
    return mean


def fused(clip: Any, batch: Inputs) -> Tensor:
    drop_in.patch("clip")
    try:
        return loss_of(clip, batch)
    finally:
        drop_in.unpatch()


STEPS: dict[str, Callable[[Any, Inputs], Tensor]] = {"ours": fused, "theirs": loss_of, "towers": of_towers}


def step_of(name: str, clip: Any, batch: Inputs) -> Callable[[], float]:
    """Forward and backward; the value."""

    def step() -> float:
        clip.zero_grad()
        loss = STEPS[name](clip, batch)
        loss.backward()
        return loss.item()

    return step


def peak_here(name: str, n: int, dim: int) -> float:
    """MiB of one step above its inputs, right only in a fresh process."""
    os.environ["PYCL_WORKSPACE"] = "0"  # what is needed, not what is kept to save time
    clip = model(dim)
    step_of(name, clip, inputs(WARM_UP))()
    step = step_of(name, clip, inputs(n))
    before = _restart_high_water_mib()
    step()
    return _high_water_mib() - before


def peak(name: str, n: int, dim: int) -> float:
    """The same, in a process of its own."""
    here = {"PYTHONPATH": os.pathsep.join([str(Path(pycl.__file__).parent.parent), *filter(None, sys.path)])}
    job = json.dumps([name, n, dim, torch.get_num_threads()])
    command = [sys.executable, "-m", "pycl.bench.transformers", "--peak", job]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | here)
    return float(done.stdout.splitlines()[-1])


def measure(n: int, dim: int, seconds: float) -> dict[str, Any]:
    """One row: times of all three, and their peaks."""
    clip, batch = model(dim), inputs(n)
    steps = {name: step_of(name, clip, batch) for name in STEPS}
    mine, right, _ = (step() for step in steps.values())
    if not abs(mine - right) <= TOLERANCE * abs(right):
        raise AssertionError(f"N = {n}, d = {dim}: the loss is {mine:.7g}, and {right:.7g} in the library")
    times = interleaved(steps, seconds=seconds)
    peaks = {name: peak(name, n, dim) for name in STEPS}
    return {
        "size": n,
        "dim": dim,
        "time_s": {name: time._asdict() for name, time in times.items()},
        "peak_mib": peaks,
        "faster": times["theirs"].median / times["ours"].median,
        "loss_mib": {name: peaks[name] - peaks["towers"] for name in ("ours", "theirs")},
    }


def text(row: dict[str, Any]) -> str:
    """A row in words."""
    ms = {name: f"{time['median'] * 1e3:.1f}" for name, time in row["time_s"].items()}
    mib = {name: f"{value:.1f}" for name, value in row["loss_mib"].items()}
    return (
        f"CLIPModel, N = {row['size']}, d = {row['dim']}: {ms['ours']} ms, {ms['theirs']} ms in the library, "
        f"{ms['towers']} ms the towers alone: {row['faster']:.2f} x faster. "
        f"Memory of the loss: {mib['ours']} MiB, {mib['theirs']} MiB in the library."
    )


def _integers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every size and width."""
    parser = argparse.ArgumentParser(
        prog="python -m pycl.bench.transformers", description=(__doc__ or "").split(".")[0]
    )
    parser.add_argument("--sizes", type=_integers, default=[1024, 4096], metavar="N,...")
    parser.add_argument("--dims", type=_integers, default=[128, 512], metavar="d,...")
    parser.add_argument("--seconds", type=float, default=20.0, help="spent on a row (default 20)")
    parser.add_argument("--json", type=Path, metavar="DIR", help="write the record there as cpu-transformers.json")
    parser.add_argument("--peak", type=json.loads, help=argparse.SUPPRESS)
    arguments = sys.argv[1:] if argv is None else argv
    options = parser.parse_args(arguments)
    declare_torchvision()
    if options.peak:
        name, n, dim, threads = options.peak
        torch.set_num_threads(threads)
        print(peak_here(name, n, dim))
        return 0
    command = " ".join(["python -m pycl.bench.transformers", *records.repeatable(arguments)])
    record = records.new_record("transformers", command)
    for dim in options.dims:
        for n in options.sizes:
            record["rows"].append(measure(n, dim, options.seconds))
            print(text(record["rows"][-1]))
    if options.json:
        records.write_json(record, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
