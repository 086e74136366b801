# SPDX-License-Identifier: Apache-2.0
"""AMCL: several projection heads, the hardest negatives, and a temperature for each pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from pycl.core.pairs import Pairs, Points
from pycl.engine.extremes import pair_extremes
from pycl.engine.matrix import pair_top
from pycl.engine.modifiers import Agreement, Modified
from pycl.engine.validation import check_count
from pycl.functional._common import Scalar, check_features, check_weight, no_autocast, unit

Temperature: TypeAlias = Callable[[Tensor, Tensor], Tensor]

SWEEPS = 4  # so many negatives come from a sweep each: three take 1.7 s at N = 8192, and pair_top 3.6 s


class PairTemperature(nn.Module):
    """A temperature for each pair of embeddings: ``low + (high - low) sigmoid(MLP([a; b]))``.

    The MLP is ``2 dim -> hidden -> 1`` with a ReLU and with biases; its parameters come in the order W1, b1, W2, b2.

    Args:
        dim: features of an embedding.
        hidden: units of the hidden layer.
        low, high: between which numbers the temperatures lie, ``0 < low < high``.

    Raises:
        TypeError: dim or hidden that are no integers.
        ValueError: dim or hidden below 1, other numbers than ``0 < low < high``.
    """

    def __init__(self, dim: int, hidden: int = 128, low: float = 1e-5, high: float = 2.0) -> None:
        super().__init__()
        dim, hidden = check_count("dim", dim), check_count("hidden", hidden)
        if not 0.0 < low < high < float("inf"):
            raise ValueError(f"low and high must be finite with 0 < low < high, got {low} and {high}")
        self.low, self.high = float(low), float(high)
        self.inner, self.outer = nn.Linear(2 * dim, hidden), nn.Linear(hidden, 1)

    def forward(self, anchor: Tensor, other: Tensor) -> Tensor:
        """``[m, dim]`` and ``[m, dim]`` to ``[m]``, in the dtype of the parameters."""
        pair = torch.cat([anchor, other], -1).to(self.inner.weight.dtype)
        logit: Tensor = self.outer(self.inner(pair).relu()).squeeze(-1)
        return self.low + (self.high - self.low) * logit.sigmoid()

    def extra_repr(self) -> str:
        return f"low={self.low}, high={self.high}"


def amcl(
    heads: Tensor,
    temperature: Temperature | Sequence[Temperature] | nn.ModuleList,
    *,
    beta: Scalar = 0.1,
    top: int = 1,
    backend: str | None = None,
) -> Tensor:
    r"""AMCL: in each head, the positive against the hardest negatives, each with a temperature of its own.

    In head c, with p the cosine of anchor i in view 0 and its own view 1, and v the ``top`` largest cosines with view 1
    of the other instances; tp and tn are the temperatures of those pairs::

        value = sum_c mean_i ( -p/tp + mean of v/tn + beta Omega(tp) - beta mean of Omega(tn) )    means over the top
        Omega(t) = d/2 log t + 1/t

    The choice of the hardest has no gradient; what is chosen has, as have the temperatures and what gives them. Where
    there are fewer than ``top`` others, the means are over those there are; with one instance they are 0.

    The paper takes the hardest alone, ``top=1``. The authors' released code does not run, and what it would compute has
    no negatives: the value here is the paper's formula, with the temperature network of the code.

    Args:
        heads: ``[C, 2, N, d]``, two views of N instances in C heads; float64, float32, bfloat16 or float16.
        temperature: from unit anchors ``[m, d]`` and others ``[m, d]`` to positive temperatures ``[m]``, such as
            :class:`PairTemperature`; one for all heads, or one for each. It sees the chosen pairs alone, once a head.
        beta: number or 0-d tensor, at least 0.
        top: how many negatives, at least 1; takes ``[N, top, d]`` memory in each head.
        backend: name of the backend to run on; None picks one.

    Returns:
        A scalar; float32 (float64 for float64 heads).

    Raises:
        TypeError: heads that are not floating point, a temperature that cannot be called, a top that is no integer.
        ValueError: heads of another shape, a number of temperatures that is not C, temperatures of another shape than
            ``[m]``, a negative beta, a top below 1, an unknown backend.
        RuntimeError: the backend asked for is not built.

    Wang et al., "Adaptive Multi-head Contrastive Learning", arXiv 2310.05615, equation 2.1.
    """
    beta, top = check_weight("beta", beta), check_count("top", top)
    if not isinstance(heads, Tensor) or heads.dim() != 4 or heads.shape[1] != 2 or heads.numel() == 0:
        got = tuple(heads.shape) if isinstance(heads, Tensor) else type(heads).__name__
        raise ValueError(f"heads must have shape [C, 2, N, d] with C, N, d >= 1, got {got}")
    check_features(heads=heads.flatten(0, 2))
    temperatures = _one_for_each_head(temperature, len(heads))
    with no_autocast(heads):
        u = unit(heads)
        values = [_head(a, b, t, beta, top, backend) for (a, b), t in zip(u, temperatures, strict=True)]
    return torch.stack(values).sum()


def _head(a: Tensor, b: Tensor, temperature: Temperature, beta: Scalar, top: int, backend: str | None) -> Tensor:
    n, d = a.shape
    others = b.unsqueeze(1)
    if k := min(top, n - 1):
        index = _hardest(a.detach(), b.detach(), k, backend)
        others = torch.cat([others, embedding(index, b)], 1)  # its sums into rows of b come in one order
    anchors = a.unsqueeze(1).expand_as(others)
    t = temperature(anchors.reshape(-1, d), others.flatten(0, 1))
    if not isinstance(t, Tensor) or t.shape != (n * (1 + k),):
        got = tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__
        raise ValueError(f"temperature must give one number for each of [{n * (1 + k)}] pairs, got {got}")
    t = t.view(n, 1 + k)
    terms = beta * (d / 2 * t.log() + 1.0 / t) - (anchors * others).sum(2) / t
    value = terms[:, 0].mean()
    return value - terms[:, 1:].mean() if k else value


def _hardest(a: Tensor, b: Tensor, k: int, backend: str | None) -> Tensor:
    """Which k other instances of b are the most similar to each row of a, [N, k]; the lowest index first of equals."""
    if k > SWEEPS:
        return pair_top(Points(a), Points(b), k, pairs=Pairs.OTHERS, backend=backend)[1].clamp_min(0)
    every = torch.arange(len(b), device=b.device)
    found: list[Tensor] = []
    for nth in range(k):
        chosen_before: Modified = {}
        if nth:
            keep = torch.zeros(nth + 1, dtype=a.dtype, device=a.device)
            keep[0] = 1.0
            chosen_before = {"modifiers": (Agreement(torch.stack(found), every.expand(nth, -1), keep),)}
        largest = pair_extremes(
            Points(a), Points(b), negatives=Pairs.OTHERS, positives=Pairs.NONE, backend=backend, **chosen_before
        )
        found.append(largest.negative_index.clamp_min(0))  # -1 where everything is NaN
    return torch.stack(found, 1)


def _one_for_each_head(temperature: Temperature | Sequence[Temperature] | nn.ModuleList, n: int) -> list[Temperature]:
    if isinstance(temperature, (Sequence, nn.ModuleList)):  # such a list is a module, and modules can be called
        found: list[Any] = list(temperature)
    else:
        found = [temperature] * n
    for t in found:
        if not callable(t):
            raise TypeError(f"temperature must be a function of pairs, or one for each head, got {type(t).__name__}")
    if len(found) != n:
        raise ValueError(f"temperature must be one function or as many as there are heads, {n}, got {len(found)}")
    return found
