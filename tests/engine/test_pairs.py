# SPDX-License-Identifier: Apache-2.0
"""Pair classes are an algebra of disjoint sets; views become points with ids and view numbers."""

from __future__ import annotations

import functools
import itertools
import operator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pycl import Pairs, Points, pair_average, pair_logits, pair_stats, pair_sum, pair_top
from pycl.engine.validation import one_set, problem_of
from pycl.engine.views import check_labels, stack_views

CLASSES = (Pairs.SELF, Pairs.POS_SAME_VIEW, Pairs.POS_OTHER_VIEW, Pairs.NEG_SAME_VIEW, Pairs.NEG_OTHER_VIEW)
SETS = st.integers(0, 31).map(Pairs)


def test_classes_are_disjoint_and_complete() -> None:
    for a, b in itertools.combinations(CLASSES, 2):
        assert a & b == Pairs.NONE
    assert functools.reduce(operator.or_, CLASSES) == Pairs.ALL
    assert [int(c) for c in CLASSES] == [1, 2, 4, 8, 16]  # the kernels' numbers


def test_unions_mean_what_they_say() -> None:
    assert Pairs.POSITIVE == Pairs.POS_SAME_VIEW | Pairs.POS_OTHER_VIEW
    assert Pairs.NEGATIVE == Pairs.NEG_SAME_VIEW | Pairs.NEG_OTHER_VIEW
    assert Pairs.POSITIVE & Pairs.NEGATIVE == Pairs.NONE
    assert Pairs.OTHERS == Pairs.POSITIVE | Pairs.NEGATIVE == Pairs.ALL & ~Pairs.SELF
    assert Pairs.OTHERS & ~Pairs.POS_SAME_VIEW == Pairs.POS_OTHER_VIEW | Pairs.NEGATIVE


@given(a=SETS, b=SETS, c=SETS)
def test_sets_form_an_algebra(a: Pairs, b: Pairs, c: Pairs) -> None:
    assert {type(x) for x in (a | b, a & b, ~a, a ^ b)} == {Pairs}
    assert (a | b) & c == (a & c) | (b & c)
    assert ~(a | b) & Pairs.ALL == (Pairs.ALL & ~a) & (Pairs.ALL & ~b)
    assert a | (Pairs.ALL & ~a) == Pairs.ALL
    assert a & ~a == Pairs.NONE
    members = [x for x in CLASSES if x in a]
    assert functools.reduce(operator.or_, members, Pairs.NONE) == a
    assert bool(a) == bool(members)


def test_points_default_to_one_view_of_distinct_instances() -> None:
    z = torch.randn(3, 2)
    assert Points(z) == (z, None, None, 1)


@given(n_views=st.integers(2, 5), n=st.integers(1, 6), d=st.integers(1, 4), as_tensor=st.booleans())
def test_stacked_views_are_views_major(n_views: int, n: int, d: int, as_tensor: bool) -> None:
    views = torch.randn(n_views, n, d)
    points, count = stack_views(views if as_tensor else tuple(views))
    assert count == points.n_views == n_views
    assert points.z.shape == (n_views * n, d)
    ids, views_of, *_ = problem_of(points, None, 1.0, one_set(Pairs.ALL), None, None, 0, False).labels()
    for k, (view, instance) in enumerate(itertools.product(range(n_views), range(n))):
        assert torch.equal(points.z[k], views[view, instance])
        assert ids[k] == instance
        assert views_of[k] == view
    assert ids.dtype == views_of.dtype == torch.int64


@pytest.mark.parametrize("sides", ["rows", "both"])
def test_points_of_several_views_are_points_with_labels(backend: str, sides: str) -> None:
    x, y = torch.randn(12, 5), torch.randn(9, 5)
    with_labels = [
        Points(z, torch.arange(len(z)) % (len(z) // 3), torch.arange(len(z)) // (len(z) // 3)) for z in (x, y)
    ]
    for pairs in (Pairs.NEG_SAME_VIEW, Pairs.NEG_OTHER_VIEW, Pairs.OTHERS):
        sets = {"denominator": pairs, "positives": Pairs.POS_OTHER_VIEW, "offset": None, "sides": sides}
        found = pair_stats(Points(x, n_views=3), Points(y, n_views=3), **sets, backend=backend)
        torch.testing.assert_close(found, pair_stats(*with_labels, **sets, backend=backend))
    itself = {"denominator": Pairs.NEG_SAME_VIEW, "positives": Pairs.POS_OTHER_VIEW, "backend": backend}
    torch.testing.assert_close(pair_stats(Points(x, n_views=3), **itself), pair_stats(with_labels[0], **itself))
    mixed = {"denominator": Pairs.NEGATIVE, "positives": Pairs.POS_SAME_VIEW, "offset": None, "backend": backend}
    one_view = Points(y, torch.arange(9), torch.zeros(9, dtype=torch.int64))
    torch.testing.assert_close(
        pair_stats(Points(x, n_views=3), Points(y), **mixed), pair_stats(with_labels[0], one_view, **mixed)
    )


def test_every_operator_numbers_several_views(backend: str) -> None:
    x, y, values = torch.randn(12, 5), torch.randn(9, 5), torch.randn(9, 4)
    pairs, offset = Pairs.NEG_OTHER_VIEW | Pairs.POS_OTHER_VIEW, None
    short = Points(x, n_views=3), Points(y, n_views=3)
    long = [Points(z, torch.arange(len(z)) % (len(z) // 3), torch.arange(len(z)) // (len(z) // 3)) for z in (x, y)]
    options = {"offset": offset, "backend": backend}
    for call in (
        lambda points: pair_sum(*points, negatives=pairs, positives=Pairs.POS_SAME_VIEW, **options),
        lambda points: pair_logits(*points, pairs=pairs, **options),
        lambda points: pair_top(*points, 2, pairs=pairs, **options),
        lambda points: pair_average(*points, values, pairs=pairs, **options),
    ):
        torch.testing.assert_close(call(short), call(long))


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (Points(torch.randn(7, 2), n_views=2), "n_views must divide the number of points, got 2 of 7"),
        (Points(torch.randn(6, 2), torch.arange(6), n_views=2), "n_views is for points without ids and views"),
        (Points(torch.randn(6, 2), n_views=0), "n_views must be at least 1, got 0"),
    ],
    ids=["ragged", "labelled", "none"],
)
def test_a_number_of_views_that_cannot_be(points: Points, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pair_stats(points, denominator=Pairs.OTHERS)


def test_a_tensor_of_views_is_not_copied() -> None:
    views = torch.randn(2, 3, 4)
    assert stack_views(views)[0].z.data_ptr() == views.data_ptr()


def test_an_iterator_of_views_will_do() -> None:
    views = torch.randn(3, 4, 2)
    assert torch.equal(stack_views(v for v in views)[0].z, views.flatten(0, 1))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool], ids=str)
def test_labels_become_ids_of_every_view(dtype: torch.dtype) -> None:
    labels = torch.tensor([1, 0, 1], dtype=dtype)
    ids = stack_views(torch.randn(2, 3, 4), labels)[0].ids
    assert ids is not None
    assert ids.dtype == torch.int64
    assert ids.tolist() == [1, 0, 1] * 2


def test_labels_keep_64_bits() -> None:
    labels = torch.tensor([-(2**63), 2**63 - 1, 2**32, 0])
    assert torch.equal(check_labels(labels, 4, labels), labels)


def test_strided_labels() -> None:
    labels = torch.arange(6)[::2]
    assert check_labels(labels, 3, torch.empty(0)).tolist() == [0, 2, 4]


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.zeros(3), TypeError, "integer tensor.*float32"),
        (torch.zeros(3, dtype=torch.complex64), TypeError, "integer tensor.*complex64"),
        ([0, 1, 2], TypeError, "integer tensor.*list"),
        (None, TypeError, "integer tensor.*NoneType"),
        (torch.zeros(4, dtype=torch.int64), ValueError, r"shape \[3\].*\(4,\)"),
        (torch.zeros(3, 1, dtype=torch.int64), ValueError, r"shape \[3\].*\(3, 1\)"),
        (torch.zeros(3, dtype=torch.int64, device="meta"), ValueError, "on cpu.*meta"),
    ],
    ids=["float", "complex", "list", "none", "length", "column", "device"],
)
def test_labels_that_do_not_fit(labels: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_labels(labels, 3, torch.empty(0))  # type: ignore[arg-type]


def test_views_carry_gradients() -> None:
    views = [torch.randn(3, 2, requires_grad=True) for _ in range(2)]
    stack_views(views)[0].z.sum().backward()
    assert all((v.grad == 1).all() for v in views)
