# SPDX-License-Identifier: Apache-2.0
"""A row of measures against the formulas written out in float64."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from helpers.oracle import FLOOR
from torch import Tensor

from pycl.viz import measure

HALF = (torch.bfloat16, torch.float16)


def views(n_views: int, n: int, d: int, dtype: torch.dtype = torch.float32) -> Tensor:
    centres = torch.randn(n, d)
    return (centres + 0.5 * torch.randn(n_views, n, d)).to(dtype)


def dense(z: Tensor, ids: Tensor | None, bins: int) -> dict[str, Any]:
    """The row from the whole matrix; a similarity that rounding could move to another bin is refused."""
    z = torch.nn.functional.normalize(z.double(), dim=-1)
    n_views, n, d = z.shape
    row: dict[str, Any] = {}
    pairs = list(combinations(range(n_views), 2))
    if pairs:
        row["alignment"] = sum((z[a] - z[b]).norm(dim=-1).square().mean().item() for a, b in pairs) / len(pairs)
    distinct = ~torch.eye(n, dtype=torch.bool)
    row["uniformity"] = (
        sum(
            torch.cdist(v, v, compute_mode="donot_use_mm_for_euclid_dist")[distinct].square().mul(-2).exp().mean().log()
            for v in z
        ).item()
        / n_views
    )
    p = torch.linalg.svdvals(z[0])
    p = p[p > 0] / p.sum()
    row["effective_rank"] = (-p * p.log()).sum().exp().item()
    points = z.reshape(-1, d)
    cosine = points @ points.T
    own = (torch.arange(n) if ids is None else ids).repeat(n_views)
    same, others = own[:, None] == own, ~torch.eye(len(points), dtype=torch.bool)
    at = (cosine + 1) * bins / 2
    assert ((at - at.round()).abs()[others] > 1e-5).all()
    for name, chosen in (("positives", same & others), ("negatives", ~same)):
        row[name] = torch.histc(cosine[chosen].float(), bins, -1, 1).long().tolist()
    return row


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF], ids=str)
@pytest.mark.parametrize(("n_views", "n", "d"), [(2, 17, 5), (3, 9, 16), (2, 2, 3)])
def test_the_formulas(n_views: int, n: int, d: int, dtype: torch.dtype) -> None:
    z = views(n_views, n, d, dtype)
    found, expected = measure(z, bins=23), dense(z, None, 23)
    assert found.keys() == expected.keys() | {"edges"}
    # half types are widened first, so that they are as exact as float32
    tolerance = 20 * FLOOR[torch.float64 if dtype == torch.float64 else torch.float32]
    for name, value in expected.items():
        assert found[name] == (pytest.approx(value, rel=tolerance) if isinstance(value, float) else value), name


def test_one_feature() -> None:
    """Points are 1 or -1, and so are their similarities."""
    row = measure(torch.tensor([[[2.0], [-3.0], [1.0]], [[5.0], [4.0], [1.0]]]), bins=4)
    assert row["positives"] == [2, 0, 0, 4]
    assert row["negatives"] == [8, 0, 0, 16]
    assert row["alignment"] == pytest.approx(4 / 3)
    assert row["effective_rank"] == pytest.approx(1.0)


@pytest.mark.parametrize("n_views", [1, 2])
def test_ids_are_classes(n_views: int) -> None:
    z, ids = views(n_views, 12, 6), torch.arange(12) % 5
    found, expected = measure(z, ids, bins=10), dense(z, ids, 10)
    assert found["positives"] == expected["positives"]
    assert found["negatives"] == expected["negatives"]
    assert ("alignment" in found) == (n_views > 1)


def test_a_sequence_of_views_is_the_tensor() -> None:
    z = views(3, 7, 4)
    assert measure(tuple(z)) == measure(z)


@pytest.mark.filterwarnings("error")
def test_a_row_is_json_and_leaves_everything_as_it_was() -> None:
    z = views(2, 6, 4).requires_grad_()
    codes = torch.eye(5)[torch.arange(6) % 2]
    before, values = torch.get_rng_state(), z.detach().clone()
    row = measure(z, codes=codes, temperature=torch.nn.Parameter(torch.tensor(0.25)))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(z.detach(), values)
    assert z.grad is None
    assert json.loads(json.dumps(row)) == row
    assert row["temperature"] == 0.25
    assert row["edges"] == [-1.0, 1.0]
    assert len(row["positives"]) == len(row["negatives"]) == 64
    assert row["assignment_entropy"] == 0.0
    assert row["perplexity"] == pytest.approx(2.0)
    assert row["dead"] == 3


def test_one_instance_has_no_negatives() -> None:
    row = measure(views(2, 1, 4))
    assert sum(row["negatives"]) == 0
    assert sum(row["positives"]) == 2
    assert row["uniformity"] == 0.0


BAD: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "shape": (torch.randn(4, 3), {}, ValueError, "embeddings: views must be"),
    "one view": (torch.randn(1, 4, 3), {}, ValueError, "embeddings: .* at least two views"),
    "views differ": ([torch.randn(4, 3), torch.randn(5, 3)], {}, ValueError, "embeddings: every view"),
    "no tensor": ([np.zeros((4, 3))] * 2, {}, TypeError, "embeddings: views must be tensors"),
    "integers": (torch.ones(2, 4, 3, dtype=torch.int64), {}, TypeError, "embeddings: .* floating point"),
    "empty": (torch.randn(2, 0, 3), {}, ValueError, "embeddings: .* at least one instance"),
    "no feature": (torch.randn(2, 4, 0), {}, ValueError, "embeddings must have at least one feature"),
    "infinite": (torch.full((2, 4, 3), torch.inf), {}, ValueError, "embeddings must be finite"),
    "nan": (torch.full((2, 4, 3), torch.nan), {}, ValueError, "embeddings must be finite"),
    "ids length": (torch.randn(2, 4, 3), {"ids": torch.arange(5)}, ValueError, "ids: labels must have shape"),
    "ids dtype": (torch.randn(2, 4, 3), {"ids": torch.randn(4)}, TypeError, "ids: labels must be an integer"),
    "bins": (torch.randn(2, 4, 3), {"bins": 0}, ValueError, "bins must be at least 1"),
    "temperature": (torch.randn(2, 4, 3), {"temperature": 0.0}, ValueError, "temperature must be positive"),
    "temperature text": (torch.randn(2, 4, 3), {"temperature": "0.1"}, TypeError, "temperature must be a number"),
    "codes": (torch.randn(2, 4, 3), {"codes": torch.ones(4, 3)}, ValueError, "codes must sum to 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    embeddings, options, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        measure(embeddings, **options)


def test_the_package_draws_only_when_it_is_asked_to() -> None:
    """``import pycl`` brings no part of it, and the package itself no matplotlib."""
    code = (
        "import sys, pycl; assert 'pycl.viz' not in sys.modules\n"
        "import pycl.viz; print(*sorted({'matplotlib', 'transformers', 'lightning'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
