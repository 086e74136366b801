# SPDX-License-Identifier: Apache-2.0
"""The similarity matrix, its largest entries and its histogram against plain torch."""

from __future__ import annotations

import importlib

import pytest
import torch
from helpers.global_settings import threads
from torch import Tensor
from torch.nn.functional import normalize

import pycl.functional as F
from pycl.backends import reference

SIZES = [(1, 1, 1), (7, 7, 3), (37, 90, 5), (300, 150, 16)]


@pytest.fixture(params=[None, (3, 7)], ids=["one_tile", "small_tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        module = importlib.import_module("pycl.functional.similarity")
        monkeypatch.setattr(module, "ROWS", request.param[0])
        monkeypatch.setattr(module, "COLUMNS", request.param[1])
        monkeypatch.setattr(reference, "TILE", request.param)


def pair(m: int, n: int, d: int) -> tuple[Tensor, Tensor]:
    return torch.randn(m, d, dtype=torch.float64), torch.randn(n, d, dtype=torch.float64)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_similarity(size: tuple[int, int, int]) -> None:
    x, y = pair(*size)
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    leaves = [x.requires_grad_(), y.requires_grad_(), scale]
    got, wanted = F.similarity(x, y, logit_scale=scale), scale * normalize(x) @ normalize(y).T
    torch.testing.assert_close(got, wanted)
    weights = torch.randn_like(got)
    for mine, theirs in zip(*(torch.autograd.grad((s * weights).sum(), leaves) for s in (got, wanted)), strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(F.similarity(x, normalize=False), x @ x.T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_similarity_keeps_half_types(dtype: torch.dtype) -> None:
    x = (torch.randn(5, 4) * 3e3).to(dtype)
    got = F.similarity(x)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), normalize(x.float()) @ normalize(x.float()).T, atol=2e-2, rtol=2e-2)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_topk(size: tuple[int, int, int]) -> None:
    x, y = pair(*size)
    k = min(size[1], 9)
    wanted = (normalize(x) @ normalize(y).T).topk(k)
    values, index = F.similarity_topk(x, y, k)
    assert index.dtype == torch.int64
    assert torch.equal(index, wanted.indices)
    torch.testing.assert_close(values, wanted.values)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("k", [1, 4, 17, 40])
def test_topk_ties_go_to_the_lowest_index(k: int) -> None:
    x = torch.tensor([[1.0, 0.0], [-1.0, 2.0]])
    y = torch.randint(-2, 3, (40, 2), generator=torch.Generator().manual_seed(0)).float()
    sims = x @ y.T
    wanted = sims.argsort(dim=1, descending=True, stable=True)[:, :k]
    values, index = F.similarity_topk(x, y, k, normalize=False)
    assert torch.equal(index, wanted)
    assert torch.equal(values, sims.gather(1, wanted))


@pytest.mark.usefixtures("tiles")
def test_topk_values_have_gradients() -> None:
    x, y = (t.requires_grad_() for t in pair(5, 11, 4))
    weights = torch.randn(5, 3, dtype=torch.float64)
    values, _ = F.similarity_topk(x, y, 3)
    wanted = (normalize(x) @ normalize(y).T).topk(3).values
    got, want = (torch.autograd.grad((v * weights).sum(), [x, y]) for v in (values, wanted))
    torch.testing.assert_close(got, want)


@pytest.mark.usefixtures("tiles")
def test_topk_lets_nan_through() -> None:
    x, y = pair(4, 20, 3)
    y[13, 0] = torch.nan
    values, index = F.similarity_topk(x, y, 2)
    assert (index[:, 0] == 13).all()
    assert values[:, 0].isnan().all()
    assert values[:, 1].isfinite().all()


def dense_histogram(cosine: Tensor, positive: Tensor, counted: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    return tuple(  # type: ignore[return-value]
        torch.histc(cosine[counted & chosen], bins, -1, 1).long() for chosen in (positive, ~positive)
    )


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("bins", [1, 10, 100])
def test_histogram(bins: int) -> None:
    x, y = pair(23, 23, 5)
    cosine, everything = normalize(x) @ normalize(y).T, torch.ones(23, 23, dtype=torch.bool)
    own = torch.eye(23, dtype=torch.bool)
    ids = torch.randint(0, 4, (23,))
    same, within = ids[:, None] == ids, normalize(x) @ normalize(x).T
    for got, wanted in (
        (F.similarity_histogram(x, y, bins=bins), dense_histogram(cosine, own, everything, bins)),
        (F.similarity_histogram(x, y, bins=bins, ids=ids), dense_histogram(cosine, same, everything, bins)),
        (F.similarity_histogram(x, bins=bins), dense_histogram(within, own, ~own, bins)),
        (F.similarity_histogram(x, bins=bins, ids=ids), dense_histogram(within, same, ~own, bins)),
    ):
        assert torch.equal(got[0], wanted[0])
        assert torch.equal(got[1], wanted[1])
        assert got[2].tolist() == pytest.approx([2 * i / bins - 1 for i in range(bins + 1)])


def test_histogram_of_two_sets_with_their_own_ids() -> None:
    x, y = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    positive, negative, _ = F.similarity_histogram(x, y, bins=2, ids=(torch.tensor([0, 1]), torch.tensor([0, 1, 0])))
    assert positive.tolist() == [1, 2]
    assert negative.tolist() == [0, 3]
    y[0, 0] = torch.nan
    assert sum(sum(counts.tolist()) for counts in F.similarity_histogram(x, y[:2], bins=2)[:2]) == 2


def test_a_gradient_of_neighbours_is_repeatable() -> None:
    x, y = (torch.randn(700, 128, requires_grad=True) for _ in range(2))
    weights = torch.randn(700, 5)

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad((F.similarity_topk(x, y, 5)[0] * weights).sum(), [x, y])

    with threads(2):
        first = gradients()
        for _ in range(5):
            assert all(map(torch.equal, gradients(), first))
