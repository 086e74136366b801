# SPDX-License-Identifier: Apache-2.0
"""What must not change a loss, on drawn sizes: order, rotation, labels, strides, shards."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import pycl.functional as F
from pycl import Pairs, Points, pair_stats, pair_sum
from pycl.testing.table import LOSSES, LossRow

pytestmark = pytest.mark.float64  # laws hold to the last digits

SEEDS = st.integers(0, 2**20)
SIZES = st.tuples(st.integers(2, 5), st.integers(1, 20), st.integers(1, 9))  # V, N, d
SETS = st.integers(0, 31).map(Pairs)
CLOSE = {"rtol": 1e-9, "atol": 1e-10}  # everything here runs in float64


def make(loss: LossRow, size: tuple[int, int, int], seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    return loss.make(min(size[0], loss.n_views[1]), *size[1:])


def value(loss: LossRow, inputs: list[Tensor], backend: str) -> Tensor:
    return loss(inputs, loss.scalars, backend=backend)


def having(invariant: str) -> pytest.MarkDecorator:
    rows = [row for row in LOSSES.values() if invariant in row.invariants]
    return pytest.mark.parametrize("loss", rows, ids=lambda row: row.name)


def instances(x: Tensor, order: Tensor) -> Tensor:
    return x[order] if x.dim() < 3 else x[:, order]


@having("instances")
@given(size=SIZES, seed=SEEDS)
def test_order_of_instances(loss: LossRow, backend: str, size: tuple[int, int, int], seed: int) -> None:
    inputs = make(loss, size, seed)
    order = torch.randperm(size[1])
    assert_close(value(loss, [instances(x, order) for x in inputs], backend), value(loss, inputs, backend), **CLOSE)


@having("rotation")
@given(size=SIZES, seed=SEEDS)
def test_rotation(loss: LossRow, backend: str, size: tuple[int, int, int], seed: int) -> None:
    inputs = make(loss, size, seed)
    rotation = torch.linalg.qr(torch.randn(size[2], size[2], dtype=torch.float64)).Q
    turned = [x @ rotation if x.is_floating_point() else x for x in inputs]
    assert_close(value(loss, turned, backend), value(loss, inputs, backend), **CLOSE)


@having("views")
@given(size=SIZES, seed=SEEDS)
def test_order_of_views(loss: LossRow, backend: str, size: tuple[int, int, int], seed: int) -> None:
    views, *rest = make(loss, size, seed)
    shuffled = views[torch.randperm(len(views))]
    assert_close(value(loss, [shuffled, *rest], backend), value(loss, [views, *rest], backend), **CLOSE)


@having("views_of_each")
@given(size=SIZES, seed=SEEDS)
def test_order_of_views_of_each_instance(loss: LossRow, backend: str, size: tuple[int, int, int], seed: int) -> None:
    views, *rest = make(loss, size, seed)
    order = torch.rand(views.shape[:2]).argsort(0).unsqueeze(-1).expand_as(views)
    assert_close(value(loss, [views.gather(0, order), *rest], backend), value(loss, [views, *rest], backend), **CLOSE)


@given(size=SIZES, seed=SEEDS)
def test_length_of_embeddings(backend: str, size: tuple[int, int, int], seed: int) -> None:
    for loss in (row for row in LOSSES.values() if row.cosine):
        inputs = make(loss, size, seed)
        scaled = [x * (0.1 + torch.rand(*x.shape[:-1], 1)) if x.is_floating_point() else x for x in inputs]
        assert_close(value(loss, scaled, backend), value(loss, inputs, backend), **CLOSE)


@given(size=SIZES, seed=SEEDS)
def test_two_views_join_the_families(backend: str, size: tuple[int, int, int], seed: int) -> None:
    torch.manual_seed(seed)
    views, options = torch.randn(2, *size[1:], dtype=torch.float64), {"temperature": 0.3, "backend": backend}
    assert_close(F.mv_dhel(views, **options), F.dhel(views, **options), **CLOSE)
    assert_close(F.pairwise_nt_xent(views, **options), F.nt_xent(views, **options), **CLOSE)
    assert_close(F.poly_view(views, mean="arithmetic", **options), F.poly_view(views, **options), **CLOSE)
    labels = torch.arange(size[1])
    for form in ("out", "in"):
        assert_close(F.sup_con(views, labels, form=form, **options), F.nt_xent(views, **options), **CLOSE)
    symmetric = F.info_nce(*views, symmetric=True, **options)
    u, v = torch.nn.functional.normalize(views, dim=-1)
    assert_close(F.clip(u, v, 1 / 0.3, backend=backend), symmetric, **CLOSE)


@given(size=SIZES, seed=SEEDS, labels=st.lists(st.integers(-(2**62), 2**62), min_size=20, max_size=20, unique=True))
def test_names_of_classes(backend: str, size: tuple[int, int, int], seed: int, labels: list[int]) -> None:
    for name in ("sup_con", "sup_con_in"):
        views, classes = make(LOSSES[name], size, seed)
        renamed = torch.tensor(labels)[classes]
        wanted = value(LOSSES[name], [views, classes], backend)
        assert_close(value(LOSSES[name], [views, renamed], backend), wanted, **CLOSE)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_strides_do_not_matter(loss: LossRow, backend: str) -> None:
    inputs = make(loss, (3, 9, 6), 0)

    def run(change: object) -> list[Tensor]:
        leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
        loss_value = value(loss, [change(x) for x in leaves], backend)  # type: ignore[operator]
        return [
            loss_value,
            *torch.autograd.grad(loss_value, [x for x in leaves if x.requires_grad], materialize_grads=True),
        ]

    def transposed(x: Tensor) -> Tensor:
        return x.mT.contiguous().mT if x.dim() > 1 else x

    def every_other(x: Tensor) -> Tensor:
        return torch.stack([x, x + 1], -1).flatten(-2)[..., ::2]

    for change in (transposed, every_other):
        for got, wanted in zip(run(change), run(lambda x: x), strict=True):
            assert_close(got, wanted, rtol=1e-12, atol=1e-14)


def test_expanded_views(backend: str) -> None:
    z = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    (expanded,) = torch.autograd.grad(F.nt_xent(z.expand(3, 7, 5), backend=backend), z)
    (copied,) = torch.autograd.grad(F.nt_xent(z.repeat(3, 1, 1), backend=backend), z)
    assert_close(expanded, copied, **CLOSE)


def points(n: int, d: int, requires_grad: bool = False) -> Points:
    z = torch.randn(n, d, dtype=torch.float64, requires_grad=requires_grad)
    return Points(z, torch.randint(0, max(1, n // 3), (n,)), torch.randint(0, 3, (n,)))


def weighted(stats: tuple[Tensor, ...]) -> Tensor:
    """A scalar that every finite statistic enters with a weight of its own."""
    total = torch.zeros((), dtype=torch.float64)
    for k, t in enumerate(stats):
        t = t.masked_fill(t == -torch.inf, 0)
        total = total + (t * torch.linspace(0.5, 1.5 + k, len(t), dtype=t.dtype)).sum()
    return total


@given(n=st.integers(1, 30), d=st.integers(1, 6), seed=SEEDS, denominator=SETS, positives=SETS, data=st.data())
def test_sharded_rows_are_the_whole(
    backend: str, n: int, d: int, seed: int, denominator: Pairs, positives: Pairs, data: st.DataObject
) -> None:
    torch.manual_seed(seed)
    whole = points(n, d, requires_grad=True)
    cuts = sorted(data.draw(st.sets(st.integers(1, n - 1), max_size=3)) if n > 1 else ())
    options = {"denominator": denominator, "positives": positives, "backend": backend}
    wanted = pair_stats(whole, None, 3.0, **options)
    shards = []
    for a, b in zip([0, *cuts], [*cuts, n], strict=True):
        part = Points(*(t[a:b] for t in whole[:3]))
        shards.append(pair_stats(part, whole, 3.0, offset=a, **options))
    joined = tuple(torch.cat(parts) for parts in zip(*shards, strict=True))
    for got, want in zip(joined, wanted, strict=True):
        assert_close(got, want, **CLOSE)
    gradients = [torch.autograd.grad(weighted(s), whole.z, retain_graph=True)[0] for s in (joined, wanted)]
    assert_close(*gradients, **CLOSE)


@given(m=st.integers(1, 20), n=st.integers(1, 20), seed=SEEDS, denominator=SETS, positives=SETS)
def test_both_sides_are_two_sweeps(
    backend: str, m: int, n: int, seed: int, denominator: Pairs, positives: Pairs
) -> None:
    torch.manual_seed(seed)
    rows, cols = points(m, 4, True), points(n, 4, True)
    options = {"denominator": denominator, "positives": positives, "offset": None, "backend": backend}
    both = pair_stats(rows, cols, 2.0, sides="both", **options)
    apart = pair_stats(rows, cols, 2.0, **options), pair_stats(cols, rows, 2.0, **options)
    for got, want in zip((*both[0], *both[1]), (*apart[0], *apart[1]), strict=True):
        assert_close(got, want, **CLOSE)
    gradients = [torch.autograd.grad(weighted((*s[0], *s[1])), [rows.z, cols.z]) for s in (both, apart)]
    for got, want in zip(*gradients, strict=True):
        assert_close(got, want, **CLOSE)


@given(n=st.integers(1, 20), seed=SEEDS, names=st.permutations([-(2**62), -1, 0, 5, 2**31, 2**40, 2**62]))
def test_names_of_ids_and_views(backend: str, n: int, seed: int, names: list[int]) -> None:
    torch.manual_seed(seed)
    z, ids, views = points(n, 4)[:3]
    table = torch.tensor(names)
    renamed = Points(z, table[ids % 7], table[views])
    options = {"denominator": Pairs.NEG_OTHER_VIEW | Pairs.POS_SAME_VIEW, "positives": Pairs.POS_OTHER_VIEW}
    for got, want in zip(
        pair_stats(renamed, backend=backend, **options),
        pair_stats(Points(z, ids % 7, views), backend=backend, **options),
        strict=True,
    ):
        assert torch.equal(got, want)


@given(
    m=st.integers(1, 12),
    n=st.integers(1, 12),
    seed=SEEDS,
    wanted=st.tuples(*[st.booleans()] * 4),
    normalize=st.booleans(),
)
def test_gradients_do_not_depend_on_who_else_wants_one(
    backend: str, m: int, n: int, seed: int, wanted: tuple[bool, ...], normalize: bool
) -> None:
    torch.manual_seed(seed)
    rows, cols, scale, bias = points(m, 3), points(n, 3), torch.tensor(2.0).double(), torch.randn(n).double()

    def run(flags: tuple[bool, ...]) -> dict[int, Tensor]:
        leaves = [t.clone().requires_grad_(flag) for t, flag in zip((rows.z, cols.z, scale, bias), flags, strict=True)]
        x, y = rows._replace(z=leaves[0]), cols._replace(z=leaves[1])
        options = {"col_bias": leaves[3], "offset": None, "normalize": normalize, "backend": backend}
        sets = Pairs.NEGATIVE, Pairs.POSITIVE
        stats = pair_stats(x, y, leaves[2], denominator=sets[0], positives=sets[1], **options)
        total = weighted((*stats, pair_sum(x, y, leaves[2], negatives=sets[0], positives=sets[1], **options)))
        asked = [i for i, flag in enumerate(flags) if flag]
        return dict(zip(asked, torch.autograd.grad(total, [leaves[i] for i in asked]) if asked else (), strict=True))

    every = run((True,) * 4)
    for i, gradient in run(wanted).items():
        assert_close(gradient, every[i], **CLOSE)
