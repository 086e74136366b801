#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# transformers 5.24.0, Trainer with gradient_accumulation_steps=k and a compute_loss of one's own: the gradient is k times
# as large where the model's forward takes **kwargs, as CLIPModel's does, and the batch has a column "labels".
#
# Such a model is taken for one whose loss is a sum over tokens that is divided by their number, so the mean of a
# contrastive loss is not divided by the number of micro-batches. A forward without **kwargs, a batch without labels, or
# `model.accepts_loss_kwargs = False` gives the mean.
#
# Seen with torch 2.13.0 (CPU), accelerate 1.15.0:
#   forward(images, texts): labels x 1.000, no labels x 1.000
#   forward(images, texts, **kwargs): labels x 4.000, no labels x 1.000
#
# Exits with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.13.0 transformers==5.24.0 accelerate==1.15.0
cd "$folder"
cat >seen.py <<'PYTHON'
import sys

import torch
from torch.nn.functional import cross_entropy, normalize
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.utils import logging

logging.set_verbosity_error()
K, B, D = 4, 8, 6


class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = torch.nn.Linear(D, D), torch.nn.Linear(D, D)

    def forward(self, images, texts):
        return normalize(self.image(images)), normalize(self.text(texts))


class Open(Plain):
    def forward(self, images, texts, **kwargs):
        return super().forward(images, texts)


class Keep(torch.optim.SGD):
    """Changes nothing, and keeps the gradients of a step."""

    def step(self, closure=None):
        self.kept = torch.cat([p.grad.flatten() for group in self.param_groups for p in group["params"]])


def contrast(image, text):
    return cross_entropy(image @ text.T / 0.1, torch.arange(len(image)))


class Contrast(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return contrast(*model(inputs["images"], inputs["texts"]))


def trained(kind, rows):
    model = kind()
    optimizer = Keep(model.parameters(), lr=0.1)
    settings = TrainingArguments(
        output_dir="out", max_steps=1, per_device_train_batch_size=B, gradient_accumulation_steps=K, max_grad_norm=0.0,
        train_sampling_strategy="sequential", remove_unused_columns=False, save_strategy="no", logging_strategy="no",
        report_to="none", use_cpu=True, disable_tqdm=True,
    )
    run = Contrast(model, settings, train_dataset=rows, optimizers=(optimizer, None))
    run.remove_callback(PrinterCallback)
    run.train()
    return optimizer.kept


generator = torch.Generator().manual_seed(1)
pairs = torch.randn(K * B, 2, D, generator=generator)
rows = [{"images": x, "texts": y} for x, y in pairs]
labelled = [row | {"labels": i} for i, row in enumerate(rows)]
model = Plain()
torch.stack([contrast(*model(part[:, 0], part[:, 1])) for part in pairs.split(B)]).mean().backward()
right = torch.cat([p.grad.flatten() for p in model.parameters()])
found = {}
for kind, name in ((Plain, "forward(images, texts)"), (Open, "forward(images, texts, **kwargs)")):
    found[kind] = [float(trained(kind, data) @ right / right.square().sum()) for data in (labelled, rows)]
    print(f"{name}: labels x {found[kind][0]:.3f}, no labels x {found[kind][1]:.3f}")
wanted = {Plain: [1, 1], Open: [K, 1]}
sys.exit(0 if all(abs(a - b) < 1e-3 for k in wanted for a, b in zip(found[k], wanted[k])) else 1)
PYTHON
env/bin/python seen.py
