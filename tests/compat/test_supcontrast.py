# SPDX-License-Identifier: Apache-2.0
"""pycl.compat.supcontrast against SupContrast, which is no package: a clone in a folder ``SupContrast`` is tested live.

The numbers are those of a version that returns NaN where an anchor has no positive; what newer ones return there
follows from their numbers without such anchors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from parity import Case, assert_same, embeddings, golden, measure, peer
from torch import Tensor

from pycl.compat import supcontrast as ours

PEER, MODULE = "SupContrast", "SupContrast.losses"
VERSION = "github.com/HobbitLong/SupContrast losses.py 2728c6776476a6d7cfcd7dc956ed5d2637137543"


def features(*shape: int, dtype: torch.dtype = torch.float64, unit: bool = True) -> Tensor:
    """[B, V, ...]."""
    flat = embeddings(shape[0] * shape[1], torch.Size(shape[2:]).numel(), 1)
    return (torch.nn.functional.normalize(flat, dim=1) if unit else flat).view(shape).to(dtype)


def loss_of(*args: Any, **options: Any) -> Callable[..., Tensor]:
    """Of features, and of labels or a mask by their number of dimensions."""

    def run(module: Any, z: Tensor, target: Tensor | None = None) -> Tensor:
        loss = module.SupConLoss(*args, **options)
        if target is None:
            return loss(z)
        return loss(z, mask=target.detach()) if target.shape == (len(z), len(z)) else loss(z, target.detach())

    return run


LABELS = torch.tensor([4, 1, 1, 4, -9, 4, -9])
PAIRS = torch.tensor([2, 0, 0, 2, 2, 1, 1])  # no class with one member: a single view needs that
BINARY = (LABELS[:, None] == LABELS).double()
WEIGHTS = torch.sin(torch.arange(49.0)).view(7, 7).abs()
ASYMMETRIC = (WEIGHTS > 0.6).float() + torch.eye(7)

CASES: dict[str, Case] = {
    "no labels": Case(loss_of(), (features(7, 2, 5),)),
    "no labels, three views": Case(loss_of(0.2), (features(5, 3, 4),)),
    "labels": Case(loss_of(), (features(7, 2, 5), LABELS)),
    "labels in a column": Case(loss_of(), (features(7, 2, 5), LABELS[:, None])),
    "labels of float": Case(loss_of(), (features(7, 2, 5), LABELS / 2)),
    "labels of bool": Case(loss_of(), (features(7, 2, 5), LABELS > 2)),
    "one view": Case(loss_of(0.3), (features(7, 1, 5), PAIRS)),
    "base temperature": Case(loss_of(0.5, base_temperature=0.2), (features(7, 2, 5), LABELS)),
    "not normalised": Case(loss_of(0.5), (features(7, 2, 5, unit=False), LABELS)),
    "float32": Case(loss_of(0.1), (features(12, 2, 8, dtype=torch.float32), torch.arange(12) % 5)),
    "bfloat16": Case(loss_of(0.5), (features(7, 2, 8, dtype=torch.bfloat16), LABELS), 4e-2),
    "images": Case(loss_of(), (features(7, 2, 2, 3), LABELS)),
    "one": Case(loss_of(contrast_mode="one"), (features(7, 3, 5), LABELS)),
    "one, no labels": Case(loss_of(0.2, "one"), (features(7, 2, 5),)),
    "one, bfloat16": Case(loss_of(0.5, "one"), (features(7, 2, 8, dtype=torch.bfloat16), LABELS), 4e-2),
    "mask of labels": Case(loss_of(), (features(7, 2, 5), BINARY)),
    "mask, asymmetric": Case(loss_of(0.2, base_temperature=0.1), (features(7, 2, 5), ASYMMETRIC)),
    "mask of weights": Case(loss_of(0.2), (features(7, 3, 5), WEIGHTS)),
    "mask, one": Case(loss_of(0.2, "one"), (features(7, 2, 5), ASYMMETRIC)),
    "mask, one view": Case(loss_of(0.2), (features(7, 1, 5), WEIGHTS)),
    "mask of bool": Case(loss_of(0.2), (features(7, 2, 5, unit=False), ASYMMETRIC.bool())),
    "mask, bfloat16": Case(loss_of(0.5), (features(7, 2, 8, dtype=torch.bfloat16), ASYMMETRIC), 4e-2),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    assert_same(measure(CASES[name], ours), golden(PEER)[name], CASES[name].tolerance)


@pytest.mark.parametrize("name", CASES)
def test_live(name: str) -> None:
    assert_same(measure(CASES[name], ours), measure(CASES[name], peer(MODULE)), CASES[name].tolerance)


def test_signatures() -> None:
    library = peer(MODULE)
    for method in ("__init__", "forward"):
        found, expected = (
            inspect.signature(getattr(m.SupConLoss, method)).parameters.values() for m in (ours, library)
        )
        assert [(p.name, p.default, p.kind) for p in found] == [(p.name, p.default, p.kind) for p in expected]
    assert ours.SupConLoss().state_dict() == library.SupConLoss().state_dict() == {}


@pytest.mark.parametrize("mode", ["all", "one"])
@pytest.mark.parametrize("as_mask", [False, True])
def test_an_anchor_without_positives_counts_as_0(mode: str, as_mask: bool) -> None:
    z, labels = features(5, 1, 4).requires_grad_(), torch.tensor([0, 1, 2, 1, 0])
    logits = (z[:, 0] @ z[:, 0].T / 0.3).masked_fill(torch.eye(5).bool(), -torch.inf)
    partner = torch.tensor([4, 3, -1, 1, 0])
    terms = (logits.logsumexp(1) - logits[torch.arange(5), partner]).masked_fill(partner < 0, 0)
    expected = terms.mean() * 0.3 / 0.07
    given = {"mask": labels[:, None] == labels} if as_mask else {"labels": labels}
    found = ours.SupConLoss(0.3, mode)(z, **given)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, z)[0] for loss in (found, expected)))


def test_all_alone_is_0_with_a_graph() -> None:
    z = features(5, 1, 4).requires_grad_()
    for given in ({}, {"labels": torch.arange(5)}, {"mask": torch.eye(5)}):
        loss = ours.SupConLoss()(z, **given)
        loss.backward()
        assert loss.item() == 0
    assert not z.grad.any()


WRONG: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "two dimensions": ((), {"features": torch.ones(4, 3)}),
    "labels and a mask": ((), {"features": torch.ones(4, 2, 3), "labels": torch.arange(4), "mask": torch.eye(4)}),
    "fewer labels": ((), {"features": torch.ones(4, 2, 3), "labels": torch.arange(3)}),
    "an unknown mode": ((0.1, "some"), {"features": torch.ones(4, 2, 3)}),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors(name: str) -> None:
    options, inputs = WRONG[name]
    with pytest.raises(ValueError, match=r"."):
        ours.SupConLoss(*options)(**inputs)
    with pytest.raises(ValueError, match=r"."):
        peer(MODULE).SupConLoss(*options)(**inputs)


def test_a_mask_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"\[4, 4\]"):
        ours.SupConLoss()(torch.ones(4, 2, 3), mask=torch.ones(4, 8))


def test_features_of_any_length_are_finite() -> None:
    for given in ({}, {"labels": LABELS}, {"mask": ASYMMETRIC}):
        z = (30 * features(7, 2, 16, dtype=torch.float32)).requires_grad_()
        loss = ours.SupConLoss()(z, **given)
        loss.backward()
        assert loss.isfinite()
        assert z.grad.isfinite().all()


@pytest.mark.parametrize("mode", ["all", "one"])
@pytest.mark.parametrize("as_mask", [False, True])
def test_no_matrix_of_all_points(mode: str, as_mask: bool) -> None:
    n, n_views = 256, 4
    z = features(n, n_views, 4, dtype=torch.float32).requires_grad_()
    labels = torch.arange(n) % 7
    given = {"mask": labels[:, None] == labels} if as_mask else {"labels": labels}
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        ours.SupConLoss(contrast_mode=mode)(z, **given)
    assert max(sizes) <= n * n if as_mask else max(sizes) < n * n / 8
