#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# gradcache 0.0.1: the decorators cat_input_tensor and gather_input_tensor, which put the lists of chunks of a loss's
# arguments together, fail as soon as the loss gets a keyword argument, be it no tensor at all. And the package's name on
# the index is not the one that its modules import: `import gradcache` works and has no GradCache.
#
# The wrapper walks over the values of the keyword arguments as if they were pairs of a name and a value.
#
# Seen with torch 2.13.0 (CPU):
#   import gradcache: GradCache is not there
#   positional: 2.0
#   keyword: TypeError: cannot unpack non-iterable float object
#
# Exits with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy gradcache==0.0.1
cd "$folder"
cat >seen.py <<'PYTHON'
import importlib
import importlib.util
import sys

import torch

package = importlib.import_module("gradcache")
there = hasattr(package, "GradCache")
print("import gradcache: GradCache is", "there" if there else "not there")
sys.modules["grad_cache"] = package  # the name by which its modules import each other
functional = importlib.import_module("gradcache.functional")


@functional.cat_input_tensor
def loss(x, y, scale=1.0):
    return scale * (x * y).mean()


chunks = [torch.ones(2), torch.full((2,), 3.0)]
print("positional:", loss(chunks, [torch.ones(2), torch.ones(2)]).item())
try:
    print("keyword:", loss(chunks, [torch.ones(2), torch.ones(2)], scale=2.0).item())
    failed = False
except (TypeError, ValueError) as error:
    print(f"keyword: {type(error).__name__}: {error}")
    failed = True
sys.exit(0 if failed and not there else 1)
PYTHON
env/bin/python seen.py
