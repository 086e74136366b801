# SPDX-License-Identifier: Apache-2.0
"""One step of a training library with accumulated gradients, by its own code: the gradients its optimizer gets.

Each function takes the model and the micro-batches and imports its library itself.
"""

from __future__ import annotations

import logging
import tempfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from common.accumulation.towers import Keep, Step, Towers
from pycl.bench.workloads.baselines import declare_torchvision

Batches = Sequence[tuple[Tensor, ...]]


def _examples(batches: Batches) -> list[tuple[Tensor, ...]]:
    return [pair for batch in batches for pair in zip(*batch, strict=True)]


def trainer(model: Towers, batches: Batches, labels: bool = False) -> Step:
    """transformers' Trainer with a loss of one's own; ``labels`` are in the batch, and nobody looks at them."""
    from transformers import PrinterCallback, Trainer, TrainingArguments
    from transformers.utils import logging as log

    log.set_verbosity_error()
    model.accepts_loss_kwargs = labels  # what Trainer finds by itself in a forward that takes **kwargs

    class Contrast(Trainer):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Tensor:
            return model.contrast(**model(inputs["images"], inputs["texts"]))

    data: list[dict[str, Any]] = [{"images": x, "texts": y} for x, y in _examples(batches)]
    if labels:
        data = [{**row, "labels": i} for i, row in enumerate(data)]
    optimizer = Keep(model)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder, max_steps=1, per_device_train_batch_size=len(batches[0][0]),
            gradient_accumulation_steps=len(batches), train_sampling_strategy="sequential", max_grad_norm=0.0,
            remove_unused_columns=False, save_strategy="no", logging_strategy="no", report_to="none", use_cpu=True,
            disable_tqdm=True,
        )  # fmt: skip
        run = Contrast(model, settings, train_dataset=data, optimizers=(optimizer, None))
        run.remove_callback(PrinterCallback)
        run.train()
    return optimizer.steps[0]


def trainer_with_labels(model: Towers, batches: Batches) -> Step:
    return trainer(model, batches, labels=True)


def accelerate(model: Towers, batches: Batches) -> Step:
    """accelerate's ``accumulate``."""
    from accelerate import Accelerator

    kept = Keep(model)
    accelerator = Accelerator(gradient_accumulation_steps=len(batches), cpu=True)
    wrapped, optimizer, loader = accelerator.prepare(model, kept, DataLoader(_examples(batches), len(batches[0][0])))
    for images, texts in loader:
        with accelerator.accumulate(wrapped):
            accelerator.backward(model.contrast(**wrapped(images, texts)))
            optimizer.step()
            optimizer.zero_grad()
    return kept.steps[0]


def lightning(model: Towers, batches: Batches) -> Step:
    """Lightning's ``accumulate_grad_batches``."""
    import pytorch_lightning

    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    kept = Keep(model)

    class Module(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.towers = model

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return model.contrast(**model(*batch))

        def configure_optimizers(self) -> Keep:
            return kept

    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    run = pytorch_lightning.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, accumulate_grad_batches=len(batches), **quiet
    )
    run.fit(Module(), DataLoader(_examples(batches), len(batches[0][0])))
    return kept.steps[0]


def open_clip(model: Towers, batches: Batches) -> Step:
    """The epoch of open_clip's training script with ``--accum-freq``, and its own loss."""
    from open_clip.loss import ClipLoss
    from open_clip_train.train import train_one_epoch

    kept, loss_of = Keep(model), ClipLoss()

    def loss(**features: Any) -> dict[str, Tensor]:
        value = loss_of(**features)["contrastive_loss"]
        model.losses.append(value.item())
        return {"contrastive_loss": value}

    loader = DataLoader(_examples(batches), len(batches[0][0]))
    loader.num_batches, loader.num_samples = len(batches), len(loader.dataset)
    data = {"train": Namespace(dataloader=loader, set_epoch=lambda epoch: None)}
    settings = Namespace(
        device="cpu", precision="fp32", accum_freq=len(batches), batch_size=len(batches[0][0]), world_size=1, rank=0,
        local_rank=0, log_local=False, log_every_n_steps=1, wandb=False, distill=False, horovod=False,
        grad_clip_norm=None, skip_scheduler=True,
    )  # fmt: skip
    train_one_epoch(model, data, loss, 0, kept, None, None, None, settings)
    return kept.steps[0]


LIBRARIES: dict[str, tuple[Callable[[Towers, Batches], Step], tuple[str, ...]]] = {
    "transformers' Trainer": (trainer, ("transformers", "accelerate")),
    "the same, labels in the batch": (trainer_with_labels, ("transformers", "accelerate")),
    "accelerate, accumulate": (accelerate, ("accelerate",)),
    "Lightning": (lightning, ("pytorch_lightning",)),
    "open_clip, --accum-freq": (open_clip, ("open_clip", "open_clip_train")),
}


def missing(modules: Sequence[str]) -> list[str]:
    """Those that are not installed."""
    declare_torchvision()  # its CUDA build does not import beside a CPU build of torch, and these import it
    return [module for module in modules if find_spec(module) is None]


def shards(rows: int, batch: int, ranks: int = 2) -> list[list[list[int]]]:
    """The rows of every batch of every rank, as accelerate deals them out by default (``even_batches=True``)."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    sampler = BatchSampler(range(rows), batch, drop_last=False)
    return [list(BatchSamplerShard(sampler, ranks, rank)) for rank in range(ranks)]
