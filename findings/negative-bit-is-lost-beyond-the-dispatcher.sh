#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# torch 2.13.0, NumPy 2.3.5, Triton 3.7.1: `z.conj().imag` is a view that stands for minus its memory (`is_neg()`).
# Operators of torch see to that. What reads memory past the dispatcher does not: DLPack and a Triton kernel get the
# numbers with the wrong sign and without a word, where `.numpy()` raises and a conjugate view is refused by DLPack.
#
# So imaginary parts of a spectrum that was conjugated reach a kernel of one's own with another sign, while every formula
# in plain torch is right. `.contiguous()` does not help where the strides are contiguous already, `.resolve_neg()` does.
#
# Seen with Python 3.11, no GPU (Triton's interpreter):
#   torch          -1, -2, -3, -4
#   numpy()        raises RuntimeError
#   from_dlpack    1, 2, 3, 4
#   conj, dlpack   raises BufferError
#   triton         1, 2, 3, 4
#   contiguous     still is_neg
#   resolve_neg    -1, -2, -3, -4
#
# Exits with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
pip=("$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" torch==2.13.0 numpy==2.3.5
"${pip[@]}" --no-deps triton==3.7.1
cd "$folder"
cat >seen.py <<'PYTHON'
import numpy as np
import torch
import triton
import triton.language as tl


@triton.jit
def copy(source, target, stride: tl.constexpr, n: tl.constexpr):
    i = tl.arange(0, n)
    tl.store(target + i, tl.load(source + stride * i))


def raised(action):
    try:
        action()
    except Exception as error:
        return f"raises {type(error).__name__}"
    return "works"


def numbers(x):
    return ", ".join(f"{float(number):g}" for number in x)


z = torch.complex(torch.zeros(4), torch.arange(1.0, 5.0))
view, target = z.conj().imag, torch.empty(4)
assert view.is_neg()
copy[(1,)](view, target, view.stride(0), 4)
dense = torch._neg_view(torch.arange(4.0))
print("torch         ", numbers(view.tolist()))
print("numpy()       ", raised(view.numpy))
print("from_dlpack   ", numbers(np.from_dlpack(view)))
print("conj, dlpack  ", raised(lambda: np.from_dlpack(z.conj())))
print("triton        ", numbers(target.tolist()))
print("contiguous     still is_neg" if dense.contiguous().is_neg() else "contiguous     is not")
print("resolve_neg   ", numbers(np.from_dlpack(view.resolve_neg())))
PYTHON
said=$(TRITON_INTERPRET=1 "$folder/env/bin/python" seen.py)
printf '%s\n' "$said"
test "$said" = "torch          -1, -2, -3, -4
numpy()        raises RuntimeError
from_dlpack    1, 2, 3, 4
conj, dlpack   raises BufferError
triton         1, 2, 3, 4
contiguous     still is_neg
resolve_neg    -1, -2, -3, -4"
