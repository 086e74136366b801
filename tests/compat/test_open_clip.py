# SPDX-License-Identifier: Apache-2.0
"""open_clip: values and gradients of ClipLoss, SigLipLoss and CoCaLoss, on one process and on two ranks."""

from __future__ import annotations

import inspect
import warnings
from types import ModuleType
from typing import Any

import pytest
import torch
from parity import Case, assert_same, declare_torchvision, embeddings, golden, measure, peer
from torch import Tensor

declare_torchvision()  # before open_clip is looked for

import pycl.compat.open_clip as ours  # noqa: E402
from pycl.compat import FallbackWarning  # noqa: E402
from pycl.compat._peer import _warned  # noqa: E402

PEER = "open_clip_torch"
MODULE = "open_clip.loss"


def features(n: int, d: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    image, text = embeddings(n, d, 1), embeddings(n, d, 2)
    return (image / image.norm(dim=1, keepdim=True)).to(dtype), (text / text.norm(dim=1, keepdim=True)).to(dtype)


def scalar(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(value, dtype=dtype)


def clip(lib: Any, *inputs: Tensor) -> Tensor:
    return lib.ClipLoss()(*inputs)


def siglip(lib: Any, *inputs: Tensor) -> Tensor:
    return lib.SigLipLoss()(*inputs)


HALF = 4e-3  # of float16 sums in the library; bfloat16 has eight times that
CASES = {
    "clip": Case(clip, (*features(7, 5), scalar(14.3)), 1e-9),
    "clip bias": Case(lambda lib, x, y, s: lib.ClipLoss()(x, y, s, scalar(-3)), (*features(12, 3), scalar(5)), 1e-9),
    "clip one": Case(clip, (*features(1, 4), scalar(9)), 1e-9),
    "clip float32": Case(clip, (*features(9, 8, torch.float32), scalar(100, torch.float32))),
    "clip number": Case(lambda lib, x, y: lib.ClipLoss()(x, y, 20.0), features(6, 8), 1e-9),
    "clip one element": Case(clip, (*features(5, 8), torch.tensor([20.0], dtype=torch.float64)), 1e-9),
    "clip dict": Case(
        lambda lib, x, y, s: lib.ClipLoss()(x, y, s, output_dict=True)["contrastive_loss"],
        (*features(6, 2), scalar(8)),
        1e-9,
    ),
    "clip float16": Case(clip, (*features(8, 8, torch.float16), scalar(10, torch.float16)), HALF),
    "clip bfloat16": Case(clip, (*features(8, 8, torch.bfloat16), scalar(10, torch.bfloat16)), 8 * HALF),
    "clip not normalised": Case(clip, (3 * embeddings(6, 4, 3), 2 * embeddings(6, 4, 4), scalar(1)), 1e-9),
    "siglip": Case(siglip, (*features(7, 5), scalar(10), scalar(-10)), 1e-9),
    "siglip no bias": Case(lambda lib, x, y, s: lib.SigLipLoss()(x, y, s, None), (*features(5, 5), scalar(4)), 1e-9),
    "siglip one": Case(siglip, (*features(1, 3), scalar(4), scalar(1)), 1e-9),
    "siglip float32": Case(siglip, (*features(11, 8, torch.float32), *map(torch.tensor, (10.0, -10.0)))),
    "siglip dict": Case(
        lambda lib, x, y, s, b: lib.SigLipLoss(dist_impl="gather")(x, y, s, b, output_dict=True)["contrastive_loss"],
        (*features(6, 2), scalar(8), scalar(0)),
        1e-9,
    ),
    "siglip float16": Case(
        siglip, (*features(8, 8, torch.float16), *(scalar(v, torch.float16) for v in (9, -9))), HALF
    ),
}


@pytest.fixture(autouse=True)
def nothing_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCL_STRICT", "1")


@pytest.fixture
def fallbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYCL_STRICT")
    _warned.clear()


@pytest.fixture
def library() -> ModuleType:
    return peer(MODULE)


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    assert_same(measure(CASES[case], ours), golden(PEER)[case], CASES[case].tolerance)


@pytest.mark.parametrize("case", CASES)
def test_live(case: str, library: ModuleType) -> None:
    assert_same(measure(CASES[case], ours), measure(CASES[case], library), CASES[case].tolerance)


def test_bias_gets_the_gradient_of_a_softmax() -> None:
    bias = scalar(-3).requires_grad_()
    clip(ours, *features(9, 4), scalar(8), bias).backward()
    torch.testing.assert_close(bias.grad, scalar(0))


@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss", "CoCaLoss"])
def test_is_the_library_s_class(name: str, library: ModuleType) -> None:
    mine, theirs = getattr(ours, name), getattr(library, name)
    assert issubclass(mine, theirs)
    assert mine.__name__ == theirs.__name__
    for method in ("__init__", "forward"):
        found = [
            [(p.name, p.kind, p.default) for p in inspect.signature(getattr(cls, method)).parameters.values()]
            for cls in (mine, theirs)
        ]
        assert found[0][: len(found[1])] == found[1]
        assert {name for name, _, _ in found[0][len(found[1]) :]} <= {
            "chunk_size",
            "use_horovod",
        }  # one since 4, one until


@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_attributes_and_state(name: str, library: ModuleType) -> None:
    mine, theirs = getattr(ours, name)(), getattr(library, name)()
    for attribute, value in vars(theirs).items():
        assert getattr(mine, attribute) == value, attribute
    assert mine.state_dict() == theirs.state_dict() == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
def test_dtype_of_the_result(dtype: torch.dtype, autocast: bool, library: ModuleType) -> None:
    x, y = features(6, 4, dtype)
    for run in (clip, lambda lib, *a: siglip(lib, *a, scalar(-5, dtype))):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            mine, theirs = (run(lib, x, y, scalar(7, dtype)) for lib in (ours, library))
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("shapes", "scale"),
    [(((4, 3), (5, 3)), 1.0), (((4, 3), (4, 2)), 1.0), (((4,), (3,)), 1.0), (((4, 3), (4, 3)), torch.ones(3, 2))],
)
@pytest.mark.parametrize("run", [clip, siglip])
@pytest.mark.usefixtures("fallbacks")
def test_same_errors(run: Any, shapes: Any, scale: Any, library: ModuleType) -> None:
    inputs = (*map(torch.ones, shapes), scale, 0.0)
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        run(library, *inputs)
    with pytest.raises(type(theirs.value)), pytest.warns(FallbackWarning):
        run(ours, *inputs)


def test_unknown_dist_impl() -> None:
    with pytest.raises(AssertionError):
        ours.SigLipLoss(dist_impl="pigeon")


class Doubled(ours.ClipLoss):
    def get_logits(self, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        of_images, of_texts = super().get_logits(*args, **options)
        return 2 * of_images, 2 * of_texts


class DoubledSigmoid(ours.SigLipLoss):
    def get_logits(self, *args: Any, **options: Any) -> Tensor:
        return 2 * super().get_logits(*args, **options)


@pytest.mark.usefixtures("fallbacks")
@pytest.mark.parametrize("cls", [Doubled, DoubledSigmoid])
def test_own_logits_of_a_subclass_count(cls: Any) -> None:
    x, y = features(6, 4)
    loss, twice = cls(), cls.__base__()
    with pytest.warns(FallbackWarning, match="get_logits of its own"):
        found = loss(x, y, scalar(3), scalar(-1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(x, y, scalar(3), scalar(-1))  # says so once
        torch.testing.assert_close(found, twice(x, y, scalar(6), scalar(-2)))


@pytest.mark.parametrize("cls", [Doubled, DoubledSigmoid])
def test_strict(cls: Any) -> None:
    with pytest.raises(RuntimeError, match="PYCL_STRICT=1"):
        cls()(*features(6, 4), scalar(3), scalar(-1))


def test_public_helpers() -> None:
    x, y = features(6, 4)
    loss = ours.ClipLoss()
    of_images, of_texts = loss.get_logits(x, y, 3.0, logit_bias=0.5)
    torch.testing.assert_close(of_images, 3 * x @ y.T + 0.5)
    torch.testing.assert_close(of_texts, of_images.T)
    assert loss.get_ground_truth(x.device, 6).tolist() == list(range(6))
    sigmoid = ours.SigLipLoss()
    torch.testing.assert_close(sigmoid.get_logits(x, y, 3.0, 0.5), of_images)
    assert sigmoid.get_ground_truth(x.device, x.dtype, 2).tolist() == [[1, -1], [-1, 1]]
    assert sigmoid.get_ground_truth(x.device, x.dtype, 2, negative_only=True).tolist() == [[-1, -1], [-1, -1]]


def test_no_matrix_is_saved() -> None:
    n, saved = 1024, []
    x, y = (z.requires_grad_() for z in features(n, 8, torch.float32))
    scale = torch.tensor(10.0, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        (ours.ClipLoss()(x, y, scale) + ours.SigLipLoss()(x, y, scale, -10.0)).backward()
    assert sum(saved) < n * n / 4


@pytest.mark.parametrize("scale", [1e4, 1e-30])
def test_extremes_are_finite(scale: float) -> None:
    x, y = (z.requires_grad_() for z in features(5, 4, torch.float32))
    (ours.ClipLoss()(x, y, scale) + ours.SigLipLoss()(x, y, scale, -scale)).backward()
    assert x.grad.isfinite().all()
    assert y.grad.isfinite().all()


def test_a_process_group_that_does_not_fit(fallbacks: None, library: ModuleType) -> None:
    x, y = features(4, 3)
    with pytest.warns(FallbackWarning, match="not running as rank 0 of 2"), pytest.raises((RuntimeError, ValueError)):
        ours.ClipLoss(world_size=2)(x, y, 1.0)
