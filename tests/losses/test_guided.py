# SPDX-License-Identifier: Apache-2.0
"""Guided InfoNCE at the edges of its margin; values and gradients away from them are in test_losses.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pycl.functional as F

N, D = 6, 8
FORMS = ["keys", "shared", "own", "queries and keys"]


def make(form: str, dtype: torch.dtype = torch.float64, d: int = D) -> dict[str, Any]:
    """Every key and every negative is one and the same point: all negatives of a row are duplicates of its positive."""
    point = torch.randn(d)
    given: dict[str, Any] = {"query": torch.randn(N, d).to(dtype), "key": point.expand(N, d).to(dtype)}
    if form == "shared":
        given["negatives"] = point.expand(5, d).to(dtype)
    elif form == "own":
        given["negatives"] = point.expand(N, 3, d).to(dtype)
    elif form == "queries and keys":
        given |= {"query": given["key"].clone(), "query_negatives": True, "key_negatives": True}
    return given


def with_guide(given: dict[str, Any]) -> dict[str, Any]:
    """The guide sees what the model saw, the model something else."""
    names = [name for name in ("query", "key", "negatives") if name in given]
    guide = {f"guide_{name}": given[name] for name in names}
    return given | guide | {name: torch.randn_like(given[name]) for name in names}


@pytest.mark.parametrize("guided", [False, True], ids=["alone", "guided"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("d", [3, 100, 768])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_duplicate_of_the_positive_counts(form: str, guided: bool, d: int, dtype: torch.dtype, backend: str) -> None:
    given = make(form, dtype, d)
    given = with_guide(given) if guided else given
    options = {"reduction": "none", "backend": backend}
    all_count = F.guided_info_nce(**given, margin=2.5, **options)
    assert torch.equal(F.guided_info_nce(**given, margin=0.0, **options), all_count)
    assert (all_count > 1e-3).all()
    none_counts = F.guided_info_nce(**given, margin=-1e-4, **options)
    torch.testing.assert_close(none_counts, torch.zeros_like(none_counts), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_the_room_for_rounding_grows_with_embeddings_that_are_not_normalised(form: str, backend: str) -> None:
    given = {name: 300 * x if isinstance(x, Tensor) else x for name, x in make(form, torch.float32, 100).items()}
    options = {"temperature": 1e5, "reduction": "none", "normalize": False, "backend": backend}
    assert torch.equal(F.guided_info_nce(**given, margin=0.0, **options), F.guided_info_nce(**given, **options))


@pytest.mark.parametrize("form", FORMS)
def test_the_positive_always_counts(form: str, backend: str) -> None:
    given = {name: torch.randn_like(x) if isinstance(x, Tensor) else x for name, x in make(form).items()}
    leaves = [x.float().requires_grad_() for x in given.values() if isinstance(x, Tensor)]
    given |= dict(zip([name for name, x in given.items() if isinstance(x, Tensor)], leaves, strict=True))
    value = F.guided_info_nce(**given, margin=-3.0, backend=backend)
    assert value.abs() < 1e-5
    for gradient in torch.autograd.grad(value, leaves):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-4)


def test_what_is_left_out_has_no_gradient(backend: str) -> None:
    query, key = torch.randn(2, N, D)
    shared = torch.cat([query[:1], -query[1:2]]).requires_grad_()  # more, and less like a query than its key
    value = F.guided_info_nce(query[:1], key[:1], shared, margin=0.0, backend=backend)
    (gradient,) = torch.autograd.grad(value, shared)
    assert (gradient[0] == 0).all()
    own = shared.detach().expand(1, 2, D).clone().requires_grad_()
    torch.testing.assert_close(F.guided_info_nce(query[:1], key[:1], own, margin=0.0, backend=backend), value)
    (of_own,) = torch.autograd.grad(F.guided_info_nce(query[:1], key[:1], own, margin=0.0, backend=backend), own)
    torch.testing.assert_close(of_own[0], gradient)


def test_guides_and_margin_are_constants(backend: str) -> None:
    x = [torch.randn(N, D, requires_grad=True) for _ in range(6)]
    margin = torch.tensor(0.1, requires_grad=True)
    names = ("guide_query", "guide_key", "guide_negatives")
    guides = dict(zip(names, x[3:], strict=True))
    value = F.guided_info_nce(*x[:3], **guides, margin=margin, query_negatives=True, backend=backend)
    found = torch.autograd.grad(value, [*x, margin], allow_unused=True)
    assert [gradient is None for gradient in found] == [False] * 3 + [True] * 4
    longer = {name: 7 * guide for name, guide in guides.items()}
    again = F.guided_info_nce(*x[:3], **longer, margin=0.1, query_negatives=True, backend=backend)
    torch.testing.assert_close(again, value)


@pytest.mark.parametrize("shape", [(5, D), (N, 5, D)], ids=["shared", "own"])
def test_without_a_margin_it_is_info_nce(shape: tuple[int, ...], backend: str) -> None:
    query, key, negatives = torch.randn(N, D), torch.randn(N, D), torch.randn(shape)
    wanted = F.info_nce(query, key, negatives, temperature=0.05, in_batch=True, backend=backend)
    torch.testing.assert_close(F.guided_info_nce(query, key, negatives, backend=backend), wanted)
    wide = F.guided_info_nce(query, key, negatives, margin=2.1, backend=backend)
    torch.testing.assert_close(wide, wanted)


def test_a_guide_in_another_dtype_keeps_the_dtype_of_the_loss(backend: str) -> None:
    query, key = torch.randn(2, N, D)
    guides = torch.randn(2, N, 3, dtype=torch.float64)
    wanted = F.guided_info_nce(
        query, key, margin=-0.2, guide_query=guides[0], guide_key=guides[1], backend=backend, query_negatives=True
    )
    assert wanted.dtype == torch.float32
    found = F.guided_info_nce(
        query,
        key,
        margin=-0.2,
        guide_query=guides[0].float(),
        guide_key=guides[1].float(),
        backend=backend,
        query_negatives=True,
    )
    torch.testing.assert_close(found, wanted)
