# SPDX-License-Identifier: Apache-2.0
"""FAC: segments as positives, and queries of two formats against two queues."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pycl.functional import info_nce
from pycl.objectives import moco_cross_format, point_info_nce
from pycl.testing.objectives.fac import formats


def test_segments_of_one_point_are_no_segments() -> None:
    a, b = torch.randn(2, 7, 4, dtype=torch.float64)
    alone = point_info_nce(a, b, torch.randperm(7) + 100)
    torch.testing.assert_close(alone, point_info_nce(a, b))
    torch.testing.assert_close(alone, info_nce(a, b, temperature=0.1))


def test_one_segment_leaves_the_distance_to_a_uniform_softmax() -> None:
    """All are positives of all: identical points give log P, and nothing is below that."""
    a, b = torch.randn(2, 7, 4)
    segments = torch.full((7,), -3)
    same = point_info_nce(a[:1].expand(7, 4), b[:1].expand(7, 4), segments)
    torch.testing.assert_close(same, torch.tensor(7.0).log())
    assert point_info_nce(a, b, segments) > same


@pytest.mark.parametrize(
    ("segments", "error", "message"),
    [
        (
            torch.zeros(6, dtype=torch.int64),
            ValueError,
            r"segments must have shape \[7\], .* got \(6,\)",
        ),
        (torch.zeros(7), TypeError, "segments must be an integer tensor, got torch.float32"),
        ([0] * 7, TypeError, "segments must be an integer tensor, got list"),
    ],
    ids=["length", "dtype", "list"],
)
def test_segments_that_do_not_fit_are_refused(segments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        point_info_nce(torch.randn(7, 4), torch.randn(7, 4), segments)


def test_formats_change_places() -> None:
    x = formats(6, 5)
    swapped = {f"{name[:-1]}{3 - int(name[-1])}": value for name, value in x.items()}
    torch.testing.assert_close(moco_cross_format(**x), moco_cross_format(**swapped))


def test_one_format_twice_is_moco() -> None:
    x = formats(6, 5)
    q, k, queue = x["q1"], x["k1"], x["queue1"]
    found = moco_cross_format(q, k, q, k, queue, queue)
    torch.testing.assert_close(found, info_nce(q, k, negatives=queue, temperature=0.1))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("k1", (5, 5), "q1 and k1 must have one and the same shape"),
        ("q2", (6, 4), "q2 must have 5 features"),
        ("queue2", (8, 4), "queue2 must have 5 features"),
        ("queue1", (0, 5), "queue1 must have shape"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(name: str, shape: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        moco_cross_format(**{**formats(6, 5), name: torch.randn(shape)})
