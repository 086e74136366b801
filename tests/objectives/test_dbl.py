# SPDX-License-Identifier: Apache-2.0
"""Hardest negatives: ties, hinges at zero, one instance, the two ways to give scores, bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pycl.objectives import dbl, dbl_scores, hardest_triplet
from pycl.testing.formulas import unit

FORMS = pytest.mark.parametrize("form", ["relative", "absolute"])


def gradients(value: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, inputs)


def test_the_first_of_equal_negatives_gets_the_gradient(backend: str) -> None:
    image = torch.tensor([[3.0, 4.0], [-1.0, 2.0], [-1.0, 2.0], [-1.0, 2.0]], requires_grad=True)
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]], requires_grad=True)
    terms = hardest_triplet(image, text, margin=2.0, reduction="none", backend=backend)
    of_image, of_text = gradients(terms[0], image, text)
    assert of_text[1].any()
    assert of_image[1].any()
    assert not of_text[2:].any()
    assert not of_image[2:].any()


@FORMS
def test_the_first_of_equal_scores_gets_the_gradient(form: str) -> None:
    scores = torch.zeros(4, 4, requires_grad=True)
    (found,) = gradients(dbl_scores(scores, torch.zeros(4, 4), form=form), scores)
    own = -2.0 * torch.eye(4)
    own[[0, 1, 2, 3], [1, 0, 0, 0]] += 1.0  # of rows
    own[[1, 0, 0, 0], [0, 1, 2, 3]] += 1.0  # of columns
    torch.testing.assert_close(found, own)


def test_a_hinge_at_zero_has_no_slope() -> None:
    image, text = torch.eye(3, requires_grad=True), torch.eye(3, requires_grad=True)
    value = hardest_triplet(image, text, margin=1.0)  # 1 + 0 - 1
    assert value == 0
    assert not any(gradient.any() for gradient in gradients(value, image, text))
    scores = torch.eye(3, requires_grad=True)
    for form, share in (("relative", 0.5), ("absolute", 1.0)):
        value = dbl_scores(scores, torch.zeros(3, 3), margin=1.0, form=form, positive_share=share)
        assert value == 0
        assert not gradients(value, scores)[0].any()


def test_collapsed_embeddings_give_two_margins_each() -> None:
    z = torch.ones(5, 3)
    torch.testing.assert_close(hardest_triplet(z, z, margin=0.3), torch.tensor(10 * 0.3))


def test_reductions() -> None:
    image, text = torch.randn(2, 7, 3)
    terms = hardest_triplet(image, text, reduction="none")
    assert terms.shape == (7,)
    torch.testing.assert_close(hardest_triplet(image, text), terms.sum())
    torch.testing.assert_close(hardest_triplet(image, text, reduction="mean"), terms.mean())


ONE = [torch.tensor([[3.0, 4.0]]), torch.tensor([[5.0, 0.0]])]  # a cosine of 0.6
ALONE: list[tuple[Callable[..., Tensor], dict[str, Any], float]] = [
    (lambda x, y, **o: hardest_triplet(x, y, **o), {}, 0.0),
    (lambda x, y, **o: dbl(x, y, *ONE, **o), {}, 0.0),
    (lambda x, y, **o: dbl(x, y, *ONE, **o), {"form": "absolute", "positive_share": 0.25}, 2 * 0.25 * 0.8),
    (lambda x, y, **o: dbl_scores(unit(x) @ unit(y).T, torch.full((1, 1), 0.6), **o), {}, 0.0),
]


@pytest.mark.parametrize(("function", "options", "expected"), ALONE, ids=range(len(ALONE)))
def test_one_instance_has_no_negatives(
    function: Callable[..., Tensor], options: dict[str, Any], expected: float
) -> None:
    image, text = (x.clone().requires_grad_() for x in ONE)
    value = function(image, text, margin=0.8, **options)
    torch.testing.assert_close(value, torch.tensor(expected))
    assert any(gradient.any() for gradient in gradients(value, image, text)) == (expected > 0)


@FORMS
def test_scores_of_embeddings_are_embeddings(form: str) -> None:
    image, text, a, b = torch.randn(4, 9, 5, dtype=torch.float64)
    image.requires_grad_()
    expected = dbl_scores(unit(image) @ unit(text).T, unit(a) @ unit(b).T, form=form)
    found = dbl(image, text, a, b, form=form)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, image), gradients(expected, image))


def test_an_anchor_that_knows_nothing_leaves_the_triplet_loss() -> None:
    image, text = torch.randn(2, 9, 5, dtype=torch.float64)
    nothing = torch.zeros(9, 2, dtype=torch.float64)
    torch.testing.assert_close(dbl(image, text, nothing, nothing), hardest_triplet(image, text))


Z, S = torch.randn(6, 4), torch.randn(6, 6)
BAD: list[tuple[Callable[..., Tensor], tuple[Tensor, ...], dict[str, Any], type[Exception], str]] = [
    (hardest_triplet, (Z, Z[:3]), {}, ValueError, "image and text must have one and the same shape"),
    (hardest_triplet, (Z, Z), {"reduction": "max"}, ValueError, "reduction must be one of"),
    (hardest_triplet, (Z, Z), {"margin": "wide"}, TypeError, "margin must be a number"),
    (dbl, (Z, Z, Z[:3], Z[:3]), {}, ValueError, "anchor_image must have the 6 instances of image"),
    (dbl, (Z, Z, Z, Z[:3]), {}, ValueError, "anchor_image and anchor_text must have one and the same shape"),
    (dbl, (Z, Z, Z, Z), {"form": "soft"}, ValueError, "form must be one of 'relative', 'absolute', got 'soft'"),
    (dbl, (Z, Z, Z, Z), {"positive_share": 1.5}, ValueError, "positive_share must be from 0 to 1, got 1.5"),
    (dbl_scores, (Z, Z), {}, ValueError, r"scores must have shape \[N, N\]"),
    (dbl_scores, (S, S[:3]), {}, ValueError, "scores and anchor_scores must have one and the same shape"),
    (dbl_scores, (S.long(), S), {}, TypeError, "scores must be floating point"),
]


@pytest.mark.parametrize(("function", "inputs", "options", "error", "message"), BAD, ids=range(len(BAD)))
def test_bad_input_is_refused(
    function: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        function(*inputs, **options)
