# SPDX-License-Identifier: Apache-2.0
"""Dense forms of docs/cookbook/retrieval.md."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, smooth_l1_loss, softplus

from helpers.cookbook.case import Inputs, eye, numbers, pairs, points, squared_distances, with_queue
from pycl.testing.formulas import Number, clip, info_nce, nearest_neighbour_nce, unit


def log_q(user: Tensor, item: Tensor, q: Tensor, temperature: Number = 0.05) -> Tensor:
    return cross_entropy(unit(user) @ unit(item).T / temperature - q.log(), torch.arange(len(user)))


def bpr(user: Tensor, item: Tensor) -> Tensor:
    s = user @ item.T
    return softplus(s - s.diagonal()[:, None], threshold=700)[~eye(len(s))].mean()


def simplex(user: Tensor, item: Tensor, margin: float = 0.4, weight: float = 1.0) -> Tensor:
    cosines = unit(user) @ unit(item).T
    return (1 - cosines.diagonal()).mean() + weight * (cosines[~eye(len(user))] - margin).relu().mean()


def simcse_hard(query: Tensor, key: Tensor, hard: Tensor, weight: float = 2.0, temperature: Number = 0.05) -> Tensor:
    q, n = unit(query), len(query)
    of_hard = (q @ unit(hard).T / temperature).exp() * (1 + (weight - 1) * eye(n))
    s = q @ unit(key).T / temperature
    return ((s.exp().sum(1) + of_hard.sum(1)).log() - s.diagonal()).mean()


def colbert(query: Tensor, document: Tensor, temperature: Number = 0.02) -> Tensor:
    scores = (unit(query)[:, None, :, None] * unit(document)[:, None]).sum(-1).amax(3).sum(2)
    return cross_entropy(scores / temperature, torch.arange(len(query)))


def vse0(image: Tensor, text: Tensor, margin: float = 0.2) -> Tensor:
    cosines = unit(image) @ unit(text).T
    own, others = cosines.diagonal(), ~eye(len(image))
    hinges = (margin + cosines - own[:, None]).relu() + (margin + cosines - own).relu()
    return hinges[others].sum()


def cloob(image: Tensor, text: Tensor, beta: Number = 8.0, scale: Number = 30.0) -> Tensor:
    x, y = unit(image), unit(text)

    def retrieved(z: Tensor, memory: Tensor) -> Tensor:
        return unit((beta * z @ memory.T).softmax(1) @ memory)

    of_images = scale * retrieved(x, x) @ retrieved(y, x).T
    of_texts = scale * retrieved(y, y) @ retrieved(x, y).T
    terms = [s.masked_fill(eye(len(s)), -torch.inf).logsumexp(1) - s.diagonal() for s in (of_images, of_texts)]
    return (terms[0] + terms[1]).mean() / 2


def cyclip(image: Tensor, text: Tensor) -> Tensor:
    x, y = unit(image), unit(text)
    return (x @ x.T - y @ y.T).square().mean() + (x @ y.T - y @ x.T).square().mean()


def albef_itc(
    image: Tensor,
    text: Tensor,
    image_m: Tensor,
    text_m: Tensor,
    image_queue: Tensor,
    text_queue: Tensor,
    alpha: float = 0.4,
    temperature: Number = 0.07,
) -> Tensor:
    images, texts = (torch.cat([unit(m), unit(q)]).detach() for m, q in ((image_m, image_queue), (text_m, text_queue)))
    terms = []
    for x, m, keys in ((image, image_m, texts), (text, text_m, images)):
        soft = (unit(m) @ keys.T / temperature).softmax(1).detach()
        target = alpha * soft + (1 - alpha) * torch.eye(*soft.shape, dtype=soft.dtype)
        terms.append(cross_entropy(unit(x) @ keys.T / temperature, target))
    return (terms[0] + terms[1]) / 2


def declip(image: Tensor, text: Tensor, queue: Tensor, weight: float = 0.2, temperature: Number = 0.07) -> Tensor:
    neighbours = nearest_neighbour_nce(text, image, queue, temperature)
    return clip(unit(image), unit(text), 1 / temperature).mean() + weight * neighbours.mean()


def interactive_contrast(
    image: Tensor, text: Tensor, teacher_image: Tensor, teacher_text: Tensor, temperature: Number = 0.07
) -> Tensor:
    of_images = info_nce(image, teacher_text.detach(), temperature=temperature)
    return (of_images + info_nce(text, teacher_image.detach(), temperature=temperature)).mean() / 2


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    x, t = student @ student.T, (teacher @ teacher.T).detach()
    return (x / x.norm(dim=1, keepdim=True) - t / t.norm(dim=1, keepdim=True)).square().mean()


def gram_anchoring(student: Tensor, teacher: Tensor) -> Tensor:
    x, t = unit(student), unit(teacher).detach()
    return (x @ x.T - t @ t.T).square().sum()


def rkd(student: Tensor, teacher: Tensor) -> Tensor:
    others = ~eye(len(student))
    x, t = (squared_distances(z, z)[others].sqrt() for z in (student, teacher.detach()))
    return smooth_l1_loss(x / x.mean(), t / t.mean())


def _momentum(n: int, d: int) -> list[Any]:
    return [*pairs(n, d), *pairs(n, d), points(n + 16, d), points(n + 20, d)]


def _tokens(n: int, d: int) -> list[Any]:
    return [points(4 * n, d).view(n, 4, d), points(5 * n, d).view(n, 5, d)]


INPUTS: dict[str, Inputs] = {
    "log_q": lambda n, d: [*pairs(n, d), numbers(n, 0.01)],
    "bpr": pairs,
    "simplex": pairs,
    "simcse_hard": lambda n, d: [*pairs(n, d), points(n, d)],
    "colbert": _tokens,
    "vse0": pairs,
    "cloob": pairs,
    "cyclip": pairs,
    "albef_itc": _momentum,
    "declip": with_queue,
    "interactive_contrast": lambda n, d: [*pairs(n, d), *pairs(n, d)],
    "similarity_preserving": pairs,
    "gram_anchoring": lambda n, d: [points(n, d), points(n, d - 2)],
    "rkd": lambda n, d: [points(n, d), points(n, d - 2)],
}
