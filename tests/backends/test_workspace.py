# SPDX-License-Identifier: Apache-2.0
"""The budget of what is kept instead of computed again: what it may be, who holds the memory, and for how long."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pycl
import pycl.functional as F
from pycl.backends import workspace
from pycl.backends.registry import why_not
from pycl.core import notices

if reason := why_not("cpu", "cpu"):
    pytest.skip(reason, allow_module_level=True)

MiB = 1 << 20
N = 1200  # logits of 5.8 MB


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    monkeypatch.setattr(workspace, "_idle", {})
    assert not workspace._in_use


def terms(z: Tensor) -> Tensor:
    return F.clip(z[0], z[1], 5.0, reduction="none")


def points() -> Tensor:
    return torch.randn(2, N, 8, requires_grad=True)


def in_use() -> int:
    return sum(memory.nbytes for memory in workspace._in_use.values())


def test_memory_lives_as_long_as_the_graph() -> None:
    z = points()
    loss = terms(z).mean()
    assert in_use() > 4 * N * N
    loss.backward(retain_graph=True)
    assert in_use() > 4 * N * N
    loss.backward()
    assert in_use() == 0
    loss = terms(z).mean()
    del loss
    assert in_use() == 0


def test_the_next_step_takes_the_same_pages() -> None:
    z, found = points(), set()
    for _ in range(3):
        loss = terms(z).mean()
        found.update(memory.data_ptr() for memory in workspace._in_use.values())
        loss.backward()
        del loss
    assert len(found) == 1
    assert len(workspace._idle) == 1


def test_few_wait_for_the_next_use() -> None:
    for n in range(300, 300 + 4 * workspace.MOST_IDLE):
        terms(torch.randn(2, n, 4, requires_grad=True)).mean().backward()
    assert 0 < len(workspace._idle) <= workspace.MOST_IDLE


def test_the_budget_bounds_what_is_held() -> None:
    z = points()
    with pycl.set_workspace(8 * MiB):
        losses = [terms(z).mean() for _ in range(3)]
        assert 0 < in_use() <= 8 * MiB
        expected, *others = (torch.autograd.grad(loss, z)[0] for loss in losses)
        assert all(torch.equal(expected, other) for other in others)
        del losses
        terms(torch.randn(2, N + 200, 8, requires_grad=True)).mean().backward()
        assert in_use() + sum(memory.nbytes for memory in workspace._idle.values()) <= 8 * MiB
    with pycl.set_workspace(0):
        assert not workspace._idle
        loss = terms(z).mean()
        assert in_use() == 0
    assert torch.equal(torch.autograd.grad(loss, z)[0], expected)


def test_it_is_a_context_and_a_call() -> None:
    before = workspace.budget()
    with pycl.set_workspace(123):
        assert workspace.budget() == 123
        with pycl.set_workspace(None):
            assert workspace.budget() == before
        assert workspace.budget() == 123
    assert workspace.budget() == before
    pycl.set_workspace(77)
    try:
        assert workspace.budget() == 77
    finally:
        pycl.set_workspace(None)
    assert 0 < before <= workspace.DEFAULT_BYTES


@pytest.mark.parametrize("given", [1.5, "1", True, torch.tensor(3)])
def test_bytes_are_an_integer(given: Any) -> None:
    with pytest.raises(TypeError, match="bytes must be an integer or None, got"):
        pycl.set_workspace(given)


@pytest.mark.parametrize("given", [-1, 1 << 60])
def test_bytes_are_what_the_machine_has(given: int) -> None:
    with pytest.raises(ValueError, match=rf"bytes must be from 0 to the \d+ bytes .* got {given}"):
        pycl.set_workspace(given)


STEP = """
import torch, pycl.functional as F
from pycl.backends import workspace
z = torch.randn(2, 600, 8, requires_grad=True)
loss = F.clip(z[0], z[1], 5.0, reduction="none").mean()
print(sum(memory.nbytes for memory in workspace._in_use.values()))
"""


@pytest.mark.parametrize(
    ("value", "said"),
    [("0", "0"), ("200000000", "held"), ("many", "PYCL_WORKSPACE must be an integer"), ("-3", "from 0 to the")],
)
def test_the_environment_sets_it(value: str, said: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", STEP], env={**os.environ, "PYCL_WORKSPACE": value}, capture_output=True, text=True
    )
    if said in ("0", "held"):
        assert run.returncode == 0, run.stderr
        assert (int(run.stdout) > 4 * 600 * 600) == (said == "held")
    else:
        assert run.returncode
        assert said in run.stderr


def test_without_memory_it_computes_again_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    z = points()
    expected = torch.autograd.grad(terms(z).mean(), z)[0]

    def exhausted(*_: Any) -> Tensor:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(workspace, "_new", exhausted)
    monkeypatch.setattr(workspace, "_idle", {})
    monkeypatch.setattr(notices, "_said", set())
    with pytest.warns(UserWarning, match="computes logits again") as said:
        found = [torch.autograd.grad(terms(z).mean(), z)[0] for _ in range(2)]
    assert sum("computes logits again" in str(warning.message) for warning in said) == 1
    assert all(torch.equal(one, expected) for one in found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_between_forward_and_backward() -> None:
    z = points()
    torch.set_num_threads(1)  # a thread pool does not survive a fork
    loss = terms(z).mean()
    expected = torch.autograd.grad(loss, z, retain_graph=True)[0]
    if (child := os.fork()) == 0:
        found = torch.autograd.grad(loss, z)[0]
        os._exit(0 if torch.equal(found, expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(torch.autograd.grad(loss, z)[0], expected)


def test_a_copy_of_what_a_graph_saves_is_another_problem() -> None:
    """torch.autograd.graph.save_on_cpu hands out copies, whose addresses the kept products do not belong to."""
    z = points()
    expected = torch.autograd.grad(terms(z).mean(), z)[0]
    with torch.autograd.graph.saved_tensors_hooks(Tensor.clone, lambda x: x):
        loss = terms(z).mean()
    assert torch.equal(torch.autograd.grad(loss, z)[0], expected)


MANY_SIZES = """
import torch
from pycl import Pairs, Points, pair_stats

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS"))

x, y = torch.randn(200_000, 64), torch.randn(64, 64)

def call(n):
    pair_stats(Points(x[:n]), Points(y), denominator=Pairs.ALL, offset=None)

call(1000)
before = resident()
for n in range(20_000, 200_001, 10_000):  # packed points of 5 to 51 MB, half a GB together
    call(n)
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system tells no resident size")
def test_memory_of_calls_that_waits_has_a_bound() -> None:
    run = subprocess.run([sys.executable, "-c", MANY_SIZES], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 300 * MiB
