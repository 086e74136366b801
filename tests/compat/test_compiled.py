# SPDX-License-Identifier: Apache-2.0
"""Drop-ins under ``torch.compile``: one graph, with pycl's operator and without a matrix of all pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from parity import declare_torchvision, embeddings, peer
from torch import Tensor, nn

declare_torchvision()

import pycl.compat.grad_cache as grad_cache  # noqa: E402
import pycl.compat.info_nce as info_nce  # noqa: E402
import pycl.compat.lightly as lightly  # noqa: E402
import pycl.compat.open_clip as open_clip  # noqa: E402
import pycl.compat.solo as solo  # noqa: E402
import pycl.compat.supcontrast as supcontrast  # noqa: E402
from pycl.compat import FallbackWarning  # noqa: E402

N, D = 12, 4
DENSE = {"matmul", "mm", "bmm", "einsum", "cross_entropy", "log_softmax", "logsumexp"}
ALLOWED = {
    "SwaVLoss": {"cross_entropy"},  # of [B, K] scores that are the input
    "CoCaLoss": {"cross_entropy"},  # of captions
    "HypersphereLoss": {"logsumexp"},  # of a number for each point
    "MSNLoss": {"matmul", "log_softmax"},  # of targets, whose codes are kept
}


def x(seed: int, *shape: int) -> Tensor:
    n, d = shape or (N, D)
    return embeddings(n, d, seed, torch.float32)


SCALE, BIAS = torch.tensor(7.0), torch.tensor(-3.0)
COCA = (x(2, N * 2, 5).view(N, 2, 5), torch.arange(N * 2).view(N, 2) % 5)
CASES: dict[str, tuple[Callable[[], Callable[..., Any]], tuple[Any, ...]]] = {
    "lightly NTXentLoss": (lambda: lightly.NTXentLoss(0.3), (x(0), x(1))),
    "lightly DCLLoss": (lambda: lightly.DCLLoss(0.3), (x(0), x(1))),
    "lightly DCLWLoss": (lambda: lightly.DCLWLoss(0.3), (x(0), x(1))),
    "lightly DirectCLRLoss": (lambda: lightly.DirectCLRLoss(3, 0.3), (x(0), x(1))),
    "lightly MACLLoss": (lambda: lightly.MACLLoss(0.3), (x(0), x(1))),
    "lightly HypersphereLoss": (lambda: lightly.HypersphereLoss(), (x(0), x(1))),
    "lightly KoLeoLoss": (lambda: lightly.KoLeoLoss(), (x(0),)),
    "lightly MSNLoss": (lambda: lightly.MSNLoss(), (x(0), x(1), x(2))),
    "lightly SwaVLoss": (lambda: lightly.SwaVLoss(), ([x(0), x(1)], [x(2)])),
    "lightly sinkhorn": (lambda: lightly.sinkhorn, (x(0),)),
    "open_clip ClipLoss": (lambda: open_clip.ClipLoss(), (x(0), x(1), SCALE, BIAS)),
    "open_clip SigLipLoss": (lambda: open_clip.SigLipLoss(), (x(0), x(1), SCALE, BIAS)),
    "open_clip CoCaLoss": (lambda: open_clip.CoCaLoss(2.0, 1.0), (x(0), x(1), *COCA, SCALE)),
    "open_clip DistillClipLoss": (lambda: open_clip.DistillClipLoss(), (x(0), x(1), SCALE, x(2), x(3), SCALE)),
    "grad_cache SimpleContrastiveLoss": (lambda: grad_cache.SimpleContrastiveLoss().__call__, (x(0), x(1))),
    "grad_cache targets": (lambda: grad_cache.SimpleContrastiveLoss().__call__, (x(0), x(1), torch.arange(N) % 4)),
    "info_nce InfoNCE": (lambda: info_nce.InfoNCE(), (x(0), x(1))),
    "info_nce InfoNCE negatives": (lambda: info_nce.InfoNCE(), (x(0), x(1), x(2, 20, D))),
    "solo simclr_loss_func": (lambda: solo.simclr_loss_func, (x(0), torch.arange(N // 2).repeat_interleave(2))),
    "solo nnclr_loss_func": (lambda: solo.nnclr_loss_func, (x(0), x(1))),
    "solo mocov2plus_loss_func": (lambda: solo.mocov2plus_loss_func, (x(0), x(1), x(2, D, 20))),
    "solo mocov3_loss_func": (lambda: solo.mocov3_loss_func, (x(0), x(1))),
    "solo ressl_loss_func": (lambda: solo.ressl_loss_func, (x(0), x(1), x(2, 20, D))),
    "solo SinkhornKnopp": (lambda: solo.SinkhornKnopp(), (x(0),)),
    "SupConLoss": (lambda: supcontrast.SupConLoss(), (x(0).view(N // 2, 2, D), torch.arange(N // 2) % 3)),
    "SupConLoss one": (lambda: supcontrast.SupConLoss(contrast_mode="one"), (x(0).view(N // 2, 2, D),)),
}


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PYCL_STRICT", "1")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(loss: Callable[..., Any], inputs: tuple[Any, ...]) -> tuple[Any, list[Any]]:
    graphs: list[Any] = []

    def look(module: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(module)
        return module

    return torch.compile(loss, backend=look, fullgraph=True)(*inputs), graphs


def operators(graph: torch.fx.GraphModule) -> set[str]:
    return {str(node.target) if isinstance(node.target, str) else qualified(node.target) for node in graph.graph.nodes}


def qualified(target: Any) -> str:
    owner = "pycl." if str(target).startswith("pycl.") else ""
    return owner + getattr(target, "__name__", str(target))


def need_library(name: str) -> None:
    if name.startswith("open_clip C") or "Distill" in name:
        peer("open_clip.loss")
    if "MSN" in name:
        peer("lightly.loss")


@pytest.mark.parametrize("name", CASES)
def test_one_graph_without_a_matrix(name: str) -> None:
    make, inputs = CASES[name]
    need_library(name)
    found, graphs = compiled(make(), inputs)
    torch.testing.assert_close(found, make()(*inputs))
    assert len(graphs) == 1
    named = operators(graphs[0])
    assert any(n.startswith("pycl.") for n in named), named
    assert not named & (DENSE - ALLOWED.get(name.split()[-1], set()))


@pytest.mark.parametrize("name", CASES)
def test_other_batch_sizes(name: str) -> None:
    """A ragged last batch compiles again and stays in one graph."""
    make, inputs = CASES[name]
    need_library(name)
    loss = torch.compile(make(), backend="eager", fullgraph=True)
    for keep in (8, 6, 4):
        cut = tuple(_first(i, keep) for i in inputs)
        torch.testing.assert_close(loss(*cut), make()(*cut))


def _first(given: Any, n: int) -> Any:
    if isinstance(given, list):
        return [_first(t, n) for t in given]
    return given[:n] if given.dim() else given


class OwnLogits:
    """Mixed into a loss of open_clip's."""

    def get_logits(self, *args: Any, **options: Any) -> Any:
        found = super().get_logits(*args, **options)  # type: ignore[misc]
        return tuple(2 * logits for logits in found) if isinstance(found, tuple) else 2 * found


@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_a_fall_back_compiles_as_the_library_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYCL_STRICT")
    monkeypatch.setattr("pycl.compat._peer._warned", set())
    mine, theirs = (type("Mine", (OwnLogits, getattr(m, name)), {})() for m in (open_clip, peer("open_clip.loss")))
    inputs = CASES[f"open_clip {name}"][1]
    with pytest.warns(FallbackWarning, match="Mine has a get_logits of its own"):
        found, _ = compiled(mine, inputs)
    torch.testing.assert_close(found, theirs(*inputs))


def test_a_method_that_is_set_on_one_of_two_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their code is one and the same, which is why dynamo must guard the method."""
    monkeypatch.delenv("PYCL_STRICT")
    image, text, scale = CASES["open_clip ClipLoss"][1][:3]
    plain, other = open_clip.ClipLoss(), open_clip.ClipLoss()
    other.get_logits = lambda *args, **_: tuple(3 * logits for logits in open_clip.ClipLoss.get_logits(plain, *args))
    found = [torch.compile(loss, backend="eager")(image, text, scale) for loss in (plain, other, plain)]
    for mine, loss in zip(found, (plain, other, plain), strict=True):
        torch.testing.assert_close(mine, loss(image, text, scale))
    assert found[0] != found[1]


def test_a_wrapped_loss_is_fused_too() -> None:
    """As in a training step, where the model and its loss are one compiled function."""

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.loss = nn.Linear(D, D), open_clip.ClipLoss()

        def forward(self, image: Tensor, text: Tensor) -> Tensor:
            return self.loss(self.model(image), self.model(text), SCALE)

    step = Step()
    found, graphs = compiled(step, (x(0), x(1)))
    found.backward()
    assert len(graphs) == 1
    assert not operators(graphs[0]) & (DENSE - {"linear"})
    assert step.model.weight.grad.isfinite().all()
