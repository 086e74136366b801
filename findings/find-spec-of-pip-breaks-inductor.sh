#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# torch 2.13.0 and setuptools 84.2.1 on Python before 3.12: after importlib.util.find_spec("pip"), a look that imports
# nothing, torch.compile fails on a CPU in the rest of the process with an AssertionError about distutils/core.py.
#
# setuptools' import hook takes a look for pip as pip at work and leaves the standard library's distutils alone from then
# on. Inductor imports setuptools when it first looks for a C++ compiler's vector extensions, and setuptools asserts on
# import that distutils is its own. A program that lists what is installed by find_spec meets it; one by
# importlib.metadata does not, nor does one that has imported setuptools before.
#
# Seen with Python 3.11, torch 2.13.0 (CPU), setuptools 84.2.1:
#   find_spec of pip: InductorError: AssertionError: distutils/core.py
#   version of pip:   compiled
#
# Needs a C++ compiler. Exits with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 setuptools==84.2.1 numpy
cd "$folder"
cat >seen.py <<'PYTHON'
import importlib.metadata
import importlib.util
import sys

LOOKS = {"find_spec": importlib.util.find_spec, "version": importlib.metadata.version}
LOOKS[sys.argv[1]]("pip")

import torch

try:
    torch.compile(lambda x: (x.sin() + 1).sum())(torch.ones(100))
    print("compiled")
except Exception as error:
    said = str(error).splitlines()[0]
    print(f"{type(error).__name__}: {said.split(':')[0]}: {'/'.join(said.split('/')[-2:])}")
PYTHON
look() { TORCHINDUCTOR_CACHE_DIR="$folder/$1" env/bin/python seen.py "$1"; }
with=$(look find_spec) without=$(look version)
echo "find_spec of pip: $with"
echo "version of pip:   $without"
[ "$with" = "InductorError: AssertionError: distutils/core.py" ] && [ "$without" = compiled ]
