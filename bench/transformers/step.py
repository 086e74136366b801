# SPDX-License-Identifier: Apache-2.0
"""A step of a tiny CLIPModel, and its peak memory in a process of its own.

``python -m pycl.bench.transformers.step JSON``. The towers are tiny and random, so that the step is its loss.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pycl.compat import transformers as drop_in

from ..measure.peak import growth, in_fresh_process
from ..workloads.baselines import declare_torchvision

TOWER = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = TOWER | {"vocab_size": 64, "max_position_embeddings": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
VISION = TOWER | {"image_size": 8, "patch_size": 4}
WARM_UP = 64  # rows; loads the code and starts the threads before anything is measured

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


def peak(name: str, n: int, dim: int) -> float:
    """MiB of one step above its inputs; raises ``Failed``."""
    job = {"name": name, "n": n, "dim": dim, "threads": torch.get_num_threads()}
    return in_fresh_process(__name__, job, f"a step of CLIPModel ({name})")["peak_mib"]


def peak_here(job: dict[str, Any]) -> dict[str, float]:
    """``peak_mib`` and ``seconds`` of one step, right only in a fresh process."""
    os.environ["PYCL_WORKSPACE"] = "0"  # what is needed, not what is kept to save time
    torch.set_num_threads(job["threads"])
    declare_torchvision()
    clip = model(job["dim"])
    step_of(job["name"], clip, inputs(WARM_UP))()
    return growth(step_of(job["name"], clip, inputs(job["n"])))


if __name__ == "__main__":
    print(json.dumps(peak_here(json.loads(sys.argv[1]))))
