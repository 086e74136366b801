# SPDX-License-Identifier: Apache-2.0
"""The Triton backend: tiles, strips and portions of every size, precisions, extremes, memory, refusals."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from dense import ALL, NEG_OTHER, NEG_SAME, POS_OTHER, POS_SAME, SELF, Case, check, dense, engine, make, run
from torch import Tensor
from torch.testing import assert_close

import pycl.functional as F
from pycl import Pairs, Points, backends, pair_stats
from pycl.backends import BackendUnavailable, why_not

if reason := why_not("triton", "cpu"):
    pytest.skip(reason, allow_module_level=True)

from pycl.triton_kernels import backward, launch, sides, support, tiles
from pycl.triton_kernels.tiles import Tile

from pycl import triton as backend
from pycl.ops import Needs
from pycl.validation import problem_of

HALF_AND_SINGLE = [torch.bfloat16, torch.float32]


def table(rows: int, cols: int, piece: int, depth: int = 32, own: int = 64) -> dict[tuple[str, int, int], Tile]:
    """One tile for everything; ``own``: the most features for which gradients stay in registers."""
    tile = Tile(rows, cols, depth, 4, 1, piece=piece)
    return {(kernel, size, 1 << 30): tile for kernel in ("reduce", "store") for size in (2, 4)} | {
        ("own", 2, own): Tile(rows, cols, own, 4, 1, piece=piece)
    }


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tiles, several to a program, several portions of rows for every sweep."""
    monkeypatch.setitem(tiles.TABLES, 0, table(64, 32, 32))
    monkeypatch.setattr(backend, "COLUMN_PARTS", 0)  # eight blocks of rows
    monkeypatch.setattr(backend, "VISITS", 0)  # one
    monkeypatch.setattr(backward, "PARTIAL_GRADIENTS", 0)
    monkeypatch.setattr(backward, "STRIP", 0)


def sorted_labels(case: Case) -> Case:
    """Views one after the other, so that whole tiles are of one class."""
    labels = {name: getattr(case, name).sort().values for name in ("row_views", "col_views")}
    return replace(case, **labels)


CASES: dict[str, Callable[[], Case]] = {
    "columns": lambda: make(150, 170, 40, offset=3),
    "itself": lambda: make(190, None, 40, bias=(), normalize=True, positives=POS_SAME | POS_OTHER),
    "itself_tied": lambda: make(190, None, 24, bias=("row_bias",), tied=True),
    "within_views": lambda: sorted_labels(make(190, None, 24, bias=(), denominator=NEG_SAME, positives=POS_SAME)),
    "across_views": lambda: sorted_labels(make(190, None, 24, bias=(), denominator=NEG_OTHER, positives=POS_OTHER)),
    "steep": lambda: make(100, 130, 40, scale=90.0, normalize=True),
    "scale_of_rows": lambda: make(100, 130, 40, scale="rows", positives=SELF, offset=-20),
    "one_side": lambda: make(150, 130, 40, sides="rows", bias=("col_bias",), denominator=ALL, offset=None),
    "wide": lambda: make(70, 100, 200, normalize=True),
}


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_many_tiles(small: None, case: str, dtype: torch.dtype) -> None:
    problem = CASES[case]()
    if problem.row_views is not problem.col_views and "y" not in problem.leaves:
        problem = replace(problem, col_views=problem.row_views)
    check(problem, "triton", dtype)


def test_many_rows_for_both_sides(small: None) -> None:
    """More than the eight blocks of rows whose sums over columns are merged at once."""
    check(make(600, None, 8, bias=(), normalize=True), "triton", torch.float32)
    check(make(600, 40, 8), "triton", torch.bfloat16)


def outputs(case: Case, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    leaves = {name: t.to(dtype if name in ("x", "y") else torch.float32) for name, t in case.leaves.items()}
    found, gradients = run(lambda x: engine(case, x, "triton"), leaves)
    return [*found, *gradients.values()]


def assert_near(found: list[Tensor], wanted: list[Tensor], digits: float) -> None:
    for got, want in zip(found, wanted, strict=True):
        empty = want == -torch.inf
        assert torch.equal(got == -torch.inf, empty)
        got, want = got.masked_fill(empty, 0), want.masked_fill(empty, 0)
        assert_close(got, want, rtol=0, atol=digits * max(1.0, want.abs().max().item()))


@pytest.mark.parametrize("case", ["columns", "itself"])
def test_tile_size_does_not_matter(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = CASES[case]()
    wanted = outputs(problem)
    for shape in ((32, 32, 32), (128, 64, 32), (64, 64, 64)):
        monkeypatch.setitem(tiles.TABLES, 0, table(*shape))
        assert_near(outputs(problem), wanted, 3e-6)


@pytest.mark.parametrize("case", ["itself", "wide"])
def test_runs_repeat_bit_by_bit(small: None, case: str) -> None:
    problem = CASES[case]()
    for dtype in HALF_AND_SINGLE:
        assert all(torch.equal(a, b) for a, b in zip(outputs(problem, dtype), outputs(problem, dtype), strict=True))


@contextmanager
def precision(name: Any) -> Any:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("case", ["columns", "itself", "scale_of_rows", "wide"])
def test_reduced_precision(case: str) -> None:
    """Three products of bfloat16 halves keep 16 bits, one product of halves 8 (as given) or 11 (of unit vectors)."""
    problem = CASES[case]()
    wanted, size = outputs(problem), max(1.0, problem.leaves["scale"].max().item() / 4)
    errors = {}
    for name, digits in (("high", 2e-5), ("medium", 1e-2)):
        with precision(name):
            found = outputs(problem)
        assert_near(found, wanted, digits * size)
        errors[name] = (found[0] - wanted[0]).abs().max().item()
    assert 0 < errors["high"] < errors["medium"] / 20


def test_a_saturated_softmax_is_exact() -> None:
    for dtype in HALF_AND_SINGLE:
        z = torch.nn.functional.normalize(torch.randn(150, 64), dim=1).to(dtype).requires_grad_()
        for function, *arguments in ((F.info_nce, z, z), (F.nt_xent, [z, z]), (F.clip, z, z, 400.0)):
            options = {} if function is F.clip else {"temperature": 0.0025}
            value = function(*arguments, **options, backend="triton")
            (gradient,) = torch.autograd.grad(value, z)
            assert value == 0
            assert (gradient == 0).all(), f"{function.__name__}: {gradient.abs().max():.3g}"


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("leaf", ["x", "y", "row_bias", "col_bias"])
def test_not_a_number_stays_where_it_is(leaf: str, poison: float) -> None:
    case = make(60, 50, 6, scale="rows", denominator=ALL, positives=POS_SAME | POS_OTHER, offset=None)
    case.leaves[leaf].view(-1)[0] = poison
    for dtype in HALF_AND_SINGLE:
        truth = dense(case, {name: t.to(dtype).double() for name, t in case.leaves.items()})[0]
        for got, wanted in zip(outputs(case, dtype)[: len(truth)], truth, strict=True):
            where = wanted.isfinite()
            assert torch.equal(got.isfinite(), where)
            assert_close(got[where].double(), wanted[where], rtol=0.02, atol=0.05)


def test_addresses_beyond_32_bits() -> None:
    step = 2**30 + 7
    storage = torch.empty(2 * step + 64, dtype=torch.bfloat16)  # committed by the system where it is touched
    for shape, stride in (((3, 20), (step, 1)), ((20, 3), (1, step))):
        near, far = torch.randn(shape).bfloat16(), storage.as_strided(shape, stride)
        far.copy_(near)
        found = []
        for z in (near, far):
            z = z.detach().requires_grad_()
            stats = pair_stats(Points(z), denominator=Pairs.ALL, normalize=True, backend="triton")
            found.append([stats.lse.detach(), *torch.autograd.grad(stats.lse.sum(), z)])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def recorded(n: int, d: int, dtype: torch.dtype = torch.bfloat16, symmetric: bool = False) -> list[launch.Launch]:
    """What a forward and backward would launch on Hopper; tensors have shapes and no data, so nothing reads any."""
    x, y = (torch.empty(n, d, dtype=dtype, device="meta") for _ in range(2))
    sets = {"denominator": Pairs.OTHERS, "positives": Pairs.POSITIVE}
    columns = None if symmetric else Points(y)
    scale = torch.ones((), device="meta")
    problem = problem_of(Points(x), columns, scale, sets, None, None, 0 if symmetric else None, symmetric)
    with launch.recording(90) as found:
        stats = backend.pair_stats(problem, not symmetric)
        slopes = [[s[0], None, s[2]] if s.shape[1] else [None] * 3 for s in stats]
        backend.pair_stats_backward(problem, *stats, *slopes, Needs(True, not symmetric, False))
    return found


def memory(value: Any) -> dict[int, int]:
    """Bytes by storage of all tensors in a launch's arguments."""
    if isinstance(value, tuple):
        return {key: size for v in value for key, size in memory(v).items()}
    storage = value.untyped_storage() if isinstance(value, Tensor) else None
    return {} if storage is None else {storage._cdata: storage.nbytes()}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("d", [128, 256, 512])
def test_memory_grows_with_the_points_and_not_with_the_pairs(d: int, symmetric: bool) -> None:
    """What a kernel has at hand beyond inputs and outputs; the matrix would be 2 GiB, then 32 GiB."""
    peaks = []
    for n in (32768, 131072):
        inputs_and_gradients = 2 * n * d * 2
        peaks.append(max(sum(memory(found.arguments).values()) for found in recorded(n, d, symmetric=symmetric)))
        peaks[-1] -= inputs_and_gradients
    assert peaks[0] < 100e6
    assert peaks[1] < 4.2 * peaks[0]


def test_launches_of_a_small_batch() -> None:
    names = [found.kernel.__name__ for found in recorded(1024, 256)]
    assert len(names) <= 14, names
    assert len(recorded(1024, 256, symmetric=True)) <= 9


def test_a_slow_first_launch_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Kernel:
        __name__ = "kernel"

        def __getitem__(self, grid: Any) -> Any:
            return lambda *arguments, **options: None

    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(launch, "SLOW", -1.0)
    kernel = Kernel()
    with caplog.at_level(logging.INFO, logger="pycl"):
        for n in (5, 6):
            launch.launch(kernel, (1,), n, B=32)
    assert len(caplog.records) == 1
    assert "compiled kernel" in caplog.text


def test_float64_is_refused() -> None:
    z = torch.randn(2, 5, 4, dtype=torch.float64)
    with pytest.raises(BackendUnavailable, match=r"'triton' takes torch.float32.*got torch.float64.*reference"):
        F.nt_xent(z, backend="triton")
    assert "triton" not in backends.installed("cpu", torch.float64)


@pytest.mark.parametrize("asked", ["triton", None])
def test_a_gpu_with_float64(
    asked: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backend, "DEVICES", ("cuda",))
    backends.why_not.cache_clear()
    backends._automatic.cache_clear()
    try:
        assert backends.choose(None, "cuda", torch.bfloat16) == "triton"
        if asked:
            with pytest.raises(BackendUnavailable, match="float64"):
                backends.choose(asked, "cuda", torch.float64)
        else:
            with caplog.at_level(logging.INFO, logger="pycl"):
                assert [backends.choose(None, "cuda", torch.float64) for _ in range(2)] == ["reference"] * 2
            assert len(caplog.records) == 1
            assert caplog.records[0].levelno == logging.WARNING
            assert "float64" in caplog.text
    finally:
        backends.why_not.cache_clear()
        backends._automatic.cache_clear()


def test_cpu_tensors_outside_the_interpreter() -> None:
    code = "import torch, pycl; pycl.functional.nt_xent(torch.randn(2, 4, 3), backend='triton')"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode != 0
    assert "backend='triton' runs on cuda tensors, got tensors on cpu" in done.stderr


def test_why_triton_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert support.why_not() is None
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", lambda name: "3.4.0")
        assert "Triton 3.4.0 is older than 3.5" in str(support.why_not())
    with monkeypatch.context() as patch:
        patch.setattr(torch.version, "hip", "6.0")
        assert "ROCm" in str(support.why_not())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 0))
    assert "8.0 or higher, Tesla V100 has 7.0" in str(support.why_not())


def test_work_is_cut_so_that_all_multiprocessors_are_busy() -> None:
    assert sides.split(264, 132, 16) == 1
    for blocks in (1, 7, 32, 64, 100, 133, 256, 1000):
        runs = sides.split(blocks, 132, 16)
        waves = -(-blocks * runs // 132)
        assert 1 <= runs <= 16
        assert blocks * runs / (waves * 132) >= min(0.7, blocks * 16 / 132)
