# SPDX-License-Identifier: Apache-2.0
"""transformers' models after ``patch()``: the losses, gradients and logits that they had before."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from transformers_models import (
    MODELS,
    NAMED,
    OWN_CODE,
    Model,
    assert_same_gradients,
    forward,
    installed,
    patched,
    step,
    strict,
)

from pycl.compat import FallbackWarning
from pycl.compat._peer import _warned
from pycl.compat.transformers._lazy import Lazy

__all__ = ["strict"]  # a fixture

CLIP, SIGLIP, CLAP, FLAVA = (NAMED[n] for n in ("CLIPModel", "SiglipModel", "ClapModel", "FlavaForPreTraining"))
BRIDGETOWER, ALIGN, ROCBERT = (
    NAMED[n] for n in ("BridgeTowerForContrastiveLearning", "AlignModel", "RoCBertForPreTraining")
)
KINDS = (CLIP, ALIGN, SIGLIP, CLAP, BRIDGETOWER, NAMED["PeAudioModel"])  # each loss once
every = pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
kinds = pytest.mark.parametrize("model", KINDS, ids=lambda m: m.name)


@pytest.fixture(autouse=True)
def library() -> Any:
    return installed()


def both(model: Model, batch: dict[str, torch.Tensor], train: bool, dtype: torch.dtype = torch.float64) -> Any:
    """A step of a model, and one after ``patch()``."""
    theirs = step(model.make(dtype).train(train), batch)
    with patched():
        return step(model.make(dtype).train(train), batch), theirs


def assert_same_outputs(found: Any, wanted: Any) -> None:
    """Every field, logits with every entry."""
    assert list(found) == list(wanted)
    for name in wanted:
        if isinstance(wanted[name], torch.Tensor):
            torch.testing.assert_close(found[name], wanted[name], rtol=1e-12, atol=1e-12)
            assert found[name].requires_grad == wanted[name].requires_grad


@every
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_loss_and_gradients(model: Model, train: bool, strict: None) -> None:
    ours, theirs = both(model, model.batch(6), train)
    assert type(ours.output.loss) is torch.Tensor
    torch.testing.assert_close(ours.output.loss, theirs.output.loss, rtol=1e-12, atol=0)
    assert_same_gradients(ours.gradients, theirs.gradients, 1e-10)
    logits = [name for name, x in ours.output.items() if isinstance(x, Lazy)]
    assert all(ours.output[name].formula._dense is None for name in logits)
    assert bool(logits) == (model not in (BRIDGETOWER, ROCBERT))  # whose outputs have none of these
    assert_same_outputs(ours.output, theirs.output)


@every
def test_tuples_have_the_same_places(model: Model, strict: None) -> None:
    wanted = forward(model.make().eval(), model.batch(3), return_dict=False)
    with patched():
        found = forward(model.make().eval(), model.batch(3), return_dict=False)
    assert len(found) == len(wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        if isinstance(theirs, torch.Tensor):
            torch.testing.assert_close(mine, theirs)
        else:
            assert type(mine) is type(theirs)


@every
def test_one_pair(model: Model, strict: None) -> None:
    ours, theirs = both(model, model.batch(1), train=False)  # normalising over a batch of one fails in training
    torch.testing.assert_close(ours.output.loss, theirs.output.loss, rtol=1e-12, atol=1e-12)
    assert {n for n, g in ours.gradients.items() if g is None} == {n for n, g in theirs.gradients.items() if g is None}


@kinds
@pytest.mark.parametrize("wide", [torch.float32, torch.bfloat16])
def test_autocast(model: Model, wide: torch.dtype, strict: None) -> None:
    """The library rounds its embeddings and logits to bfloat16; ours are nearer to what float32 gives."""
    batch = model.batch(6, torch.float32)
    exact = step(model.make(torch.float32).eval(), batch)
    made = model.make(wide).eval()
    batch = model.batch(6, wide)
    with torch.autocast("cpu", torch.bfloat16, enabled=wide == torch.float32):
        theirs = step(made, batch).output
        with patched():
            ours = step(made, batch).output
    assert ours.loss.dtype == theirs.loss.dtype
    assert [x.dtype for x in ours.values() if isinstance(x, torch.Tensor)] == [
        x.dtype for x in theirs.values() if isinstance(x, torch.Tensor)
    ]
    apart = (theirs.loss.float() - exact.output.loss).abs()
    assert (ours.loss.float() - theirs.loss.float()).abs() <= 2 * apart + 0.02 * theirs.loss.float().abs()


@pytest.mark.parametrize("model", [CLIP, SIGLIP, CLAP], ids=lambda m: m.name)
@pytest.mark.parametrize("texts", [3, 5])
def test_other_numbers_of_texts(model: Model, texts: int) -> None:
    """What the library refuses is refused with its words; what it computes is computed."""
    batch = model.batch(4) | {n: x for n, x in model.batch(texts).items() if n in ("input_ids", "attention_mask")}

    def run() -> Any:
        try:
            return step(model.make(), batch)
        except (IndexError, RuntimeError) as error:
            return str(error)

    wanted = run()
    with patched():
        found = run()
    assert type(found) is type(wanted)
    if isinstance(wanted, str):
        assert found == wanted
    else:
        torch.testing.assert_close(found.output.loss, wanted.output.loss, rtol=1e-12, atol=0)
        assert_same_gradients(found.gradients, wanted.gradients, 1e-10)


@kinds
def test_without_return_loss_nothing_is_lazy(model: Model) -> None:
    with patched():
        output = model.make()(**model.batch(2))
    assert output.loss is None
    assert not any(isinstance(x, Lazy) for x in output.values())


def test_a_zero_row_is_nan_as_in_the_library(strict: None) -> None:
    def loss() -> torch.Tensor:
        model = CLIP.make()
        torch.nn.init.zeros_(model.text_projection.weight)
        return model(**CLIP.batch(4), return_loss=True).loss

    assert loss().isnan()
    with patched():
        assert loss().isnan()


def test_flava_adds_its_losses_and_clamps_its_scale(strict: None) -> None:
    found = {}
    for ours in (False, True):
        model = FLAVA.make().train()
        with torch.no_grad():
            model.flava.logit_scale.fill_(9.0)
        with patched() if ours else warnings.catch_warnings():
            output = model(**FLAVA.batch(6))  # return_loss comes from its configuration
        found[ours] = output.loss, output.loss_info.global_contrastive, model.flava.logit_scale.detach()
        assert type(output.loss_info.global_contrastive) is torch.Tensor
    torch.testing.assert_close(found[True], found[False], rtol=1e-12, atol=0)
    assert found[True][2] == 4.6052


def test_flava_without_matching_labels(strict: None) -> None:
    batch = {name: x for name, x in FLAVA.batch(6).items() if name != "itm_labels"}
    ours, theirs = both(FLAVA, batch, train=True)
    torch.testing.assert_close(ours.output.loss, theirs.output.loss, rtol=1e-12, atol=0)
    assert_same_gradients(ours.gradients, theirs.gradients, 1e-10)


def test_two_of_three_modalities(strict: None) -> None:
    model = NAMED["PeAudioVideoModel"]
    batch = {name: x for name, x in model.batch(5).items() if name not in ("input_ids", "attention_mask")}
    ours, theirs = both(model, batch, train=False)
    torch.testing.assert_close(ours.output.loss, theirs.output.loss, rtol=1e-12, atol=0)
    assert_same_gradients(ours.gradients, theirs.gradients, 1e-10)


@pytest.mark.parametrize("model", OWN_CODE, ids=lambda m: m.name)
def test_own_code_is_said_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYCL_STRICT", raising=False)
    _warned.clear()
    wanted = step(model.make().eval(), model.batch(6))
    with patched():
        made = model.make().eval()
        with pytest.warns(FallbackWarning, match=f"{model.name} runs the library's own code"):
            found = step(made, model.batch(6))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made(**model.batch(6), return_loss=True)
            made(**model.batch(6))
    torch.testing.assert_close(found.output.loss, wanted.output.loss, rtol=0, atol=0)
    assert_same_gradients(found.gradients, wanted.gradients, 0)


def test_a_loss_that_nobody_knows_is_the_library_s(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of tomorrow: its forward changed, and what it does to the logits has no rule."""
    from transformers.models.clip import modeling_clip

    def hinges(similarity: torch.Tensor) -> torch.Tensor:
        own = similarity.diagonal()
        return (similarity - own[:, None] + 0.5).clamp(min=0).mean()

    monkeypatch.setattr(modeling_clip, "image_text_contrastive_loss", hinges)
    monkeypatch.delenv("PYCL_STRICT", raising=False)
    _warned.clear()
    wanted = step(CLIP.make(), CLIP.batch(5))
    with patched(), pytest.warns(FallbackWarning, match="in a way that pycl does not know"):
        found = step(CLIP.make(), CLIP.batch(5))
    torch.testing.assert_close(found.output.loss, wanted.output.loss)
    assert_same_gradients(found.gradients, wanted.gradients, 1e-10)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_losses_of_another_make(
    smoothing: float, weight: float, library: Any, monkeypatch: pytest.MonkeyPatch, strict: None
) -> None:
    """What the model computes is read from it: smoothing, directions and weights may change."""
    from torch.nn.functional import cross_entropy
    from transformers.models.clip import modeling_clip

    def uneven(similarity: torch.Tensor) -> torch.Tensor:
        own = torch.arange(len(similarity))
        texts = cross_entropy(similarity, own, label_smoothing=smoothing)
        return texts + weight * cross_entropy(similarity.T, own, label_smoothing=smoothing)

    monkeypatch.setattr(modeling_clip, "image_text_contrastive_loss", uneven)
    ours, theirs = both(CLIP, CLIP.batch(6), train=True)
    torch.testing.assert_close(ours.output.loss, theirs.output.loss, rtol=1e-12, atol=0)
    assert_same_gradients(ours.gradients, theirs.gradients, 1e-10)
