# SPDX-License-Identifier: Apache-2.0
"""Images and texts by labels: what it is made of, points without labels, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pycl.functional import info_nce, sup_con
from pycl.objectives import image_text_sup_con

N, D = 12, 5
ACROSS = {"inner_image": 0, "inner_text": 0}
CLASSES = torch.arange(N) % 4
LABEL_SETS = torch.nn.functional.one_hot(CLASSES, 7).bool()


def pairs() -> tuple[Tensor, Tensor]:
    image, text = torch.randn(2, N, D, dtype=torch.float64)
    return image.requires_grad_(), text.requires_grad_()


def same(found: Tensor, expected: Tensor, image: Tensor, text: Tensor) -> None:
    torch.testing.assert_close(found, expected)
    of_found = torch.autograd.grad(found, (image, text), allow_unused=True, materialize_grads=True)
    of_expected = torch.autograd.grad(expected, (image, text), allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(of_found, of_expected)


@pytest.mark.parametrize("labels", [torch.arange(N), torch.zeros(N, 3, dtype=torch.bool)], ids=["ids", "no_labels"])
def test_without_shared_labels_it_is_symmetric_info_nce(labels: Tensor) -> None:
    image, text = pairs()
    found = image_text_sup_con(image, text, labels, temperature=0.1)
    same(found, 2 * info_nce(image, text, temperature=0.1, symmetric=True), image, text)


@pytest.mark.parametrize("labels", [CLASSES, LABEL_SETS], ids=["classes", "label_sets"])
@pytest.mark.parametrize("inner", ["inner_image", "inner_text"])
def test_an_inner_term_is_sup_con(labels: Tensor, inner: str) -> None:
    image, text = pairs()
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    found = image_text_sup_con(image, text, labels, **{**ACROSS, inner: weight})
    expected = sup_con((image if inner == "inner_image" else text,), CLASSES)
    (of_weight,) = torch.autograd.grad(found, weight, retain_graph=True)
    torch.testing.assert_close(of_weight, expected.detach())
    same(found - image_text_sup_con(image, text, labels, **ACROSS), 0.5 * expected, image, text)


def test_one_label_each_is_a_class_each() -> None:
    image, text = pairs()
    same(image_text_sup_con(image, text, LABEL_SETS), image_text_sup_con(image, text, CLASSES), image, text)


def test_a_label_more_of_the_same_points_changes_nothing() -> None:
    """Positives are counted once, however many labels two points share."""
    image, text = pairs()
    labels = torch.rand(N, 5) < 0.3
    same(
        image_text_sup_con(image, text, torch.cat([labels, labels[:, :2]], 1)),
        image_text_sup_con(image, text, labels),
        image,
        text,
    )


Z, HALF = torch.randn(N, D), {"inner_image": "half"}
BAD: list[tuple[Tensor, Tensor, Any, dict[str, Any], type[Exception], str]] = [
    (Z, Z[:3], CLASSES, {}, ValueError, "image and text must have one and the same shape"),
    (Z.long(), Z.long(), CLASSES, {}, TypeError, "image must be floating point"),
    (Z, Z, CLASSES[:3], {}, ValueError, r"labels must have shape \[12\]"),
    (Z, Z, CLASSES.float(), {}, TypeError, "labels must be an integer tensor"),
    (Z, Z, None, {}, TypeError, "labels must be an integer tensor"),
    (Z, Z, LABEL_SETS[0], {}, ValueError, r"labels of bool must have shape \[12, L\]"),
    (Z, Z, LABEL_SETS[:, :0], {}, ValueError, r"labels of bool must have shape \[12, L\] with L >= 1"),
    (Z, Z, CLASSES, HALF, TypeError, "inner_image must be a number"),
]


@pytest.mark.parametrize(("image", "text", "labels", "options", "error", "message"), BAD, ids=range(len(BAD)))
def test_bad_input_is_refused(
    image: Tensor, text: Tensor, labels: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        image_text_sup_con(image, text, labels, **options)
