# SPDX-License-Identifier: Apache-2.0
"""MiB that a step of each recipe adds to the resident memory of this process: ``python -m helpers.cookbook.peaks N D``.

A line ``name MiB`` for each, of float32 and without a workspace. Right only in a fresh process.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor

import pycl
from helpers.cookbook import Recipe, recipes
from pycl.bench.measure.peak import growth


def narrow(x: Any) -> Any:
    return x.float().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x


def step(recipe: Recipe, inputs: list[Any]) -> None:
    value = recipe.loss(*inputs)
    (value[0] if isinstance(value, tuple) else value).backward()


def main(n: int, d: int, names: list[str]) -> None:
    torch.set_num_threads(1)
    pycl.set_workspace(0)
    for name in names:
        recipe = recipes()[name]
        step(recipe, [narrow(x) for x in recipe.make(64, d)])  # loads the code
        inputs = [narrow(x) for x in recipe.make(n, d)]
        print(name, growth(partial(step, recipe, inputs))["peak_mib"], flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
