# SPDX-License-Identifier: Apache-2.0
"""Points at any distance in memory give what contiguous ones give, and results end where they end."""

from __future__ import annotations

import random

import pytest
import torch
from helpers.global_settings import threads
from torch import Tensor
from torch.testing import assert_close

import pycl.functional as F
from pycl import Pairs, Points, pair_stats
from pycl.backends.registry import why_not
from pycl.core.problem import Gradients
from pycl.engine import LabelTable, PairMLP

if reason := why_not("cpu", "cpu"):
    pytest.skip(reason, allow_module_level=True)

from pycl.backends import cpu

GUARD = 64
STEPS = {  # distances of rows and of columns of points [n, d]
    "rows": lambda n, d: (d, 1),
    "columns": lambda n, d: (1, n),
    "gaps": lambda n, d: (3 * d + 2, 3),
    "aligned_nowhere": lambda n, d: (d + 7, 1),
    "one_row": lambda n, d: (0, 1),
    "one_column": lambda n, d: (2, 0),
    "one_number": lambda n, d: (0, 0),
    "overlapping": lambda n, d: (1, 1),
}


def strided(n: int, d: int, dtype: torch.dtype, layout: str, draw: random.Random) -> Tensor:
    """Points somewhere in a larger memory, whose last entry is the memory's."""
    steps, start = STEPS[layout](n, d), draw.randrange(5)
    memory = torch.randn(start + (n - 1) * steps[0] + (d - 1) * steps[1] + 1)
    return memory.to(dtype).as_strided((n, d), steps, start)


def results(x: Tensor, y: Tensor, denominator: Pairs, offset: int | None, normalize: bool) -> list[Tensor]:
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    one = pair_stats(Points(x), denominator=denominator, backend="cpu")
    options = {"denominator": denominator, "offset": offset, "normalize": normalize}
    ids = torch.arange(max(len(x), len(y)))  # without them the sets would leave out pairs of two different points
    two = pair_stats(Points(x, ids[: len(x)]), Points(y, ids[: len(y)]), backend="cpu", **options)
    total = sum(side[side.isfinite()].sum() for side in (one.lse, two.lse))
    return [one.lse, two.lse, *torch.autograd.grad(total, (x, y))]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("layout", STEPS)
def test_of_points(isa: str, layout: str, seed: int) -> None:
    """Bit by bit, at sizes around those of tiles and vectors."""
    draw = random.Random(f"{layout} {seed}")
    torch.manual_seed(seed)
    dtype = draw.choice(list(cpu.DTYPES))
    m, n, d = draw.choice([2, 15, 33, 97]), draw.choice([1, 3, 16, 65, 130]), draw.choice([1, 2, 17, 64])
    x, y = strided(m, d, dtype, layout, draw), strided(n, d, dtype, draw.choice(list(STEPS)), draw)
    sets = draw.choice([Pairs.ALL, Pairs.OTHERS, Pairs.NEGATIVE])
    options = sets, draw.choice([None, 0, -3, 200]), draw.random() < 0.5
    with threads(draw.choice([1, 2, 3])):
        found, right = results(x, y, *options), results(x.contiguous(), y.contiguous(), *options)
    for mine, theirs in zip(found, right, strict=True):
        assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", cpu.DTYPES, ids=str)
@pytest.mark.parametrize("layout", [layout for layout in STEPS if STEPS[layout](2, 3)[1] == 1])
def test_of_scores(isa: str, layout: str, dtype: torch.dtype) -> None:
    scores = strided(37, 21, dtype, layout, random.Random(0))
    assert torch.equal(F.sinkhorn(scores, backend="cpu"), F.sinkhorn(scores.contiguous(), backend="cpu"))


@pytest.mark.parametrize("dtype", cpu.DTYPES, ids=str)
@pytest.mark.parametrize(("m", "n"), [(1, 1), (33, 130), (97, 15)])
def test_nothing_is_written_beside_gradients(
    isa: str, m: int, n: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded: list[Tensor] = []
    plain = cpu.empty_gradients

    def guard(gradient: Tensor) -> Tensor:
        memory = torch.full((gradient.numel() + 2 * GUARD,), 7.0, dtype=gradient.dtype)
        guarded.append(memory)
        return memory[GUARD:-GUARD].view(gradient.shape)

    monkeypatch.setattr(cpu, "empty_gradients", lambda *a: type(plain(*a))(*map(guard, plain(*a))))
    x, y = torch.randn(m, 7).to(dtype).requires_grad_(), torch.randn(n, 7).to(dtype).requires_grad_()
    bias = torch.zeros(m, dtype=torch.float64 if dtype == torch.float64 else torch.float32, requires_grad=True)
    p, q, w2 = (torch.randn(size, dtype=bias.dtype, requires_grad=True) for size in ((m, 3), (n, 3), (3,)))
    table, labels = torch.ones(2, 3, dtype=bias.dtype, requires_grad=True), (torch.arange(m) % 2, torch.arange(n) % 3)
    modifiers = [PairMLP(p, q, w2, bias.new_zeros(())), LabelTable(table, *labels)]
    options = {"row_bias": bias, "offset": None, "modifiers": modifiers, "backend": "cpu"}
    stats = pair_stats(Points(x), Points(y), 0.5, denominator=Pairs.ALL, **options)
    stats.lse.sum().backward()
    assert len(guarded) == len(Gradients._fields)
    for memory in guarded:
        assert (memory[:GUARD] == 7).all()
        assert (memory[-GUARD:] == 7).all()
        assert (memory[GUARD:-GUARD] != 7).any() or memory.numel() == 2 * GUARD
