# SPDX-License-Identifier: Apache-2.0
"""accelerate on two processes: a step is that of one process with the whole batch; what its data loaders hand out."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from launched import GUIDE, launched, names_of, program
from parity import embeddings, peer
from torch import Tensor, nn
from torch.distributed.algorithms.join import Join
from torch.utils.data import DataLoader, TensorDataset

import pycl

pytestmark = pytest.mark.skipif(not GUIDE.exists(), reason="runs in a checkout")
ROWS, BATCH = 20, 8
PAGE = "from accelerate import Accelerator"


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    for library in ("accelerate", "lightly.loss", "open_clip.loss", "sentence_transformers"):
        peer(library)


def views() -> list[Tensor]:
    x = [embeddings(ROWS, 8, seed) for seed in (1, 2)]
    return [x[0], x[0] + 0.7 * x[1]]


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(8, 4).double()


def gradients(*modules: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for module in modules for p in module.parameters()]


def of_the_page(world: int) -> list[Tensor]:
    """The page's training, whose weights say what gradients it had."""
    names, model = names_of(PAGE), encoder()
    names["Accelerator"] = lambda: prepared()
    names["train"](model, DataLoader(TensorDataset(*views()), batch_size=BATCH // world, drop_last=True))
    return [p.detach().clone() for p in model.parameters()]


def prepared(**options: Any) -> Any:
    from accelerate import Accelerator

    return Accelerator(cpu=True, **options)


def stepped(world: int, step: Callable[[Any, Any, list[Tensor]], Tensor]) -> list[Tensor]:
    """Value and gradients of the first batch."""
    accelerator, model = prepared(), encoder()
    ready, loader = accelerator.prepare(model, DataLoader(TensorDataset(*views()), batch_size=BATCH // world))
    value = step(accelerator, ready, next(iter(loader)))
    if value.requires_grad:
        accelerator.backward(value)
    return [value.detach(), *gradients(model)]


def cached(accelerator: Any, model: Any, batch: list[Tensor]) -> Tensor:
    names = {"pycl": pycl, "loss": pycl.NTXentLoss(0.5, group="world"), "encoder": model, "views": batch}
    exec(program("value = pycl.cached_step"), names | {"accelerator": accelerator}, found := {})
    return found["value"]


def pairs(loss: Callable[..., Tensor]) -> Callable[[Any, Any, list[Tensor]], Tensor]:
    return lambda _, model, batch: loss(*model(torch.cat(batch)).chunk(2))


def lightly(accelerator: Any, model: Any, batch: list[Tensor]) -> Tensor:
    from pycl.compat.lightly import NTXentLoss

    return pairs(NTXentLoss(0.3, gather_distributed=True))(accelerator, model, batch)


def open_clip(accelerator: Any, model: Any, batch: list[Tensor]) -> Tensor:
    from pycl.compat.open_clip import ClipLoss

    ranks = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    loss, scale = ClipLoss(local_loss=True, gather_with_grad=True, **ranks), torch.tensor(4.0)
    z = [nn.functional.normalize(x, dim=1) for x in model(torch.cat(batch)).chunk(2)]
    return loss(*z, scale)


def sentences(accelerator: Any, model: Any, batch: list[Tensor]) -> Tensor:
    from pycl.compat.sentence_transformers import MultipleNegativesRankingLoss

    loss = MultipleNegativesRankingLoss(None, scale=4.0, gather_across_devices=True)
    return loss.compute_loss_from_embeddings(list(model(torch.cat(batch)).chunk(2)), None)


STEPS: dict[str, Callable[[Any, Any, list[Tensor]], Tensor]] = {
    "pycl": pairs(lambda *z: pycl.functional.nt_xent(z, temperature=0.5, group="world")),
    "cached": cached,
    "lightly": lightly,
    "open_clip": open_clip,
    "sentence-transformers": sentences,
}


def handed_out(n: int, drop_last: bool, **options: Any) -> list[list[int]]:
    """The samples of this rank's batches of four."""
    from accelerate.utils import DataLoaderConfiguration

    accelerator = prepared(dataloader_config=DataLoaderConfiguration(**options))
    loader = DataLoader(TensorDataset(torch.arange(n)), batch_size=4, drop_last=drop_last)
    return [batch[0].tolist() for batch in accelerator.prepare(loader)]


def without_a_group() -> list[str]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            pycl.NTXentLoss(0.5)(views())
    return [str(w.message) for w in said if "was given no group" in str(w.message)]


def on_rank(rank: int, world: int) -> dict[str, Any]:
    results: dict[str, Any] = {name: stepped(world, step) for name, step in STEPS.items()}
    results["page"] = of_the_page(world)
    results["said"] = without_a_group()
    results["even"] = {n: handed_out(n, False) for n in (6, 10)}
    results["dropped"] = {n: handed_out(n, True) for n in (6, 10)}
    results["uneven"] = {n: handed_out(n, False, even_batches=False) for n in (6, 10)}
    results["six"] = looped(rank, world, 6)
    return results


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    return launched(2, on_rank)


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return launched(1, on_rank)[0]


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_that_of_one_process(name: str, two: list[dict[str, Any]], one: dict[str, Any]) -> None:
    value, *expected = one[name]
    assert sum(rank[name][0] for rank in two) / 2 == pytest.approx(float(value), rel=1e-12)
    for rank in two:
        torch.testing.assert_close(rank[name][1:], expected, rtol=1e-10, atol=1e-13)


def test_the_page_s_training(two: list[dict[str, Any]], one: dict[str, Any]) -> None:
    for rank in two:
        torch.testing.assert_close(rank["page"], one["page"], rtol=1e-6, atol=1e-7)  # its temperature is float32


def test_a_loss_without_a_group_says_so_once(two: list[dict[str, Any]], one: dict[str, Any]) -> None:
    assert [len(rank["said"]) for rank in two] == [1, 1]
    assert "on one of 2 ranks" in two[1]["said"][0]
    assert one["said"] == []


def test_what_the_loaders_hand_out(two: list[dict[str, Any]]) -> None:
    """Two ranks, batches of four: as the page has it."""
    shown = {name: {n: [rank[name][n] for rank in two] for n in (6, 10)} for name in ("even", "uneven", "dropped")}
    assert shown["even"][10] == [[[0, 1, 2, 3], [8, 9, 0, 1]], [[4, 5, 6, 7], [2, 3, 4, 5]]]
    assert shown["even"][6] == [[[0, 1, 2, 3]], [[4, 5, 0, 1]]]
    assert shown["uneven"][10] == [[[0, 1, 2, 3], [8, 9]], [[4, 5, 6, 7]]]
    assert shown["uneven"][6] == [[[0, 1, 2, 3]], [[4, 5]]]
    assert shown["dropped"][10] == [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]
    assert shown["dropped"][6] == [[], []]


def looped(rank: int, world: int, n: int) -> list[list[Any]]:
    """Value, rows and gradients of this rank's batches of n samples, of which it may have more than another."""
    model, found = prepared().prepare(encoder()), []
    batches = zip(*[view[:n].split(4) for view in views()], strict=True)
    for batch in list(batches)[rank::world]:
        value = pycl.functional.nt_xent(model(torch.cat(batch)).chunk(2), group="world")
        value.backward()
        found.append([value.item(), len(batch[0]), *gradients(model)])
    return found


def test_uneven_batches_are_exact(two: list[dict[str, Any]]) -> None:
    ranks = [rank["six"] for rank in two]
    model = encoder()
    whole = pycl.functional.nt_xent(model(torch.cat([view[:6] for view in views()])).chunk(2))
    whole.backward()
    assert [[step[1] for step in rank] for rank in ranks] == [[4], [2]]
    assert sum(rank[0][0] for rank in ranks) / 2 == pytest.approx(whole.item(), rel=1e-12)
    for rank in ranks:
        torch.testing.assert_close(rank[0][2:], gradients(model), rtol=1e-10, atol=1e-13)


def left_alone(rank: int, world: int, join: bool) -> str:
    """The error of a loop in which rank 0 has one batch more."""
    model = prepared().prepare(encoder())
    dist.barrier()
    dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=5), dist.group.WORLD)
    batches = [x.split(4) for x in views()]
    try:
        with Join([model], enable=join):
            for batch in list(zip(*batches, strict=True))[: 2 - rank]:
                pycl.functional.nt_xent(model(torch.cat(batch)).chunk(2), group="world").backward()
    except RuntimeError as error:
        return type(error).__name__
    return "nothing"


@pytest.mark.parametrize("join", [False, True])
def test_a_rank_without_a_batch_ends_the_others(join: bool) -> None:
    """Nothing stands in for its part of the loss, torch's Join neither: an error after the timeout of the group."""
    assert launched(2, left_alone, join)[0] == "RuntimeError"


TWINS = {"nt_xent": (0.1263, 0.7917, 0.593), "clip": (0.0656, 0.3676, 0.991)}


@pytest.mark.parametrize("name", TWINS)
def test_what_twins_do_to_a_loss(name: str) -> None:
    """The page's numbers: 100 samples, and as 128 of which 28 are there twice."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 32, generator=generator).double()
    z = torch.stack([x, x + 0.5 * torch.randn(100, 32, generator=generator).double()]).requires_grad_()
    found = []
    for rows in (torch.arange(100), torch.arange(128) % 100):
        u = nn.functional.normalize(z[:, rows], dim=-1)
        loss = pycl.functional.nt_xent(u, temperature=0.1) if name == "nt_xent" else pycl.functional.clip(*u, 10.0)
        found.append((loss.item(), torch.autograd.grad(loss, z)[0].flatten()))
    (once, first), (twice, second) = found
    cosine = nn.functional.cosine_similarity(first, second, dim=0).item()
    assert (once, twice, cosine) == pytest.approx(TWINS[name], abs=6e-4)
