#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# torch 2.13.0, CPU: torch.bmm of matrices whose batch dimension lies innermost in memory takes them one at a time, with
# a copy of each. The gradient of torch.einsum("aid,bid->abi", u, u), the dot products of a few views of every instance,
# is such a product, since its incoming gradient is [views, views, instances]. So the backward of 4096 instances makes
# 8192 copies and takes 40 to 60 times as long as the forward. A contiguous copy of the operand first makes none.
#
# Seen with Python 3.11, torch 2.13.0 (CPU):
#   backward of the einsum: 8192 clones
#   bmm, batch innermost:   4096 clones
#   bmm, contiguous:        0 clones
#
# Exits with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy
cd "$folder"
cat >seen.py <<'PYTHON'
import torch
from torch.profiler import ProfilerActivity, profile

VIEWS, INSTANCES, FEATURES = 4, 4096, 128


def clones(run):
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run()
    return sum(event.count for event in seen.key_averages() if event.key == "aten::clone")


u = torch.randn(VIEWS, INSTANCES, FEATURES, requires_grad=True)
products = torch.einsum("aid,bid->abi", u, u)
gradient = torch.ones_like(products, memory_format=torch.contiguous_format)
batch_innermost = torch.ones(VIEWS, VIEWS, INSTANCES).permute(2, 0, 1)
points = torch.randn(INSTANCES, VIEWS, FEATURES)
print("backward of the einsum:", clones(lambda: torch.autograd.grad(products, u, gradient)), "clones")
print("bmm, batch innermost:  ", clones(lambda: torch.bmm(batch_innermost, points)), "clones")
print("bmm, contiguous:       ", clones(lambda: torch.bmm(batch_innermost.clone(memory_format=torch.contiguous_format), points)) - 1, "clones")
PYTHON
found=$(env/bin/python seen.py 2>/dev/null)
echo "$found"
[ "$found" = "backward of the einsum: 8192 clones
bmm, batch innermost:   4096 clones
bmm, contiguous:        0 clones" ]
