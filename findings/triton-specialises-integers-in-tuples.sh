#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Triton 3.6.0 and 3.7.1: `do_not_specialize` keeps an integer argument of a kernel from being specialised, but not the
# integers of an argument that is a tuple. There 1 becomes a constant and a multiple of 16 becomes "divisible", whatever
# the list says, so that a kernel which takes its sizes as one NamedTuple is compiled again for such sizes.
#
# The list is looked up by the argument's own name; what is inside a tuple is specialised without a look at it. A number
# that differs from batch to batch therefore stays an argument of its own.
#
# Seen with Python 3.11, torch 2.13.0 (CPU), no GPU; for n = 7, 16 and 1, the key of `n` and that of `(n, n)`:
#   3.6.0  ('i32', None) (('i32', 'i32'), ('', ''))            3.7.1 the same
#          ('i32', None) (('i32', 'i32'), ('D', 'D'))
#          ('i32', None) (('constexpr', 'constexpr'), (1, 1))
#
# Exits with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
pip=("$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" torch==2.13.0 numpy
cd "$folder"
cat >seen.py <<'PYTHON'
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature


@triton.jit(do_not_specialize=["n", "sizes"])
def kernel(n, sizes):
    pass


bind = create_function_from_signature(kernel.signature, kernel.params, make_backend(GPUTarget("cuda", 90, 32)))
for n in (7, 16, 1):
    print(*bind(n, (n, n))[1])
PYTHON
for version in 3.6.0 3.7.1; do
  "${pip[@]}" --no-deps "triton==$version"
  said=$("$folder/env/bin/python" seen.py)
  printf 'triton %s\n%s\n' "$version" "$said"
  test "$said" = "('i32', None) (('i32', 'i32'), ('', ''))
('i32', None) (('i32', 'i32'), ('D', 'D'))
('i32', None) (('constexpr', 'constexpr'), (1, 1))"
done
