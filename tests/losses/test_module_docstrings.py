# SPDX-License-Identifier: Apache-2.0
"""Modules describe themselves: formula, every argument, what a call takes, as their functions do."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest

import pycl
from pycl import functional
from pycl.modules import losses
from pycl.modules.base import Loss
from pycl.modules.docstrings import entries_of, parts_of, without_self

MODULES = [found for name in pycl.modules.__all__ if hasattr(found := getattr(pycl, name), "function")]
modules = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)


def sections(described: Any) -> dict[str, dict[str, str]]:
    _, found = parts_of(inspect.getdoc(described) or "")
    return {title: entries_of(body) for title, body in found.items()}


@modules
def test_every_argument_is_described(module: Any) -> None:
    found = sections(module)
    assert list(found["Args"]) == list(inspect.signature(module).parameters)
    assert all(found["Args"].values())


@modules
def test_what_the_function_says_is_repeated(module: Any) -> None:
    text, of_function = inspect.getdoc(module), inspect.getdoc(module.function)
    assert text is not None
    assert of_function is not None
    prose, its_sections = parts_of(of_function)
    assert text.startswith(prose[0])
    assert f":func:`pycl.functional.{module.function.__name__}`" in text
    for paragraph in (*prose, its_sections["Returns"], its_sections["Raises"]):
        assert paragraph in text
    assert "::\n\n    " in text  # the formula


@modules
def test_what_a_call_takes_is_described(module: Any) -> None:
    found, known = sections(module)["Called with"], sections(module.function)["Args"]
    assert found == {name: known[name] for name in without_self(module.forward).parameters if name in known}
    assert found


def test_arguments_that_only_the_module_has() -> None:
    found = sections(pycl.SwAVLoss)["Args"]
    assert "0 for no queue" in found["queue_size"]
    assert found["code_crops"] == sections(functional.swav)["Args"]["code_crops"]  # and not "as in the function"
    assert "log_temperature" in found["learnable_temperature"]


def test_the_stub_has_the_same_docstrings() -> None:
    stub = ast.parse(Path(losses.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    classes = {node.name: node for node in stub.body if isinstance(node, ast.ClassDef)}
    assert set(losses.__all__) <= set(classes)
    for name, node in classes.items():
        module = getattr(losses, name)
        assert ast.get_docstring(node) == inspect.getdoc(module)
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and method.name == "forward":
                assert ast.get_docstring(method) == inspect.getdoc(module.forward)


def test_a_loss_of_one_s_own_keeps_its_docstring() -> None:
    class Mine(pycl.NTXentLoss):
        """Mine."""

    class Bare(Loss):
        """Of a function without a docstring."""

        function = staticmethod(lambda views, *, reduction="mean": views)

    assert Mine.__doc__ == "Mine."
    assert Bare.__doc__ == "Of a function without a docstring."


def test_a_section_is_read() -> None:
    prose, found = parts_of(
        "Does.\n\nWith::\n\n    a = b\n\nArgs:\n    x, y: numbers\n        of two lines.\n    z: one.\n\nEnd."
    )
    assert prose == ["Does.", "With::\n\n    a = b", "End."]
    assert entries_of(found["Args"]) == {
        "x": "numbers\n        of two lines.",
        "y": "numbers\n        of two lines.",
        "z": "one.",
    }
