# SPDX-License-Identifier: Apache-2.0
"""Other forms of docs/cookbook/limits.md, term by term."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from helpers.cookbook.case import Inputs, many_labels, points
from pycl.testing.formulas import Number, unit


def rank_n_contrast(z: Tensor, y: Tensor, temperature: Number = 2.0) -> Tensor:
    terms = []
    for i in range(len(z)):
        others = [k for k in range(len(z)) if k != i]
        s, far = -(z[i] - z[others]).norm(dim=1) / temperature, (y[i] - y[others]).abs()
        terms += [s[far >= far[j]].logsumexp(0) - s[j] for j in range(len(others))]
    return torch.stack(terms).mean()


def soft_triple(
    z: Tensor, labels: Tensor, centres: Tensor, gamma: float = 0.1, margin: float = 0.01, scale: Number = 20.0
) -> Tensor:
    classes = []
    for c, own in enumerate(centres):
        cosines = unit(z) @ unit(own).T
        classes.append(((cosines / gamma).softmax(1) * cosines).sum(1) - margin * (labels == c))
    return cross_entropy(scale * torch.stack(classes, 1), labels)


def _centred(n: int, d: int) -> list[Any]:
    return [points(n, d), many_labels(n), points(3 * n, d).view(n, 3, d)]


INPUTS: dict[str, Inputs] = {
    "rank_n_contrast": lambda n, d: [points(n, d), points(n, 1)[:, 0]],
    "soft_triple": _centred,
}
