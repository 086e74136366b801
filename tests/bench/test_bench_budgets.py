# SPDX-License-Identifier: Apache-2.0
"""Time against the budget: the table of given times, and that a step runs within each budget."""

from __future__ import annotations

import pytest

from pycl.backends import workspace
from pycl.backends.registry import why_not
from pycl.bench import budgets


def test_a_row_for_every_budget() -> None:
    rows = budgets.table({0: 200.0, 64: 100.0, "compile": 150.0, "eager": 300.0}).splitlines()[2:]
    assert rows == ["| 0 | 200 | 1.50 x | 0.75 x |", "| 64 | 100 | 3.00 x | 1.50 x |"]


@pytest.mark.skipif(why_not("cpu", "cpu") is not None, reason="the workspace is of the CPU backend, which is not built")
def test_each_step_has_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "N", 256)
    monkeypatch.setattr(budgets, "D", 16)
    seen, take = [], workspace.take
    monkeypatch.setattr(workspace, "take", lambda fitting: (seen.append(workspace.budget()), take(fitting))[1])
    steps = {name: step for name, step in budgets.steps().items() if isinstance(name, int)}
    assert min(steps) == 0
    for step in steps.values():
        step()
    assert seen == [mib << 20 for mib in steps]
