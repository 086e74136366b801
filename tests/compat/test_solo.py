# SPDX-License-Identifier: Apache-2.0
"""pycl.compat.solo against solo-learn, which is no distribution on PyPI: tested live where ``solo`` can be imported."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest
import torch
from helpers.spawn import on_ranks
from parity import Case, Largest, assert_same, embeddings, golden, measure, peer
from torch import Tensor

from pycl.compat import solo as ours

PEER, MODULE = "solo-learn", "solo.losses"
VERSION = (
    "github.com/vturrisi/solo-learn losses/simclr.py b5a2b056c8eab36e72d2e63bf8fe463fc0cdbf87, "
    "losses/nnclr.py 94e01ebfe3c0527fbe6ad7e48c8f09a1ef466a0b, "
    "losses/swav.py e60893eee94d1c06a56762de2129a418021d2ca7, "
    "losses/mocov2plus.py 7af3e44a72293ef2f19b86765440802dc654159d, "
    "losses/mocov3.py 94e01ebfe3c0527fbe6ad7e48c8f09a1ef466a0b, "
    "losses/ressl.py e38418437698e767c37dabf1f2edae3f04fe6c56, "
    "utils/sinkhorn_knopp.py e38418437698e767c37dabf1f2edae3f04fe6c56, utils/misc.py "
    "48e669e81f25ad9e009987b8eee42e88f20654cd"
)
HALF = 4e-2  # of solo-learn in half types, where its every step is rounded

FUNCTIONS = [f"{n}_loss_func" for n in ("simclr", "nnclr", "swav", "mocov2plus", "mocov3", "ressl")]
INDEXES = torch.tensor([3, 1, 1, 3, -2, 3, -2])


def simclr(module: Any, z: Tensor, indexes: Tensor) -> Tensor:
    return module.simclr_loss_func(z, indexes, 0.3)


def nnclr(module: Any, neighbours: Tensor, predictions: Tensor) -> Tensor:
    return module.nnclr_loss_func(neighbours, p=predictions, temperature=0.2)


def swav(views: int) -> Any:
    return lambda module, *x: module.swav_loss_func(list(x[:views]), list(x[views:]), 0.2)


def sinkhorn(*args: Any, **options: Any) -> Any:
    def run(module: Any, scores: Tensor) -> Tensor:
        source = importlib.import_module("solo.utils.sinkhorn_knopp") if module.__name__ == MODULE else module
        return source.SinkhornKnopp(*args, **options)(scores) + 0 * scores

    return run


def some(*rows: int, d: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    return tuple(embeddings(n, d, seed, dtype) for seed, n in enumerate(rows))


def codes(n: int, rows: int, d: int = 5) -> tuple[Tensor, ...]:
    return tuple(x.softmax(1) for x in some(*[rows] * (n + 4), d=d)[4:])


def queue(n: int, keys: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Queries, keys and a queue of more, [d, keys]."""
    query, key, more = some(n, n, keys, dtype=dtype)
    return query, key, more.t().contiguous()


CASES: dict[str, Case] = {
    "simclr": Case(lambda m, z, i: m.simclr_loss_func(z, i), (*some(7), INDEXES)),
    "simclr two views": Case(simclr, (*some(12), torch.arange(6).repeat(2))),
    "simclr four views": Case(simclr, (*some(12), torch.arange(3).repeat_interleave(4))),
    "simclr float32": Case(simclr, (*some(12, d=8, dtype=torch.float32), torch.arange(6).repeat(2))),
    "simclr float16": Case(simclr, (*some(12, d=8, dtype=torch.float16), torch.arange(6).repeat(2)), HALF),
    "nnclr": Case(lambda m, n, p: m.nnclr_loss_func(n, p), some(7, 7)),
    "nnclr float32": Case(nnclr, some(7, 7, dtype=torch.float32)),
    "nnclr bfloat16": Case(nnclr, some(7, 7, dtype=torch.bfloat16), HALF),
    "swav": Case(lambda m, a, b, p, q: m.swav_loss_func([a, b], [p, q]), (*some(7, 7), *codes(2, 7))),
    "swav four views": Case(swav(4), (*some(*[7] * 4), *codes(4, 7))),
    "swav two assignments of four views": Case(swav(4), (*some(*[7] * 4), *codes(2, 7))),
    "mocov2plus": Case(lambda m, *x: m.mocov2plus_loss_func(*x), queue(7, 11)),
    "mocov2plus below 0": Case(lambda m, *x: m.mocov2plus_loss_func(*x, -0.3), queue(6, 3)),
    "mocov2plus float32": Case(lambda m, *x: m.mocov2plus_loss_func(*x, 0.2), queue(9, 20, torch.float32)),
    "mocov2plus float16": Case(lambda m, *x: m.mocov2plus_loss_func(*x, 0.4), queue(9, 20, torch.float16), HALF),
    "mocov3": Case(lambda m, *x: m.mocov3_loss_func(*x), some(7, 7)),
    "mocov3 below 0": Case(lambda m, *x: m.mocov3_loss_func(*x, -0.5), some(7, 7)),
    "mocov3 float32": Case(lambda m, *x: m.mocov3_loss_func(*x, 0.1), some(9, 9, dtype=torch.float32)),
    "ressl": Case(lambda m, *x: m.ressl_loss_func(*x), some(7, 7, 11)),
    "ressl options": Case(lambda m, *x: m.ressl_loss_func(*x, -0.3, temperature_k=-0.2), some(7, 7, 3)),
    "ressl float32": Case(lambda m, *x: m.ressl_loss_func(*x, 0.2), some(9, 9, 20, dtype=torch.float32)),
    "ressl bfloat16": Case(lambda m, *x: m.ressl_loss_func(*x, 0.5, 0.5), some(9, 9, 20, dtype=torch.bfloat16), HALF),
    "sinkhorn": Case(sinkhorn(), some(7)),
    "sinkhorn options": Case(sinkhorn(2, 0.2, world_size=3), some(7)),
    "sinkhorn float32": Case(sinkhorn(num_iters=5, epsilon=0.1), some(9, dtype=torch.float32)),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    assert_same(measure(CASES[name], ours), golden(PEER)[name], CASES[name].tolerance)


@pytest.mark.parametrize("name", CASES)
def test_live(name: str) -> None:
    assert_same(measure(CASES[name], ours), measure(CASES[name], peer(MODULE)), CASES[name].tolerance)


def test_signatures() -> None:
    library = peer(MODULE)
    for name in FUNCTIONS:
        found, expected = (inspect.signature(getattr(m, name)).parameters.values() for m in (ours, library))
        assert [(p.name, p.default, p.kind) for p in found] == [(p.name, p.default, p.kind) for p in expected]
    theirs = importlib.import_module("solo.utils.sinkhorn_knopp").SinkhornKnopp
    found, expected = (inspect.signature(c).parameters.values() for c in (ours.SinkhornKnopp, theirs))
    assert [(p.name, p.default) for p in found] == [(p.name, p.default) for p in expected]
    assert vars(theirs(2, 0.1, 4)).keys() <= vars(ours.SinkhornKnopp(2, 0.1, 4)).keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_are_those_of_the_inputs(dtype: torch.dtype) -> None:
    (z, p), q = some(6, 6, dtype=dtype), [x.to(dtype) for x in codes(2, 6)]
    assert ours.simclr_loss_func(z, torch.arange(3).repeat(2)).dtype == dtype
    assert ours.nnclr_loss_func(z, p).dtype == dtype
    assert ours.swav_loss_func([z, p], q).dtype == dtype
    assert ours.SinkhornKnopp()(z).dtype == dtype


def test_an_index_without_a_partner_is_infinite() -> None:
    assert ours.simclr_loss_func(*some(5), torch.arange(5)).item() == torch.inf


def test_extremes_are_finite() -> None:
    for dtype in (torch.float16, torch.float32):
        for z in (torch.zeros(6, 4), 1e4 * embeddings(6, 4, 1)):
            z = z.to(dtype).requires_grad_()
            loss = ours.simclr_loss_func(z, torch.arange(3).repeat(2), 0.005) + ours.nnclr_loss_func(
                z, z.flip(0), 0.005
            )
            loss.backward()
            assert loss.isfinite()
            assert z.grad.isfinite().all()
    assert ours.SinkhornKnopp(epsilon=0.001)(torch.eye(6, 4).half() * 20).isfinite().all()


def test_no_matrix_of_all_pairs() -> None:
    (z, p), n = (x.requires_grad_() for x in some(512, 512, dtype=torch.float32)), 512
    with Largest() as found:
        losses = [
            ours.simclr_loss_func(z, torch.arange(256).repeat(2)),
            ours.nnclr_loss_func(z, p),
            ours.mocov2plus_loss_func(z, p, p.t()),
            ours.mocov3_loss_func(z, p),
            ours.ressl_loss_func(z, p, p),
        ]
        sum(losses).backward()
    assert found.numel < n * n / 8


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: ours.simclr_loss_func(torch.ones(4, 2), torch.ones(4)), TypeError),
        (lambda: ours.simclr_loss_func(torch.ones(4, 2), torch.arange(3)), ValueError),
        (lambda: ours.simclr_loss_func(torch.ones(4, 2), torch.arange(4), 0.0), ValueError),
        (lambda: ours.nnclr_loss_func(torch.ones(4, 2), torch.ones(3, 2)), ValueError),
        (lambda: ours.mocov2plus_loss_func(torch.ones(4, 2), torch.ones(4, 2), torch.ones(3, 5)), ValueError),
        (lambda: ours.mocov3_loss_func(torch.ones(4, 2), torch.ones(3, 2)), ValueError),
        (lambda: ours.mocov3_loss_func(torch.ones(4, 2), torch.ones(4, 2).double()), RuntimeError),
        (lambda: ours.ressl_loss_func(torch.ones(4, 2), torch.ones(4, 2), torch.ones(3, 5)), ValueError),
        (lambda: ours.ressl_loss_func(torch.ones(4, 2), torch.ones(4, 2), torch.ones(3, 2), 0), ValueError),
        (lambda: ours.SinkhornKnopp(0)(torch.ones(4, 2)), ValueError),
    ],
)
def test_errors(call: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        call()


DISTRIBUTED: dict[str, Case] = {
    "simclr": Case(simclr, (*some(8, d=4), torch.arange(4).repeat(2))),
    "simclr of labels": Case(simclr, (*some(8, d=4), torch.tensor([0, 2, 1, 1, 0, 2, 2, 0]))),
    "nnclr": Case(nnclr, some(5, 5)),
    "mocov2plus": Case(lambda m, *x: m.mocov2plus_loss_func(*x, 0.3), queue(5, 9)),
    "mocov3": Case(lambda m, *x: m.mocov3_loss_func(*x, 0.3), some(5, 5)),
    "ressl": Case(lambda m, *x: m.ressl_loss_func(*x, 0.3), some(5, 5, 9)),
    "swav": Case(swav(2), (*some(7, 7), *codes(2, 7))),
    "sinkhorn": Case(sinkhorn(), some(7)),
}


def of_rank(rank: int, name: str) -> tuple[Tensor, ...]:
    """Different samples on each rank; indexes that both ranks have."""
    parts = (x.roll(rank, 0) * (1 + 0.3 * rank) if x.is_floating_point() else x for x in DISTRIBUTED[name].inputs)
    return tuple(parts)


def on_two(rank: int, world: int, live: bool) -> dict[str, list[dict[str, Any]]]:
    modules = [ours, peer(MODULE)] if live else [ours]
    cases = {name: Case(case.run, of_rank(rank, name)) for name, case in DISTRIBUTED.items()}
    return {name: [measure(case, module) for module in modules] for name, case in cases.items()}


def test_two_ranks() -> None:
    peer(MODULE)
    for found in on_ranks(2, on_two, True, seconds=120):
        for mine, theirs in found.values():
            assert_same(mine, theirs, 1e-6)


def test_two_ranks_have_the_gradient_of_one() -> None:
    ranks = on_ranks(2, on_two, False, seconds=120)
    for name in ("simclr", "simclr of labels", "mocov3"):
        parts = [found[name][0] for found in ranks]
        joined = tuple(torch.cat(x) for x in zip(*(of_rank(rank, name) for rank in range(2)), strict=True))
        whole = measure(Case(DISTRIBUTED[name].run, joined), ours)
        assert sum(part["loss"] for part in parts) / 2 == pytest.approx(whole["loss"])
        gradient = torch.cat([torch.tensor(part["gradients"][0]) for part in parts]) / 2
        torch.testing.assert_close(gradient, torch.tensor(whole["gradients"][0]))
