# SPDX-License-Identifier: Apache-2.0
"""The CPU kernels in a process that does other things: threads of Python, forks, signals."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.global_settings import threads
from torch import Tensor

import pycl.functional as F
from pycl.backends.registry import why_not

if reason := why_not("cpu", "cpu"):
    pytest.skip(reason, allow_module_level=True)

CALLS = {
    "nt_xent": lambda x, y: F.nt_xent([x, y], backend="cpu"),
    "clip": lambda x, y: F.clip(x, y, 5.0, backend="cpu"),
    "siglip": lambda x, y: F.siglip(x, y, 2.0, -1.0, reduction="none", backend="cpu").sum(),
    "sup_con": lambda x, y: F.sup_con([x, y], torch.arange(len(x)) % 7, backend="cpu"),
}


def gradients(loss: str, n: int) -> list[Tensor]:
    x, y = torch.randn(2, n, 24, generator=torch.Generator().manual_seed(n))
    x, y = x.requires_grad_(), y.requires_grad_()
    value = CALLS[loss](x, y)
    return [value.detach(), *torch.autograd.grad(value, (x, y))]


@pytest.mark.parametrize("n_threads", [1, 3])
def test_four_threads_at_once(n_threads: int) -> None:
    work = [(loss, n) for n in (50, 333, 600) for loss in CALLS]
    with threads(n_threads):
        alone = [gradients(*one) for one in work]
        with ThreadPoolExecutor(4) as pool:
            together = [list(pool.map(lambda one: gradients(*one), work)) for _ in range(5)]
    for results in together:
        for mine, right in zip(results, alone, strict=True):
            assert all(map(torch.equal, mine, right))


COMMON = """
import os, signal, sys, threading, time
import torch
import pycl, pycl.backends.cpu
import pycl.functional as F

def loss(x, backend="cpu"):
    fused = "pair_cross_entropy_fused" in sys.argv  # a mean of the library comes with its gradients
    terms = F.nt_xent(x, reduction="mean" if fused else "none", backend=backend)
    return terms if fused else terms.mean()

def points(n):
    return torch.randn(2, n, 256, generator=torch.Generator().manual_seed(0)).requires_grad_()

def seconds(n):
    x, begin = points(n).detach(), time.perf_counter()
    loss(x)
    return time.perf_counter() - begin

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background starts with it ignored
if sys.argv[1] == "own":
    pycl.backends.cpu._C.use_thread_pool_of("none")
torch.set_num_threads(int(sys.argv[2]))
"""
FORK = """
x = points(500).detach()
right = loss(x)
child = os.fork()
if child == 0:
    signal.alarm(60)
    same = [bool(torch.equal(loss(x), right))]
    torch.set_num_threads(2)
    same.append(bool(torch.allclose(loss(x), right)))
    os._exit(0 if all(same) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), torch.equal(loss(x), right))
"""
# points enough for so many seconds of forward and twice as many of backward, however fast this machine is
LONG = """
seconds(4000)  # the first call touches new memory
n = int(4000 * (float(sys.argv[3]) / seconds(4000)) ** 0.5)
"""
INTERRUPT = """
def interrupt():
    time.sleep(0.3)
    sent.append(time.perf_counter())
    os.kill(os.getpid(), signal.SIGINT)

where = sys.argv[4]
plain = getattr(pycl.backends.cpu._C, where)

def interrupted(*arguments):
    threading.Thread(target=interrupt, daemon=True).start()
    return plain(*arguments)

setattr(pycl.backends.cpu._C, where, interrupted)
sent, x = [], points(n)
try:
    loss(x).backward()
except KeyboardInterrupt:
    print(time.perf_counter() - sent[0])
assert x.grad is None
setattr(pycl.backends.cpu._C, where, plain)
x = points(300)
loss(x).backward()
(right,) = torch.autograd.grad(loss(x, "reference"), x)
print(torch.allclose(x.grad, right, rtol=1e-4, atol=1e-7))
"""
SOLVE = """
def interrupt():
    time.sleep(0.3)
    sent.append(time.perf_counter())
    os.kill(os.getpid(), signal.SIGINT)

sent, scores = [], torch.rand(2000, 500)
threading.Thread(target=interrupt, daemon=True).start()
try:
    F.sinkhorn(scores, iterations=10**6, backend="cpu")
except KeyboardInterrupt:
    print(time.perf_counter() - sent[0])
"""
HANDLED = """
x, ticks = points(n).detach(), []
right = loss(x)
signal.signal(signal.SIGALRM, lambda *of: ticks.append(of))
signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
same = torch.equal(loss(x), right)
signal.setitimer(signal.ITIMER_REAL, 0)
print(len(ticks) > 0, same)
"""


def python(code: str, *arguments: str) -> list[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", COMMON + code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("pool", ["torch", "own"])
def test_a_fork_after_one_thread(pool: str) -> None:
    assert python(FORK, pool, "1") == ["0", "True"]


@pytest.mark.parametrize(
    ("where", "forward", "pool", "n_threads"),
    [
        ("pair_stats", "3", "torch", "1"),
        ("pair_stats", "3", "own", "2"),
        ("pair_stats_backward", "1.5", "torch", "2"),
        ("pair_cross_entropy_fused", "1.5", "torch", "2"),
    ],
)
def test_an_interrupt_ends_a_kernel(where: str, forward: str, pool: str, n_threads: str) -> None:
    """Nothing of what it wrote is left, and the next call is right."""
    delay, is_right = python(LONG + INTERRUPT, pool, n_threads, forward, where)
    assert float(delay) < 1
    assert is_right == "True"


def test_an_interrupt_ends_a_solve() -> None:
    (delay,) = python(SOLVE, "torch", "2")
    assert float(delay) < 1


def test_a_signal_that_is_handled_changes_nothing() -> None:
    assert python(LONG + HANDLED, "torch", "1", "1.2") == ["True", "True"]
