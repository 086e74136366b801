# SPDX-License-Identifier: Apache-2.0
"""HiCLR: which view learns from which, its lower bound, mined positives as a set."""

from __future__ import annotations

import pytest
import torch

from pycl.functional import info_nce
from pycl.objectives import directional_consistency, hiclr
from pycl.testing.objectives.hiclr import logits, three_views


def test_a_student_that_is_its_teacher_has_the_teacher_s_entropy_and_no_gradient() -> None:
    x = three_views(6, 5)
    student = x["query"].clone().requires_grad_()
    value = directional_consistency(student, x["query"], x["key"], x["queue"], temperature=0.2)
    entropy = torch.distributions.Categorical(logits=logits(x["query"], x["key"], x["queue"], 0.2)).entropy()
    torch.testing.assert_close(value, entropy.mean())
    gradient = torch.autograd.grad(value, student)[0]
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
    for other in ("normal", "strong"):  # no student does better
        assert directional_consistency(x[other], x["query"], x["key"], x["queue"], temperature=0.2) > value


def test_each_view_learns_from_the_weaker_one_alone() -> None:
    x = three_views(6, 5)
    views = {name: x[name].requires_grad_() for name in ("query", "normal", "strong")}
    shared = {"key": x["key"], "queue": x["queue"], "temperature": 0.2}
    parts = {
        "query": info_nce(views["query"], x["key"], negatives=x["queue"], temperature=0.2),
        "normal": directional_consistency(views["normal"], views["query"], **shared) / 2,
        "strong": directional_consistency(views["strong"], views["normal"], **shared) / 2,
    }
    value = hiclr(**views, **shared)
    torch.testing.assert_close(value, sum(parts.values()))
    found = torch.autograd.grad(value, list(views.values()))
    for gradient, (name, part) in zip(found, parts.items(), strict=True):
        torch.testing.assert_close(gradient, torch.autograd.grad(part, views[name])[0])


@pytest.mark.parametrize("nearest", [(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0), (0, 1, 2)], ids=str)
def test_a_neighbour_of_several_views_counts_once(nearest: tuple[int, int, int]) -> None:
    queue = torch.eye(4, dtype=torch.float64)[:3]
    query, normal, strong = (queue[k : k + 1] + torch.tensor([0, 0, 0, 0.3]) for k in nearest)
    key = torch.tensor([[0.0, 0, 0, 1]], dtype=torch.float64)
    found = hiclr(query, normal, strong, key, queue, temperature=0.5, mine=True)
    log_p = logits(query, key, queue, 0.5).log_softmax(1)[0]
    positives = [0, *(1 + k for k in set(nearest))]
    contrast = found - hiclr(query, normal, strong, key, queue, temperature=0.5)
    torch.testing.assert_close(contrast, log_p[0] - log_p[positives].mean())


def test_of_equally_near_ones_the_first_is_taken() -> None:
    entry = torch.tensor([[1.0, 0.0]])
    queue = torch.cat([entry, entry, entry])
    query = torch.tensor([[1.0, 1.0]])
    found = hiclr(query, query, query, torch.tensor([[0.0, 1.0]]), queue, temperature=1.0, mine=True)
    log_p = logits(query, torch.tensor([[0.0, 1.0]]), queue, 1.0).log_softmax(1)[0]
    entropy = -(log_p.exp() * log_p).sum()
    torch.testing.assert_close(found, entropy - log_p[:2].mean())


def test_float16_keeps_small_probabilities() -> None:
    """softmax then log gives log 0 in float16: the nearest of two opposite unit vectors is 2 / 0.07 logits away."""
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float16).requires_grad_()
    value = directional_consistency(x, -x.detach(), x.detach(), -x.detach())
    torch.testing.assert_close(value, torch.tensor(2 / 0.07))
    assert torch.autograd.grad(value, x)[0].isfinite().all()


@pytest.mark.parametrize("name", ["normal", "strong", "key"])
def test_shapes_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"query and {name} must have one and the same shape"):
        hiclr(**{**three_views(6, 5), name: torch.randn(5, 5)})
    with pytest.raises(ValueError, match="queue must have 5 features"):
        hiclr(**{**three_views(6, 5), "queue": torch.randn(9, 4)})
