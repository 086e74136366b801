# SPDX-License-Identifier: Apache-2.0
"""The table of losses has all of them, and their formulas are called as the functions are."""

from __future__ import annotations

import inspect

import pytest

from pycl import functional, modules
from pycl.testing import formulas
from pycl.testing.table import LOSSES, LossRow

# functions that are no loss, or one of features and prototypes, with tests of its own
NO_ROW = {name for name in functional.__all__ if name.startswith(("similarity", "sinkhorn", "dino"))} | {
    "swav",
    "multimodal",
    "matryoshka",
    "Options",
}
NO_LOSS = {"FeatureQueue", "Prototypes", "SwAVLoss"}  # SwAVLoss has tests of its own
ROWS = pytest.mark.parametrize("row", LOSSES.values(), ids=LOSSES)


def test_every_function_has_a_row() -> None:
    assert {row.function.__name__ for row in LOSSES.values()} == set(functional.__all__) - NO_ROW


def test_every_module_has_a_row() -> None:
    assert {row.module for row in LOSSES.values()} - {None} == set(modules.__all__) - NO_LOSS


@ROWS
def test_formula_has_the_name_and_the_options_of_the_function(row: LossRow) -> None:
    name = row.function.__name__
    assert row.formula is getattr(formulas, name)
    taken = inspect.signature(row.function).parameters
    assert set(inspect.signature(row.formula).parameters) <= set(taken)
    assert {*row.scalars, *row.options} <= set(taken)
