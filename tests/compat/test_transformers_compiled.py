# SPDX-License-Identifier: Apache-2.0
"""Patched models of transformers under torch.compile, and under what else watches their operators."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from transformers_models import NAMED, assert_same_gradients, installed, patched, step

from pycl.compat import FallbackWarning
from pycl.compat._peer import _warned
from pycl.compat.transformers._lazy import Lazy

CLIP, SIGLIP = NAMED["CLIPModel"], NAMED["SiglipModel"]
kinds = pytest.mark.parametrize("model", [CLIP, SIGLIP], ids=lambda m: m.name)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    installed()
    _warned.clear()
    torch._dynamo.reset()
    with patched():
        yield


def unpatched(model: Any) -> Any:
    from pycl.compat import transformers

    transformers.unpatch()
    found = step(model.make(), model.batch(5))
    transformers.patch()
    return found


@kinds
def test_compiled_towers_and_a_fused_loss(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCL_STRICT", "1")
    wanted, made = unpatched(model), model.make()
    graphs = CompileCounterWithBackend("aot_eager")
    for tower in (made.text_model, made.vision_model):
        tower.compile(backend=graphs, fullgraph=True)
    for _ in range(3):
        found = step(made, model.batch(5))
        assert isinstance(found.output.logits_per_text, Lazy)
        torch.testing.assert_close(found.output.loss, wanted.output.loss, rtol=1e-10, atol=0)
        assert_same_gradients(found.gradients, wanted.gradients, 1e-8)
    assert graphs.frame_count == 2


@kinds
def test_a_compiled_model_runs_its_own_code(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYCL_STRICT", raising=False)
    wanted, made = unpatched(model), torch.compile(model.make(), backend="aot_eager", fullgraph=True)
    with pytest.warns(FallbackWarning, match=r"torch\.compile traces its forward; compile its towers instead"):
        found = step(made, model.batch(5))
    torch.testing.assert_close(found.output.loss, wanted.output.loss, rtol=1e-10, atol=0)
    gradients = {name.removeprefix("_orig_mod."): g for name, g in found.gradients.items()}
    assert_same_gradients(gradients, wanted.gradients, 1e-8)


def test_what_is_traced_is_the_library_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYCL_STRICT", raising=False)
    made, batch = CLIP.make(), CLIP.batch(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert made(**batch, return_loss=True).logits_per_text.shape == (5, 5)

        def loss(scale: torch.Tensor) -> torch.Tensor:
            options = batch | {"return_loss": True}
            return torch.func.functional_call(made, {"logit_scale": scale}, (), options).loss

        found = torch.func.grad(loss)(made.logit_scale.detach())
    torch.testing.assert_close(found, unpatched(CLIP).gradients["logit_scale"], rtol=1e-10, atol=1e-12)


def test_a_mode_that_only_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCL_STRICT", "1")
    wanted, made = unpatched(CLIP), CLIP.make()
    with FlopCounterMode(display=False) as flops:
        found = step(made, CLIP.batch(5))
    torch.testing.assert_close(found.output.loss, wanted.output.loss, rtol=1e-10, atol=0)
    assert flops.get_total_flops() > 0


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints(reentrant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the towers' layers, as transformers makes them, and of the whole model."""
    monkeypatch.setenv("PYCL_STRICT", "1")
    wanted, made = unpatched(CLIP), CLIP.make()
    made.train()
    made.gradient_checkpointing_enable({"use_reentrant": reentrant})
    found = step(made, CLIP.batch(5))
    torch.testing.assert_close(found.output.loss, wanted.output.loss, rtol=1e-10, atol=0)
    assert_same_gradients(found.gradients, wanted.gradients, 1e-8)
    made.gradient_checkpointing_disable()
    batch = CLIP.batch(5)
    batch["pixel_values"].requires_grad_()  # or a reentrant checkpoint sees nothing to differentiate

    def loss(pixels: torch.Tensor) -> torch.Tensor:
        return made(**(batch | {"pixel_values": pixels}), return_loss=True).loss

    checkpoint(loss, batch["pixel_values"], use_reentrant=reentrant).backward()
    assert_same_gradients({n: p.grad for n, p in made.named_parameters()}, wanted.gradients, 1e-8)
