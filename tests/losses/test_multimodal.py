# SPDX-License-Identifier: Apache-2.0
"""Modalities of which instances lack some: against formulas that look at one instance after the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as nnf
from helpers.oracle import FLOOR
from helpers.spawn import on_ranks
from torch import Tensor
from torch.testing import assert_close

import pycl.functional as F
from pycl.distributed import Ring

NAMES = ("image", "text", "sound", "depth")
FORMS = ("mv_info_nce", "mv_dhel", "poly_view", "pairwise_nt_xent")
CLOSE = {"rtol": 0, "atol": 1e-11}
Views = dict[str, Tensor]


def batch(n_views: int, n: int, d: int = 6, missing: float = 0.4) -> tuple[Views, Views]:
    generator = torch.Generator().manual_seed(n_views * 100 + n)
    z = torch.randn(n_views, n, d, dtype=torch.float64, generator=generator)
    there = torch.rand(n_views, n, generator=generator) > missing
    there[0, 0] = True
    return dict(zip(NAMES, z, strict=False)), dict(zip(NAMES, there, strict=False))


def logits(modalities: Views, temperature: float) -> Callable[[str, int, str, int], Tensor]:
    unit = {name: nnf.normalize(z, dim=1) for name, z in modalities.items()}
    return lambda a, i, b, j: unit[a][i] @ unit[b][j] / temperature


def log_sum(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).logsumexp(0)


def dense(form: str, modalities: Views, present: Views, temperature: float) -> list[Tensor]:
    """The terms that there are, from Python loops over points that are there."""
    n, s = len(next(iter(present.values()))), logits(modalities, temperature)
    points = [(a, i) for a in modalities for i in range(n) if present[a][i]]
    terms = []
    for i in range(n):
        own = [a for a in modalities if present[a][i]]
        pairs = [(a, b) for a in own for b in own if a != b]
        if not pairs:
            continue
        if form == "mv_info_nce":
            below = [s(a, i, b, j) for a in own for b, j in points if (a, i) != (b, j)]
            terms.append(log_sum(below) - log_sum([s(a, i, b, i) for a, b in pairs]))
        elif form == "mv_dhel":
            energy = [[s(a, i, a, j) for b, j in points if b == a and j != i] for a in own]
            aligned = log_sum([s(a, i, b, i) for a, b in pairs]) - math.log(2)
            terms.append(sum((log_sum(e) for e in energy if e), torch.zeros(())) - aligned)
        else:
            for a in own:
                of_partners = []
                for b in own:
                    if b == a:
                        continue
                    seen = (a, b) if form == "pairwise_nt_xent" else tuple(modalities)
                    others = [s(a, i, c, j) for c, j in points if c in seen and j != i]
                    of_partners.append(log_sum([*others, s(a, i, b, i)]) - s(a, i, b, i))
                terms.append(torch.stack(of_partners).mean())
    return terms


def with_gradients(value: Tensor, leaves: Views) -> list[Tensor]:
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return [
        value.detach(),
        *(torch.zeros_like(z) if g is None else g for g, z in zip(found, leaves.values(), strict=True)),
    ]


@pytest.mark.float64
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(2, 5), (3, 9), (4, 12), (3, 1)], ids=str)
def test_the_loss_over_what_is_there(form: str, size: tuple[int, int], backend: str) -> None:
    modalities, present = batch(*size)
    leaves = {name: z.requires_grad_() for name, z in modalities.items()}
    expected = dense(form, leaves, present, 0.3)
    wanted = torch.stack(expected).mean() if expected else 0 * sum(z.sum() for z in leaves.values())
    # what is not there does not matter, not even if it is no number
    given = {name: torch.where(present[name][:, None], z, torch.nan) for name, z in leaves.items()}
    value = F.multimodal(given, present, form=form, temperature=0.3, backend=backend)
    for mine, true in zip(with_gradients(value, leaves), with_gradients(wanted, leaves), strict=True):
        assert_close(mine, true, **CLOSE)
    terms = F.multimodal(given, present, form=form, temperature=0.3, reduction="none", backend=backend)
    assert terms.shape == ((size[1],) if form.startswith("mv") else size)
    assert_close(terms.sum(), sum(expected, torch.zeros((), dtype=torch.float64)), **CLOSE)
    total = F.multimodal(given, present, form=form, temperature=0.3, reduction="sum", backend=backend)
    assert_close(total, terms.sum(), **CLOSE)


@pytest.mark.parametrize("form", FORMS)
def test_with_nothing_missing_it_is_the_function(form: str) -> None:
    modalities, _ = batch(4, 11)
    views = torch.stack(list(modalities.values()))
    for reduction in ("mean", "sum", "none"):
        wanted = getattr(F, form)(views, temperature=0.3, reduction=reduction)
        assert_close(F.multimodal(modalities, form=form, temperature=0.3, reduction=reduction), wanted, **CLOSE)


@pytest.mark.parametrize("form", FORMS)
def test_rows_that_are_there_alone(form: str) -> None:
    modalities, present = batch(3, 9)
    packed = {name: z[present[name]] for name, z in modalities.items()}
    assert torch.equal(F.multimodal(packed, present, form=form), F.multimodal(modalities, present, form=form))


@pytest.mark.parametrize("form", FORMS)
def test_instances_without_a_positive_are_negatives_only(form: str) -> None:
    z = torch.randn(2, 3, 4, requires_grad=True)
    nobody = {"image": torch.tensor([True, False, True]), "text": torch.tensor([False, True, False])}
    value = F.multimodal({"image": z[0], "text": z[1]}, nobody, form=form)
    assert value == 0
    assert not torch.autograd.grad(value, z)[0].any()
    everyone = {"image": torch.tensor([True, True, True]), "text": torch.tensor([True, False, False])}
    alone = F.multimodal({"image": z[0], "text": z[1]}, everyone, form=form, reduction="none")
    assert (alone != 0).sum() == (1 if form.startswith("mv") else 2)
    (gradient,) = torch.autograd.grad(alone.sum(), z)
    assert gradient[0].any(1).all()
    assert not gradient[1, 1:].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_half_types_accumulate_in_float32(form: str, dtype: torch.dtype) -> None:
    modalities, present = batch(3, 20, 16)
    narrow = {name: z.to(dtype).requires_grad_() for name, z in modalities.items()}
    wide = {name: z.detach().double().requires_grad_() for name, z in narrow.items()}
    value = F.multimodal(narrow, present, form=form, temperature=0.1)
    wanted = F.multimodal(wide, present, form=form, temperature=0.1)
    assert value.dtype == torch.float32
    assert_close(value.double(), wanted, rtol=FLOOR[dtype], atol=FLOOR[dtype])
    narrow_gradient = torch.autograd.grad(value, narrow["text"])[0]
    wide_gradient = torch.autograd.grad(wanted, wide["text"])[0]
    assert_close(narrow_gradient.double(), wide_gradient, rtol=2e-2, atol=1e-3)


def found_on(rank: int, world: int, form: str, ring: bool) -> tuple[Tensor, Tensor]:
    modalities, present = batch(4, 11)
    ends = [0, 4, 11] if world == 2 else [0, 11]
    mine = slice(ends[rank], ends[rank + 1])
    leaves = torch.stack([z[mine] for z in modalities.values()]).requires_grad_()
    here = {name: mask[mine] for name, mask in present.items()}
    group = None if world == 1 else Ring(dist.group.WORLD) if ring else dist.group.WORLD
    value = F.multimodal(dict(zip(NAMES, leaves, strict=True)), here, form=form, temperature=0.3, group=group)
    return value.detach(), torch.autograd.grad(value, leaves)[0] / world


def all_forms(rank: int, world: int) -> dict[Any, Any]:
    return {(form, ring): found_on(rank, world, form, ring) for form in FORMS for ring in (False, True)}


on_two = cache(lambda: on_ranks(2, all_forms))


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_two_ranks_are_one_process(form: str, ring: bool) -> None:
    value, gradient = found_on(0, 1, form, ring)
    parts = [rank[form, ring] for rank in on_two()]
    assert_close((parts[0][0] + parts[1][0]) / 2, value, **CLOSE)
    assert_close(torch.cat([part[1] for part in parts], 1), gradient, **CLOSE)


A, B = torch.randn(2, 4, 3)
TRUE = torch.ones(4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("modalities", "present", "options", "error", "message"),
    [
        ({"image": A}, None, {}, ValueError, "two modalities or more, got image"),
        ([A, B], None, {}, ValueError, "mapping of two modalities or more, got list"),
        ({"image": A, "text": B[:3]}, None, {}, ValueError, "as many instances each, got 3 of 'text' and 4"),
        ({"image": A, "text": B[:, :2]}, None, {}, ValueError, r"modalities\['text'\] must have 3 features"),
        ({"image": A, "text": B.long()}, None, {}, TypeError, r"modalities\['text'\] must be floating point"),
        ({"image": A, "text": B}, {"sound": TRUE}, {}, ValueError, "present must be of modalities, .* got 'sound'"),
        ({"image": A, "text": B}, {"text": TRUE.long()}, {}, TypeError, r"present\['text'\] must be a bool tensor"),
        ({"image": A, "text": B}, {"text": TRUE[:3]}, {}, ValueError, "as many instances each, got 3 of 'text'"),
        (
            {"image": A, "text": B[:2]},
            {"text": TRUE},
            {},
            ValueError,
            "must have 4 rows, or the 4 that are there, got 2",
        ),
        ({"image": A, "text": B}, {"image": ~TRUE, "text": ~TRUE}, {}, ValueError, "present must leave some instance"),
        ({"image": A, "text": B}, None, {"form": "clip"}, ValueError, "form must be one of 'mv_info_nce'"),
        ({"image": A, "text": B}, None, {"temperature": 0.0}, ValueError, "temperature must be positive"),
        ({"image": A, "text": B}, None, {"reduction": "max"}, ValueError, "reduction"),
    ],
)
def test_bad_input(
    modalities: Any, present: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        F.multimodal(modalities, present, **options)
