#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# open_clip_torch 3.3.0, `--accum-freq k`: the parameter logit_scale gets k times the gradient that it has in one batch
# of the same pairs. All other parameters get that of the batch.
#
# The loop encodes micro-batch by micro-batch, and calls the loss with the features of all of them, k times: each time one
# micro-batch's features have a graph. So each weight of the towers is reached once, and the scale in every call.
#
# Seen with torch 2.13.0 (CPU):
#   towers: 1.000 of the gradient of one batch; logit_scale: 4.000
#
# Exits with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.13.0 torchvision==0.28.0 open_clip_torch==3.3.0
cd "$folder"
cat >seen.py <<'PYTHON'
import sys
from argparse import Namespace

import torch

operators = torch.library.Library("torchvision", "DEF")  # torchvision's own build wants them; nobody calls them here
for name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, name):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from open_clip.loss import ClipLoss  # noqa: E402
from open_clip_train.train import train_one_epoch  # noqa: E402
from torch.nn.functional import normalize  # noqa: E402

K, B, D = 4, 8, 6


class Towers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = torch.nn.Linear(D, D), torch.nn.Linear(D, D)
        self.logit_scale = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, image, text):
        features = {"image_features": normalize(self.image(image)), "text_features": normalize(self.text(text))}
        return features | {"logit_scale": self.logit_scale.exp()}


class Keep(torch.optim.SGD):
    """Changes nothing, and keeps the gradients of a step."""

    def step(self, closure=None):
        self.kept = [p.grad.clone() for group in self.param_groups for p in group["params"]]


def gradients(k):
    model, loss_of = Towers(), ClipLoss()
    generator = torch.Generator().manual_seed(1)
    pairs = [(x, y) for x, y in torch.randn(K * B, 2, D, generator=generator)]
    loader = torch.utils.data.DataLoader(pairs, K * B // k)
    loader.num_batches, loader.num_samples = k, len(pairs)
    settings = Namespace(
        device="cpu", precision="fp32", accum_freq=k, batch_size=K * B // k, world_size=1, rank=0, local_rank=0,
        log_local=False, log_every_n_steps=1, wandb=False, distill=False, horovod=False, grad_clip_norm=None,
        skip_scheduler=True,
    )
    optimizer = Keep(model.parameters(), lr=0.1)
    data = {"train": Namespace(dataloader=loader, set_epoch=lambda epoch: None)}
    loss = lambda output_dict=True, **features: {"contrastive_loss": loss_of(**features)}  # noqa: E731
    train_one_epoch(model, data, loss, 0, optimizer, None, None, None, settings)
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, optimizer.kept))


whole, parts = gradients(1), gradients(K)
ratios = {name: (parts[name] * whole[name]).sum() / whole[name].square().sum() for name in whole}
towers = [float(ratio) for name, ratio in ratios.items() if name != "logit_scale"]
scale = float(ratios["logit_scale"])
print(f"towers: {sum(towers) / len(towers):.3f} of the gradient of one batch; logit_scale: {scale:.3f}")
sys.exit(0 if all(abs(r - 1) < 1e-3 for r in towers) and abs(scale - K) < 1e-3 else 1)
PYTHON
env/bin/python seen.py
