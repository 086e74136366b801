# SPDX-License-Identifier: Apache-2.0
"""Any loss on prefixes of the features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import pycl.engine.prefixes as prefixes_of_engine
import pycl.functional as F
from pycl.functional import _prefixes

VIEWS = torch.randn(2, 7, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(7) // 2


def test_it_is_the_sum_over_prefixes() -> None:
    views = VIEWS.clone().requires_grad_()
    found = F.matryoshka(F.nt_xent, views, dims=(3, 8, 12), weights=(2, 0.5, 1))
    expected = sum(w * F.nt_xent(views[..., :d]) for d, w in ((3, 2.0), (8, 0.5), (12, 1.0)))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, views), torch.autograd.grad(expected, views))


def test_prefixes_are_normalised_for_a_loss_that_takes_features_as_they_are() -> None:
    found = F.matryoshka(lambda x, y: (x * y).sum(1), VIEWS[0], VIEWS[1], dims=[1, 5])
    expected = sum((normalize(VIEWS[0, :, :d]) * normalize(VIEWS[1, :, :d])).sum(1) for d in (1, 5))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("loss", "views"),
    [
        (F.info_nce, (VIEWS[0], VIEWS[1])),
        (F.nt_xent, ((VIEWS[0], VIEWS[1]),)),
        (F.sup_con, (VIEWS, LABELS)),
        (partial(F.clip, logit_scale=10.0), (normalize(VIEWS[0]), normalize(VIEWS[1]))),
        (F.koleo, (VIEWS[0],)),
    ],
    ids=["two", "sequence", "labels", "options", "one"],
)
def test_the_whole_is_the_loss_of_unit_vectors(loss: Callable[..., Tensor], views: tuple[Any, ...]) -> None:
    torch.testing.assert_close(F.matryoshka(loss, *views, dims=[12]), loss(*views))


SCALE, TEMPERATURE = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (20.0, 0.05))
X, Y = (
    z.requires_grad_() for z in torch.randn(2, 50, 100, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
)
OF_ONE_SWEEP: dict[str, tuple[Callable[..., Tensor], tuple[Any, ...]]] = {
    "clip": (F.clip, (X, Y, SCALE)),
    "clip_options": (partial(F.clip, logit_scale=SCALE, reduction="none", normalize=True), (X, Y)),
    "info_nce": (partial(partial(F.info_nce, temperature=3.0, reduction="sum"), temperature=TEMPERATURE), (X, Y)),
    "symmetric": (partial(F.info_nce, temperature=TEMPERATURE, symmetric=True, group=None), (X, Y)),
    "nt_xent": (partial(F.nt_xent, temperature=TEMPERATURE), ((X, Y),)),
    "nt_xent_options": (partial(F.nt_xent, temperature=TEMPERATURE, reduction="none"), ([X, Y, X],)),
}


def called(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[int]]:
    """The lengths of each call of the engine's statistics over prefixes from now on."""
    found: list[Sequence[int]] = []

    def prefix_stats(*args: Any, prefixes: Sequence[int], **more: Any) -> Any:
        found.append(prefixes)
        return prefixes_of_engine.prefix_stats(*args, prefixes=prefixes, **more)

    monkeypatch.setattr(_prefixes, "prefix_stats", prefix_stats)
    return found


@pytest.mark.float64
@pytest.mark.parametrize("case", OF_ONE_SWEEP)
def test_one_sweep_is_the_sum_over_prefixes(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, views = OF_ONE_SWEEP[case]
    calls, dims, weights = called(monkeypatch), (96, 32, 64, 64, 7), (1.0, 2.0, 0.5, 0.25, 3.0)
    found = F.matryoshka(loss, *views, dims=dims, weights=weights)
    assert calls == [[7, 32, 64, 96]]
    loop = F.matryoshka(lambda *prefixes: loss(*prefixes), *views, dims=dims, weights=weights)
    assert len(calls) == 1
    torch.testing.assert_close(found, loop)
    weight = torch.rand_like(loop)
    leaves = X, Y, SCALE, TEMPERATURE
    both = (torch.autograd.grad((v * weight).sum(), leaves, materialize_grads=True) for v in (found, loop))
    torch.testing.assert_close(*both)


@pytest.mark.parametrize(
    "loss",
    [
        partial(F.clip, logit_scale=2.0, logit_bias=1.0),
        partial(F.clip, logit_scale=2.0, label_smoothing=0.1),
        partial(F.info_nce, negatives=torch.ones(3, 64)),
        partial(F.info_nce, backend="reference"),
        partial(F.siglip, logit_scale=2.0, logit_bias=1.0),
    ],
    ids=["biased", "smooth", "queue", "backend", "siglip"],
)
def test_what_takes_a_pass_for_each(loss: partial[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = called(monkeypatch)
    views = [x.detach().float()[:, :64] for x in (X, Y)]
    if "negatives" in loss.keywords:
        with pytest.raises(ValueError, match="negatives must have 32 features"):
            F.matryoshka(loss, *views, dims=(32, 64))
    else:
        F.matryoshka(loss, *views, dims=(32, 64))
    assert not calls


def test_an_argument_that_lacks_is_missed_by_the_loss() -> None:
    with pytest.raises(TypeError, match=r"^clip\(\) missing"):
        F.matryoshka(F.clip, X, Y, dims=(32, 64))


def test_one_sweep_compiles() -> None:
    torch.compiler.reset()

    def total(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        value = F.matryoshka(partial(F.clip, logit_scale=scale), x, y, dims=(32, 64))
        return value + F.matryoshka(F.nt_xent, (x, y), dims=(32, 96))

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    (found, wanted), leaves = (f(X, Y, SCALE) for f in (compiled, total)), (X, Y, SCALE)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad(found, leaves), torch.autograd.grad(wanted, leaves))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_widened_before_they_are_normalised(dtype: torch.dtype) -> None:
    views = VIEWS.to(dtype).requires_grad_()
    found = F.matryoshka(F.mv_dhel, views, dims=(4, 12))
    assert found.dtype == torch.float32
    (gradient,) = torch.autograd.grad(found, views)
    assert gradient.dtype == dtype
    wide = views.detach().double()
    torch.testing.assert_close(found, F.matryoshka(F.mv_dhel, wide, dims=(4, 12)).float())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dims": []}, ValueError, "dims must be a sequence of one length or more"),
        ({"dims": 4}, ValueError, "dims"),
        ({"dims": [0]}, ValueError, "dims must be at least 1"),
        ({"dims": [4, 13]}, ValueError, "dims must be at most the number of features, 12, got 13"),
        ({"dims": [2.0]}, TypeError, "dims must be an integer"),
        ({"dims": [2, 4], "weights": [1.0]}, ValueError, "weights must be as many as dims, 2, got 1"),
        ({"dims": [2], "weights": ["1"]}, TypeError, "weights must be a number"),
        ({"dims": [2], "weights": [float("nan")]}, ValueError, "weights"),
    ],
    ids=str,
)
def test_bad_input(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        F.matryoshka(F.nt_xent, VIEWS, **options)


def test_bad_losses_and_views() -> None:
    with pytest.raises(TypeError, match="loss must be a function"):
        F.matryoshka(VIEWS, dims=[2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="views must hold an embedding"):
        F.matryoshka(F.nt_xent, LABELS, dims=[2])
