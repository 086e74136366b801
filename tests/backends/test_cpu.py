# SPDX-License-Identifier: Apache-2.0
"""The CPU backend: every instruction set, threads, uninitialised memory, large addresses, extreme values."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.dense import (
    ALL,
    NEG_SAME,
    POS_OTHER,
    POS_SAME,
    SELF,
    Case,
    assert_near,
    assert_near_products,
    check,
    dense,
    make,
    outputs_of,
    reduced,
)
from helpers.global_settings import deterministic, matmul_precision, threads
from torch import Tensor
from torch.testing import assert_close

import pycl.functional as F
from pycl import Pairs, Points, pair_stats
from pycl.backends.registry import why_not

if reason := why_not("cpu", "cpu"):
    pytest.skip(reason, allow_module_level=True)

from helpers.cpu_settings import ISAS, instruction_set

from pycl.backends import cpu

outputs = partial(outputs_of, "cpu")
CASES = {
    "one_pair": lambda: make(1, 1, 1),
    "ragged": lambda: make(101, 67, 37, offset=3, denominator=ALL),
    "itself": lambda: make(150, None, 24, bias=(), normalize=True, positives=POS_SAME | POS_OTHER),
    "steep": lambda: make(70, 130, 50, scale=90.0, normalize=True),
    "scale_of_rows": lambda: make(70, 99, 64, scale="rows", sides="rows", positives=SELF),
    "wide": lambda: make(20, 33, 300),
    "few_columns": lambda: make(170, 6, 40, sides="rows", scale="rows", denominator=ALL),
    "few_rows": lambda: make(5, 170, 24, sides="rows", offset=None),
    "large_tiles": lambda: make(400, 390, 9, offset=None, scale=20.0),
    "blocks_without_a_pair": lambda: replace(
        make(256, 256, 9, denominator=NEG_SAME, positives=POS_SAME, offset=None),
        row_views=torch.arange(256) // 128,
        col_views=torch.ones(256, dtype=torch.int64),
    ),
    "large_tiles_itself": lambda: make(800, None, 9, bias=("row_bias",), tied=True, positives=POS_SAME | POS_OTHER),
}


def totals(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """Values that come with their gradients, and those."""
    found = []
    for of in ("cross_entropy", "sum"):
        leaves = {k: x.to(dtype if k in "xy" else torch.float32).requires_grad_() for k, x in case.leaves.items()}
        value = reduced(case, leaves, of, "mean", "cpu")
        found += [value.detach(), *torch.autograd.grad(value, list(leaves.values()))]
    return found


def python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script with pycl importable as it is here."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | variables
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120, env=environment
    )


@contextmanager
def busy_cores() -> Iterator[None]:
    """Two other programs that never sleep."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_instruction_sets(isa: str, case: str, dtype: torch.dtype) -> None:
    check(CASES[case](), "cpu", dtype)


@pytest.mark.parametrize("case", CASES)
def test_medium_precision(isa: str, case: str) -> None:
    """Three products of two bfloat16 halves of each number with AMX; elsewhere float32, as PyTorch's own.

    What three leave out is 2^-18 each: the product of the low halves, and what neither half of a number holds.
    """
    problem = CASES[case]()
    exact = outputs(problem)
    with matmul_precision("medium"):
        reduced = outputs(problem)
    if isa.startswith("amx"):
        assert_near_products(reduced, exact, problem, 3 * 2**-18)
    else:
        assert all(map(torch.equal, reduced, exact))


@pytest.mark.parametrize("isa_of_float32", [isa for isa in ISAS if isa.startswith("amx")])
def test_float32_of_three_planes(isa_of_float32: str) -> None:
    """Six products of bfloat16 planes are at least as near to the exact ones as float32's own."""
    x, y = torch.randn(2, 96, 200).unbind()
    exact = (x.double() @ y.double().T).logsumexp(1)

    def error(name: str) -> float:
        with instruction_set(name):
            found = pair_stats(Points(x), Points(y), denominator=Pairs.ALL, logit_scale=1.0, backend="cpu").lse
        return float((found.double() - exact).norm())

    assert error(isa_of_float32) <= 1.05 * error("generic")


@pytest.mark.parametrize("largest", [3.4028e38, 3.3953e38, -3.4028e38, 1e30, 1e-30], ids=str)
def test_numbers_near_the_ends_of_float32(isa: str, largest: float) -> None:
    """A number that rounds to an infinite bfloat16 is not infinite."""
    x, y = torch.randn(2, 40, 8).unbind()
    x[:, 3] = largest
    y[:, 3] *= 1e7 / abs(largest)
    wanted = (x.double() @ y.double().T).logsumexp(1)
    found = pair_stats(Points(x), Points(y), denominator=Pairs.ALL, logit_scale=1.0, backend="cpu").lse
    assert_close(found.double(), wanted, rtol=1e-6, atol=0)


def test_a_switch_for_a_gpu_changes_no_loss() -> None:
    """Not with AMX either, whose products of halves are for "medium"."""
    problem, found = CASES["ragged"](), {}
    with instruction_set("amx-emulated"):
        for name in ("highest", "high", "medium"):
            with matmul_precision(name):
                found[name] = outputs(problem)[0], outputs(problem, torch.float64)[0]
    assert torch.equal(found["high"][0], found["highest"][0])
    assert not torch.equal(found["medium"][0], found["highest"][0])
    assert torch.equal(found["medium"][1], found["highest"][1])  # float64 stays itself


def test_instruction_sets_are_listed_best_first() -> None:
    assert len(set(ISAS)) == len(ISAS)
    assert ISAS[-2:] == ["generic", "amx-emulated"]
    if "PYCL_CPU_ISA" not in os.environ:
        assert ISAS[0] == cpu.ISA
    with pytest.raises(ValueError, match=r"'abacus' cannot run here.*generic"):
        cpu._C.select_isa("abacus")


def test_an_unknown_instruction_set_is_an_error() -> None:
    code = "import pycl, torch; pycl.functional.nt_xent(torch.randn(2, 4, 3), backend='cpu')"
    done = python(code, PYCL_CPU_ISA="abacus")
    assert done.returncode != 0
    assert "BackendUnavailable" in done.stderr
    assert "PYCL_CPU_ISA" in done.stderr
    assert all(name in done.stderr for name in ("abacus", *ISAS))


@pytest.mark.parametrize("n_threads", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("case", ["itself", "ragged", "steep"])
def test_runs_repeat_bit_by_bit(case: str, n_threads: int) -> None:
    problem = CASES[case]()
    with threads(1):
        alone = outputs(problem)
    with threads(n_threads):
        first = outputs(problem)
        for _ in range(3):
            assert all(torch.equal(a, b) for a, b in zip(first, outputs(problem), strict=True))
    assert_near(first, alone, 3e-6 * max(1.0, problem.leaves["scale"].item() / 4))


@pytest.mark.parametrize("n_threads", [2, 3])
@pytest.mark.parametrize("n_cols", [1600, None], ids=["rectangle", "itself"])
def test_who_takes_a_task_changes_nothing(n_cols: int | None, n_threads: int) -> None:
    """More tasks than workers, which other programs interrupt: who gets which differs from run to run."""
    problem = make(2400, n_cols, 8, offset=0 if n_cols is None else None)
    with threads(1):
        alone = totals(problem, torch.float64)
    with threads(n_threads), busy_cores():
        first = totals(problem, torch.float64)
        for _ in range(5):
            assert all(map(torch.equal, first, totals(problem, torch.float64)))
    assert_close(first, alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n_threads", [2, 5, 16])
def test_more_threads_than_tiles(n_threads: int) -> None:
    for m, n in ((1, 1), (3, None), (49, None), (1, 500), (500, 1), (97, 97)):
        with threads(n_threads):
            check(make(m, n, 5, bias=()), "cpu", torch.float64)


def test_uninitialised_memory_is_not_read(isa: str) -> None:
    problems = [make_case() for make_case in CASES.values()]
    everything = [(p, dtype) for p in problems for dtype in (torch.float32, torch.bfloat16)]
    clean = [[*outputs(*args), *totals(*args)] for args in everything]
    with deterministic(True):
        assert torch.empty(3).isnan().all()
        poisoned = [[*outputs(*args), *totals(*args)] for args in everything]
    for got, wanted in zip(poisoned, clean, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def digests() -> list[str]:
    """One line for all outputs of every instruction set, case and dtype."""
    lines = []
    for name, (case, make_case), dtype in itertools.product(ISAS, CASES.items(), (torch.float32, torch.bfloat16)):
        torch.manual_seed(0)
        digest = hashlib.sha1(usedforsecurity=False)
        with instruction_set(name), threads(1):
            for t in [*outputs(make_case(), dtype), *totals(make_case(), dtype)]:
                digest.update(t.reshape(-1).view(torch.uint8).numpy().tobytes())
        lines.append(f"{name} {case} {dtype} {digest.hexdigest()}")
    return lines


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="MALLOC_PERTURB_ is a setting of glibc")
@pytest.mark.parametrize("byte", [165, 128])  # malloc returns the complement: floats of 1e16, floats of 3e38
def test_scratch_of_the_kernels_is_not_read(byte: int) -> None:
    done = python("import test_cpu; print(*test_cpu.digests(), sep='\\n')", MALLOC_PERTURB_=str(byte))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == digests()


@pytest.mark.parametrize("far", ["rows", "features"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_addresses_beyond_32_bits(dtype: torch.dtype, far: str) -> None:
    """Three rows, or features, 2^30 elements apart: the storage is larger than 2^31, a few pages of it are touched."""
    step = 2**30 + 7
    try:
        storage = torch.empty(2 * step + 64, dtype=dtype)  # committed by the system where it is touched
    except RuntimeError as error:
        pytest.skip(f"no address space for {(2 * step) * dtype.itemsize >> 30} GiB: {error}")
    shape, stride = ((3, 20), (step, 1)) if far == "rows" else ((20, 3), (1, step))
    z = storage.as_strided(shape, stride)
    near = torch.randn(shape).to(dtype)
    z.copy_(near)

    def gradient(x: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        stats = pair_stats(Points(x), denominator=Pairs.ALL, normalize=True, backend="cpu")
        cross = pair_stats(Points(near), Points(x), denominator=Pairs.OTHERS, backend="cpu")
        return [stats.lse, cross.lse, *torch.autograd.grad(stats.lse.sum() + cross.lse.sum(), x)]

    for got, wanted in zip(gradient(z), gradient(near), strict=True):
        assert torch.equal(got, wanted)


def test_other_python_threads_run_meanwhile() -> None:
    x, ticks, done = torch.randn(2, 6000, 64), [], threading.Event()

    def tick() -> None:
        while not done.wait(0.001):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    with threads(1):
        begin = time.perf_counter()
        F.nt_xent(x, backend="cpu")
        end = time.perf_counter()
    done.set()
    thread.join()
    within = [begin, *(t for t in ticks if begin < t < end), end]
    longest = max(b - a for a, b in itertools.pairwise(within))
    assert longest < 0.8 * (end - begin), f"no thread ran for {longest:.3f} s of {end - begin:.3f} s"


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("leaf", ["x", "y", "row_bias", "col_bias"])
def test_not_a_number_stays_where_it_is(isa: str, leaf: str, poison: float) -> None:
    """Everything comes to an end; what is not finite in the dense formula is not here, the rest is untouched."""
    case = make(60, 50, 6, scale="rows", denominator=ALL, positives=POS_SAME | POS_OTHER, offset=None)
    case.leaves[leaf].view(-1)[0] = poison
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        truth = dense(case, {name: t.to(dtype).double() for name, t in case.leaves.items()})[0]
        for got, wanted in zip(outputs(case, dtype)[: len(truth)], truth, strict=True):
            where = wanted.isfinite()
            assert torch.equal(got.isfinite(), where)
            assert_close(got[where].double(), wanted[where], rtol=0.02, atol=0.05)


def test_a_saturated_softmax_is_exact(isa: str) -> None:
    """A pair that is all of the sum has a weight of 1, whatever the last bit of its logit: no loss and no gradient."""
    z = torch.nn.functional.normalize(torch.randn(512, 128), dim=1).requires_grad_()
    for function, *arguments in ((F.info_nce, z, z), (F.nt_xent, [z, z]), (F.clip, z, z, 200.0)):
        options = {} if function is F.clip else {"temperature": 0.005}
        value = function(*arguments, **options, backend="cpu")
        (gradient,) = torch.autograd.grad(value, z)
        assert value == 0
        assert (gradient == 0).all(), f"{function.__name__}: {gradient.abs().max():.3g}"


MEMORY = """
import torch, pycl.functional as F
peaks = []
for n in (64, 8192):
    x, y = torch.randn(2, n, 64, requires_grad=True)
    F.clip(x, y, torch.tensor(10.0, requires_grad=True), backend="cpu").backward()
    with open("/proc/self/status") as status:
        peaks += [int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM")]
print(peaks[1] - peaks[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.parametrize("budget", [0, 100 << 20])
def test_memory_is_linear(budget: int) -> None:
    """Beyond what is kept: a matrix of logits would be 256 MiB; inputs, gradients, packed copies are 2 MiB each."""
    done = python(MEMORY, PYCL_WORKSPACE=str(budget))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) - budget < 48 << 20, f"{int(done.stdout) / 2**20:.0f} MiB"


VIEWS = "torch.randn(2, 700, 16, generator=torch.Generator().manual_seed(0))"
WITHOUT_THE_POOL = f"""
import torch
from pycl.backends.compiled import extension
extension().use_thread_pool_of = lambda library: False
import pycl.backends.cpu
torch.set_num_threads(3)
print(pycl.backends.cpu.ISA, pycl.functional.nt_xent({VIEWS}, backend="cpu").item())
"""


def test_environment_and_threads_without_the_pool_of_torch() -> None:
    """The result depends on the instruction set and the number of threads, not on whose threads they are."""
    done = python(WITHOUT_THE_POOL, PYCL_CPU_ISA="generic")
    assert done.returncode == 0, done.stderr
    with threads(3), instruction_set("generic"):
        assert done.stdout.split() == ["generic", str(F.nt_xent(eval(VIEWS), backend="cpu").item())]
