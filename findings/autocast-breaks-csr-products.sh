#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# torch 2.13.0, torch_geometric 2.8.1, CPU: under `torch.autocast("cpu", torch.bfloat16)` a product of a float32 CSR
# matrix raises, and the same matrix as COO or dense does not. Autocast casts the operands of `matmul` to bfloat16,
# whatever their layout, and the CSR kernel (of MKL) has no half types.
#
# So a graph network runs in float32 with its adjacency as CSR, the fast layout on a CPU, and as an edge index under
# autocast, but not as CSR under autocast. A block with `torch.autocast("cpu", enabled=False)` around the product helps.
#
# Seen with Python 3.11:
#   float32   csr float32   coo float32   dense float32   GCNConv, csr float32   GCNConv, edges float32
#   autocast  csr raises NotImplementedError   coo bfloat16   dense bfloat16   GCNConv, csr raises NotImplementedError
#             GCNConv, edges float32
#
# Exits with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 torch_geometric==2.8.1
cd "$folder"
cat >seen.py <<'PYTHON'
import warnings

warnings.simplefilter("ignore")  # "sparse CSR tensor support is in beta state"
import torch
from torch_geometric.nn import GCNConv

torch.manual_seed(0)
matrix, x = torch.eye(4) + torch.eye(4).roll(1, 0), torch.randn(4, 3)
layouts = {"csr": matrix.to_sparse_csr(), "coo": matrix.to_sparse_coo(), "dense": matrix}
conv, edges = GCNConv(3, 2), matrix.nonzero().T.contiguous()


def outcome(action):
    try:
        return str(action().dtype).removeprefix("torch.")
    except Exception as error:
        return f"raises {type(error).__name__}"


seen = {}
for half in (False, True):
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        found = {name: outcome(lambda m=m: m @ x) for name, m in layouts.items()}
        found |= {"conv csr": outcome(lambda: conv(x, layouts["csr"])), "conv edges": outcome(lambda: conv(x, edges))}
    seen[half] = found
    print("autocast" if half else "float32 ", found)
missing = "raises NotImplementedError"
expected = (
    set(seen[False].values()) == {"float32"}
    and seen[True]["csr"] == seen[True]["conv csr"] == missing
    and seen[True]["coo"] == seen[True]["dense"] == "bfloat16"
    and seen[True]["conv edges"] == "float32"
)
raise SystemExit(not expected)
PYTHON
"$folder/env/bin/python" seen.py
