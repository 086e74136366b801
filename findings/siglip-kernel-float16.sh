#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# siglip-kernel 0.1.2, fused_siglip_loss: with float16 features, which it supports, most pairs' gradients become 0 at the
# batch of its own headline, 65536, and loss scaling (torch.amp.GradScaler) cannot prevent it.
#
# The forward pass computes the gradients, for a factor of 1, and stores those of the logits, sigmoid * scale / N, in the
# features' type; the backward pass multiplies by the factor. At SigLIP's start (scale 10, bias -10) a pair of similarity
# 0 has 7e-9, and float16 ends at 6e-8. Autograd from a float32 loss on float16 logits, scaled by 65536, is right.
#
# Seen with torch 2.13.0 (CPU), triton 3.9.0, for 16 images of 65536 in a cone (similarity 0.08 on average):
#   torch.bfloat16: 0 % of the negatives' gradients are 0, the images' gradient is off by 0.0035
#   torch.float16: 71 % of the negatives' gradients are 0, the images' gradient is off by 0.15
#   torch.float16, autograd of the dense form, loss scaled by 65536: off by 0.00036
#
# No GPU is needed: the step that the loss runs on a chunk of rows, sigmoid_bce_forward, runs in Triton's interpreter, and
# is told a compute capability (9.0). (Without a GPU even the import fails, since it asks for it.)
# Exits with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 triton==3.9.0 numpy siglip-kernel==0.1.2
cd "$folder"
cat >seen.py <<'PYTHON'
import sys

import torch
import torch.nn.functional as F

torch.cuda.get_device_capability = lambda *_: (9, 0)
from siglip_kernel import sigmoid_bce_forward

N, D, ROWS, SCALE, BIAS = 65536, 64, 16, 10.0, -10.0
draw = torch.Generator().manual_seed(0)
axis, images, texts = (torch.randn(n, D, generator=draw) for n in (1, N, N))
images, texts = (F.normalize(x + 0.3 * axis) for x in (images, texts))
own = torch.eye(ROWS, N)


def truth(image, text):
    weights = torch.sigmoid(SCALE * image.double() @ text.double().T + BIAS) - own
    return SCALE / N * weights @ text.double()


def distance(gradient, right):
    return ((gradient.double() - right).norm() / right.norm()).item()


def theirs(dtype):
    """What the loss does with its first chunk of rows."""
    image, text = images[:ROWS].to(dtype), texts.to(dtype)
    logits = image @ text.T
    scalars = {"temperature": torch.tensor(SCALE), "bias_val": torch.tensor(BIAS)}
    sigmoid_bce_forward(logits, 0, N, return_scalar_grads=True, **scalars)  # now they are the gradient
    lost = (logits[own == 0] == 0).double().mean().item()
    off = distance(logits @ text, truth(image, text))
    print(f"{dtype}: {lost:.0%} of the negatives' gradients are 0, the images' gradient is off by {off:.2g}".replace("%", " %"))
    return lost, off


def dense(dtype, factor):
    image, text = images[:ROWS].to(dtype).requires_grad_(), texts.to(dtype)
    logits = SCALE * image @ text.T + BIAS
    loss = F.softplus(logits.float() * (1 - 2 * own)).sum() / N
    (gradient,) = torch.autograd.grad(loss * factor, image)
    off = distance(gradient.double() / factor, truth(image.detach(), text))
    print(f"{dtype}, autograd of the dense form, loss scaled by {factor}: off by {off:.2g}")
    return off


_, usual = theirs(torch.bfloat16)
lost, off = theirs(torch.float16)
scaled = dense(torch.float16, 65536)
sys.exit(0 if usual < 0.01 and lost > 0.5 and off > 0.1 and scaled < 0.01 else 1)
PYTHON
TRITON_INTERPRET=1 "$folder/env/bin/python" seen.py
