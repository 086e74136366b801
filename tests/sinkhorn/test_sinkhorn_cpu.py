# SPDX-License-Identifier: Apache-2.0
"""Sinkhorn's CPU kernels on every instruction set and number of threads, and the memory they touch."""

from __future__ import annotations

import pytest
import torch
from helpers.global_settings import deterministic, threads
from helpers.oracle import assert_as_accurate
from helpers.sinkhorn_problems import check, problem
from helpers.sinkhorn_reference import published

from pycl.backends.registry import why_not
from pycl.functional import sinkhorn

if reason := why_not("cpu", "cpu"):
    pytest.skip(reason, allow_module_level=True)

from pycl.backends import cpu
from pycl.core.problem import SinkhornProblem
from pycl.core.sinkhorn import NotFiniteError, solve

DTYPES = torch.float64, torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_instruction_sets(isa: str, dtype: torch.dtype) -> None:
    half = dtype.itemsize == 2
    for shape in ((1, 3), (19, 33), (70, 1500)):  # tails of vectors, of blocks of samples and of chunks of columns
        scores = (torch.rand(shape) * 2 - 1).to(dtype)
        truth, eager = published(scores.double()), published(scores.float() if half else scores).to(dtype)
        assert_as_accurate(sinkhorn(scores, backend="cpu"), eager, truth, dtype, magnitude=truth.max().item())
        wide = sinkhorn(scores, dtype=torch.float32, backend="cpu")
        assert_as_accurate(wide, published(scores.float()), truth, torch.float32, magnitude=truth.max().item())


@pytest.mark.parametrize("iterations", [1, 2, 5])
@pytest.mark.parametrize("marginals", [False, True])
@pytest.mark.parametrize(
    ("dtype", "codes"), [*((one, one) for one in DTYPES), *((half, torch.float32) for half in DTYPES[2:])], ids=str
)
def test_a_solve_is_its_steps(
    isa: str, dtype: torch.dtype, codes: torch.dtype, marginals: bool, iterations: int
) -> None:
    """Bit for bit, and the truth; rows lie apart, some pairs are ruled out."""
    t = problem(37, 131, dtype, iterations=iterations, codes=codes, marginals=marginals, holes=0.1, stride=140)
    found = cpu.sinkhorn(t)
    for one, other in zip(found, solve(cpu.sinkhorn_columns, cpu.sinkhorn_codes, t), strict=True):
        assert torch.equal(one, other)
    check(found, t)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_solve_in_place(isa: str, dtype: torch.dtype) -> None:
    t = problem(70, 259, dtype)
    expected = cpu.sinkhorn(t)
    memory = t.scores.clone()
    found = cpu.sinkhorn(t._replace(scores=memory, out=memory))
    assert found[0] is memory
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        (3, 5, torch.nan, r"1 that are not, the first nan at \[3, 5\]"),
        (0, 0, torch.inf, r"the first inf at \[0, 0\]"),
        (2, slice(None), -torch.inf, "every row, row 2 has only -inf"),
        (slice(None), 4, -torch.inf, "every column, column 4 has only -inf"),
        (1, 1, 1e38, "beyond the range of its dtype, epsilon=0.05"),
    ],
)
@pytest.mark.parametrize("iterations", [1, 3])
def test_scores_that_are_not_finite(
    isa: str, iterations: int, row: int | slice, column: int | slice, value: float, message: str
) -> None:
    scores = torch.rand(9, 40)
    scores[row, column] = value
    with pytest.raises(NotFiniteError, match=message):
        sinkhorn(scores, iterations=iterations, backend="cpu")


def test_the_default_device_is_not_that_of_the_codes() -> None:
    for n in (3, 700):  # codes by malloc, and in a buffer
        scores = torch.rand(n, 500)
        expected = sinkhorn(scores, backend="cpu")
        with torch.device("meta"):
            assert torch.equal(sinkhorn(scores, backend="cpu"), expected)


def test_a_tracer_sees_the_operator() -> None:
    scores = torch.rand(6, 9)
    traced = torch.jit.trace(lambda x: sinkhorn(x, backend="cpu"), scores, check_trace=False)
    other = torch.rand(6, 9)
    assert torch.equal(traced(other), sinkhorn(other, backend="cpu"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_number(isa: str, dtype: torch.dtype) -> None:
    """All 65,536 bit patterns as scores: what is read, seen in the potential, and how codes are rounded."""
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    scores = values[values.abs() < 1e38][:, None]  # beyond, a logit in units of log 2 is infinite
    u = cpu.sinkhorn_codes(SinkhornProblem(scores, 1.0, 1, None, torch.zeros(1), dtype), torch.zeros(1))[1]
    torch.testing.assert_close(u, -scores[:, 0].float(), rtol=5e-7, atol=1e-37)
    spread = torch.linspace(-20, 20, 65_536).to(dtype)  # codes from 2e-9 to 1
    pair = SinkhornProblem(torch.stack([spread, torch.zeros_like(spread)], 1), 1.0, 1, None, torch.zeros(2), dtype)
    narrow, _ = cpu.sinkhorn_codes(pair, torch.zeros(2))
    wide, _ = cpu.sinkhorn_codes(pair._replace(dtype=torch.float32), torch.zeros(2))
    assert torch.equal(narrow, wide.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_codes_written_past_the_cache(isa: str, dtype: torch.dtype) -> None:
    """Codes of 32 MB or more take another way to memory: bit for bit those of the samples on their own."""
    n_prototypes = 2051  # rows that begin anywhere in a cache line
    n = 2**25 // (n_prototypes * dtype.itemsize) + 1
    scores, v = (
        torch.rand(n, n_prototypes).to(dtype),
        torch.rand(n_prototypes).to(torch.promote_types(dtype, torch.float32)),
    )
    whole = SinkhornProblem(scores, 0.05, 1, None, v, dtype)
    codes, u = cpu.sinkhorn_codes(whole, v)
    half = n // 2
    for rows in (slice(0, half), slice(half, n)):
        part, part_u = cpu.sinkhorn_codes(whole._replace(scores=scores[rows]), v)
        assert torch.equal(codes[rows], part)
        assert torch.equal(u[rows], part_u)


@pytest.mark.parametrize("n_threads", [1, 2, 5, 16])
def test_threads(n_threads: int) -> None:
    for shape in ((1, 1), (1, 70_000), (70_000, 1), (300, 700)):
        scores = torch.rand(shape) * 2 - 1
        with threads(n_threads):
            codes = sinkhorn(scores, backend="cpu")
            assert torch.equal(sinkhorn(scores, backend="cpu"), codes)
        truth = published(scores.double())
        lost = max(1.0, shape[1] ** 0.5 / 67)  # a row's sum in few lanes has lost sqrt(n) roundings, the floor is 67
        assert_as_accurate(codes, published(scores), truth, torch.float32, magnitude=lost * truth.max().item())


def test_uninitialised_memory_is_not_read(isa: str) -> None:
    for dtype in DTYPES:
        scores = torch.rand(77, 130).to(dtype)
        clean = sinkhorn(scores, backend="cpu")
        with deterministic(True):
            assert torch.equal(sinkhorn(scores, backend="cpu"), clean)
