#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# memeff 0.3.1, MemoryEfficientCLIPLoss: float32 unit vectors at CLIP's smallest temperature, 0.01, give a loss of -inf
# and gradients that are all NaN, or a loss below 0 and a gradient off by its own length, where dense float32 is right.
#
# It shifts every exponential by the largest logit there could be, 1 / temperature, instead of the row's own maximum:
# exp((s - 1) / 0.01) is subnormal in float32 where all similarities s of a row are below 0.13, and 0 below -0.03. Images
# and texts in cones that point away from each other, as those of untrained encoders may, are such rows.
# Its README calls the fixed maximum "numerically stable enough for the CLIP task".
#
# Seen with torch 2.13.0 (CPU), triton 3.9.0:
#   similarities -0.25 on average, 0.09 of a pair: loss -0.00174, gradient off by 1 of its length, 0 NaN; dense float32: 0.000385, 9e-06
#   similarities -0.43 on average, -0.17 of a pair: loss -inf, gradient off by nan of its length, 65536 NaN; dense float32: 0.00547, 3e-06
#
# No GPU is needed: the kernels run in Triton's interpreter, which rounds subnormal numbers as a CPU does. Two questions
# that only a GPU answers are answered for it: whether tensors are there, and the compute capability (9.0).
# Exits with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 triton==3.9.0 numpy memeff==0.3.1
cd "$folder"
cat >seen.py <<'PYTHON'
import math
import sys
import warnings

import memeff
import torch
import torch.nn.functional as F

warnings.filterwarnings("ignore", category=RuntimeWarning)  # NumPy's, of the divisions by 0 that are shown
torch.cuda.get_device_capability = lambda *_: (9, 0)
memeff.clip_loss._validate_features = lambda *_: None

N, D, TEMPERATURE = 256, 256, 0.01


def features(apart):
    """Unit vectors in two cones that point away from each other; row i of one belongs to row i of the other."""
    draw = torch.Generator().manual_seed(0)
    common, noise, axis = (torch.randn(n, D, generator=draw) for n in (N, N, 1))
    image, text = common + apart * axis, common / 2 + noise - apart * axis
    return [F.normalize(x).requires_grad_() for x in (image, text)]


def dense(image, text):
    logits, own = image @ text.T / TEMPERATURE, torch.arange(N)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def with_gradient(loss, points):
    value = loss(*points)
    return value.item(), torch.autograd.grad(value, points)[0].double()


theirs = memeff.MemoryEfficientCLIPLoss(temperature=TEMPERATURE, normalized_inputs=True, stable=False)
as_seen = []
for apart in (0.6, 0.9):
    points = features(apart)
    similar = points[0] @ points[1].T
    _, truth = with_gradient(dense, [x.detach().double().requires_grad_() for x in points])
    (value, gradient), (right, plain) = with_gradient(theirs, points), with_gradient(dense, points)
    off, usual = (((g - truth).norm() / truth.norm()).item() for g in (gradient, plain))
    nans = int(gradient.isnan().sum())
    print(
        f"similarities {similar.mean():.2f} on average, {similar.diagonal().mean():.2f} of a pair: loss {value:.3g}, "
        f"gradient off by {off:.2g} of its length, {nans} NaN; dense float32: {right:.3g}, {usual:.0e}"
    )
    silent = abs(value - right) > 0.1 * right and off > 0.1 and nans == 0
    loud = value == -math.inf and nans == N * D
    as_seen.append(usual < 1e-4 and (silent if apart == 0.6 else loud))
sys.exit(0 if all(as_seen) else 1)
PYTHON
TRITON_INTERPRET=1 "$folder/env/bin/python" seen.py
