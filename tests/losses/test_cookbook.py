# SPDX-License-Identifier: Apache-2.0
"""Every recipe of docs/cookbook is its dense form in float64 and is in the table."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from helpers import cookbook
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pycl.testing import assert_ddp_equivalent

pytestmark = pytest.mark.skipif(not cookbook.FOLDER.exists(), reason="runs in a checkout")
NAMES = [name for forms in cookbook.FORMS.values() for name in forms.INPUTS]
# values of what scales a similarity: steep, and nearly flat
KNOBS = {
    "temperature": (0.05, 1.0),
    "coarse_temperature": (0.07, 2.0),
    "teacher_temperature": (0.04, 1.0),
    "scale": (30.0, 0.5),
}


def test_every_recipe_has_a_dense_form_and_a_heading() -> None:
    for page, forms in cookbook.FORMS.items():
        defined = cookbook.sections(page)
        assert defined == {name: [name] for name in defined}
        assert set(defined) == set(forms.INPUTS), page
        assert not [name for name, body in cookbook.bodies(page).items() if not cookbook.FORMULA.search(body)], page


@pytest.mark.parametrize("page", cookbook.FORMS)
def test_the_table_is_complete(page: str) -> None:
    links = [link.groups() for row in cookbook.table() if (link := cookbook.LINK.fullmatch(row.take))]
    found = [name for name, where, anchor in links if where == page and anchor == name]
    assert sorted(found) == sorted(cookbook.sections(page))
    losses = [row.loss.casefold() for row in cookbook.table()]
    assert losses == sorted(losses)


def outputs_and_gradients(
    function: Any, given: list[Any], knobs: dict[str, float]
) -> tuple[list[Tensor], list[Tensor]]:
    """All outputs, of which the first is the loss, and its gradients for all that could have one."""
    inputs = [x.clone().requires_grad_(x.is_floating_point()) for x in given]
    scalars = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in knobs.items()}
    torch.manual_seed(1)  # of recipes that draw
    found = tree_leaves(function(*inputs, **scalars))
    wanted = [x for x in (*inputs, *scalars.values()) if x.requires_grad]
    return [x.detach() for x in found], list(torch.autograd.grad(found[0], wanted, materialize_grads=True))


def numbers(function: Any) -> dict[str, Any]:
    """The arguments with a default but the group, and their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty and p.name != "group"}


@pytest.mark.parametrize("steepness", ["steep", "flat"])
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_its_dense_form(name: str, steepness: str) -> None:
    recipe = cookbook.recipes()[name]
    torch.manual_seed(0)
    inputs = recipe.make(37, 6)
    assert numbers(recipe.loss) == numbers(recipe.formula)
    knobs = {knob: KNOBS[knob][steepness == "flat"] for knob in numbers(recipe.loss) if knob in KNOBS}
    got, gradients = outputs_and_gradients(recipe.loss, inputs, knobs)
    true, of_formula = outputs_and_gradients(recipe.formula, inputs, knobs)
    assert got[0].shape == ()
    assert any(gradient.any() for gradient in of_formula)
    for mine, wanted in zip([*got, *gradients], [*true, *of_formula], strict=True):
        assert wanted.isfinite().all()
        torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-11 * max(1.0, wanted.abs().max().item()))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_makes_its_tensors_where_the_inputs_are(name: str) -> None:
    """What a recipe would make on the default device has no data here."""
    recipe = cookbook.recipes()[name]
    torch.manual_seed(0)
    inputs = recipe.make(11, 6)
    with torch.device("meta"):
        found = tree_leaves(recipe.loss(*inputs))
    assert {x.device.type for x in found} == {inputs[0].device.type}


def on_all_ranks(query: Tensor, key: Tensor) -> Tensor:
    value: Tensor = cookbook.recipes()["am_info_nce"].loss(query, key, group="world")
    return value


def test_the_recipe_for_several_ranks() -> None:
    inputs = torch.randn(2, 10, 4, dtype=torch.float64).unbind()
    assert_ddp_equivalent(on_all_ranks, inputs, shares=(9, 1))
