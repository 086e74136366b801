#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# torch 2.13.0: torch.backends.mkldnn.fp32_precision is the switch of all backends. Setting it for the CPU allows tf32
# in CUDA's products, too.
#
# The documentation has three levels, torch.backends.fp32_precision over torch.backends.mkldnn.fp32_precision over
# torch.backends.mkldnn.matmul.fp32_precision. The one in the middle is bound to the name of the one above; those of
# single operators (mkldnn.matmul, cuda.matmul) are their own.
#
# Seen with Python 3.11, torch 2.13.0 (CPU):
#   before:                   all none, cuda.matmul none, mkldnn.matmul none
#   mkldnn tf32:              all tf32, cuda.matmul tf32, mkldnn.matmul tf32
#   mkldnn.matmul tf32 alone: all none, cuda.matmul none, mkldnn.matmul tf32
#
# Exits with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy
cd "$folder"
cat >seen.py <<'PYTHON'
import sys

from torch import backends

if len(sys.argv) > 1:
    (backends.mkldnn if sys.argv[1] == "mkldnn" else backends.mkldnn.matmul).fp32_precision = "tf32"
places = {"all": backends, "cuda.matmul": backends.cuda.matmul}
places["mkldnn.matmul"] = backends.mkldnn.matmul
print(", ".join(f"{name} {place.fp32_precision}" for name, place in places.items()))
PYTHON
before=$(env/bin/python seen.py) middle=$(env/bin/python seen.py mkldnn) alone=$(env/bin/python seen.py matmul)
echo "before:                   $before"
echo "mkldnn tf32:              $middle"
echo "mkldnn.matmul tf32 alone: $alone"
[ "$before" = "all none, cuda.matmul none, mkldnn.matmul none" ] &&
  [ "$middle" = "all tf32, cuda.matmul tf32, mkldnn.matmul tf32" ] &&
  [ "$alone" = "all none, cuda.matmul none, mkldnn.matmul tf32" ]
