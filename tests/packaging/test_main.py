# SPDX-License-Identifier: Apache-2.0
"""``python -m pycl`` lists what there is, and every command says what it does."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import pycl
from pycl import __main__ as program
from pycl import engine, functional, objectives
from pycl.testing.table import LOSSES


def run(*arguments: str, module: str = "pycl") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "COLUMNS": "100"}
    environment.pop("LOCAL_RANK", None)
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)


def test_all_of_it_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main([]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[0].startswith(f"pycl {pycl.__version__} in ")
    assert all(len(line) <= program.WIDTH for line in lines[1:])
    words = set(printed.replace(",", " ").split())
    assert {f"pycl.{command}" for command in program.COMMANDS} <= words
    assert set(functional.__all__) - {"Options"} <= words
    assert {row.module for row in LOSSES.values() if row.module} <= words
    assert set(objectives.__all__) | set(engine.__all__) <= words
    assert {"lightly", "open_clip", "pml", "sentence_transformers"} <= words


@pytest.mark.parametrize("command", program.COMMANDS)
def test_a_command_in_one_line(command: str) -> None:
    said = program.summary(command)
    assert 10 < len(said) < 90
    assert "``" not in said


def test_it_runs_and_refuses_arguments() -> None:
    done = run("bench")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("python -m pycl: error: it takes no arguments, got bench;")


@pytest.mark.parametrize(("module", "said"), [("pycl", "python -m pycl.doctor --help"), ("pycl.testing", "torchrun")])
def test_help(module: str, said: str) -> None:
    done = run("--help", module=module)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout


def test_objectives_come_with_their_first_use() -> None:
    code = (
        "import sys, pycl; print('objectives' in dir(pycl), 'pycl.objectives' in sys.modules, pycl.objectives.__name__)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["True", "False", "pycl.objectives"]
