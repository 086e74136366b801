#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# torch 2.13.0: an autograd.Function with a setup_context, whose forward has no context, gets one all the same under
# torch.compile where no input requires a gradient, if forward is written with *args: its arguments are shifted by one,
# and a result that does not notice is wrong without a word.
#
# Dynamo puts a context in front of the arguments and takes it off again if forward has as many parameters as there are
# arguments; *args is one parameter. With an input that requires a gradient, in eager mode, or with named parameters
# (a __signature__ will do) forward gets what apply() was given.
#
# Seen with Python 3.11, torch 2.13.0 (CPU):
#   eager 2, compiled 3, compiled with a gradient 2, compiled with named parameters 2
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


class Any(torch.autograd.Function):
    @staticmethod
    def forward(*args):
        return torch.tensor(float(len(args)))

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, slope):
        return None, None


class Named(Any):
    @staticmethod
    def forward(x, y):
        return Any.forward(x, y)


def count(function, x, compiled=True):
    call = lambda x: function.apply(x, 3)
    return int((torch.compile(call, backend="eager") if compiled else call)(x))


x, leaf = torch.ones(2), torch.ones(2, requires_grad=True)
print(f"eager {count(Any, x, False)}, compiled {count(Any, x)}, compiled with a gradient {count(Any, leaf)}, ", end="")
print(f"compiled with named parameters {count(Named, x)}")
PYTHON
seen=$(env/bin/python seen.py)
echo "$seen"
[ "$seen" = "eager 2, compiled 3, compiled with a gradient 2, compiled with named parameters 2" ]
