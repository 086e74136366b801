# SPDX-License-Identifier: Apache-2.0
"""``patch()`` and ``unpatch()``: which classes they touch, when, and that the registry knows every model."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers_models import MODELS, NAMED, OWN_CODE, installed, patched

import pycl
import pycl.compat
from pycl.compat import transformers as ours
from pycl.compat.transformers._models import FAMILIES, module_of

CLIP, SIGLIP = NAMED["CLIPModel"], NAMED["SiglipModel"]
# models that take return_loss and compare no embeddings
OTHERS = {"PatchTSMixerForPretraining", "PatchTSMixerForPrediction"}
OTHERS |= {"PatchTSMixerForTimeSeriesClassification", "PatchTSMixerForRegression"}
# "contrastive_loss" of parts of one sample, or of the few images of a batch for segmentation
ELSEWHERE = {"wav2vec2", "wav2vec2_conformer", "oneformer"}


@pytest.fixture(autouse=True)
def library() -> Iterator[Any]:
    yield installed()
    ours.unpatch()


@pytest.fixture
def classes() -> list[type]:
    return [model.class_of() for model in (*MODELS, *OWN_CODE)]


def test_twice_and_back_once(classes: list[type]) -> None:
    before = [dict(vars(c)) for c in classes]
    ours.patch()
    assert all(vars(c)["forward"] is not b["forward"] for c, b in zip(classes, before, strict=True))
    ours.patch()
    ours.patch("clip", gather=True)
    ours.unpatch()
    for c, b in zip(classes, before, strict=True):
        assert all(vars(c)[name] is b[name] for name in b), c
    assert not [f for f in sys.meta_path if type(f).__module__.startswith("pycl")]
    ours.unpatch()  # nothing to take back


def test_one_family_alone() -> None:
    clip, siglip = (vars(m.class_of())["forward"] for m in (CLIP, SIGLIP))
    with patched("clip"):
        assert vars(CLIP.class_of())["forward"] is not clip
        assert vars(SIGLIP.class_of())["forward"] is siglip


def test_signatures_stay(classes: list[type]) -> None:
    """A trainer reads which columns of a data set a model takes, and whether it can return a loss."""
    before = [inspect.signature(c.forward) for c in classes]
    with patched():
        assert [inspect.signature(c.forward) for c in classes] == before
        assert all(c.forward.__doc__ for c in classes)


def test_models_that_are_there_already() -> None:
    model = CLIP.make()
    theirs = model(**CLIP.batch(4), return_loss=True)
    with patched():
        assert type(model(**CLIP.batch(4), return_loss=True).logits_per_text) is not torch.Tensor
    assert type(model(**CLIP.batch(4), return_loss=True).logits_per_text) is torch.Tensor
    assert type(theirs.logits_per_text) is torch.Tensor


def test_a_subclass_that_calls_the_model() -> None:
    class Own(CLIP.class_of()):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    with patched():
        output = Own(CLIP.config())(**CLIP.batch(3, torch.float32), return_loss=True)
    assert type(output.logits_per_text) is not torch.Tensor
    output.loss.backward()


def test_arguments_by_position() -> None:
    model, batch = CLIP.make().eval(), CLIP.batch(4)
    inputs = batch["input_ids"], batch["pixel_values"], batch["attention_mask"], None
    wanted = model(*inputs, True).loss
    with patched():
        found = model(*inputs, True)
        torch.testing.assert_close(found.loss, wanted)
        assert type(found.logits_per_text) is not torch.Tensor
        assert model(*inputs, False).loss is None
        with pytest.raises(TypeError, match="positional"):
            model(*inputs, True, False, 1, 2)


@pytest.mark.parametrize("name", ["gpt2", "CLIP", ""])
def test_a_name_that_is_no_family(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"families: .* is no model with such a loss; there are 'align', 'altclip'"
    ) as e:
        ours.patch("clip", name)
    assert "\n" not in str(e.value)
    assert not ours._originals  # nothing was patched


def test_a_family_that_the_installed_version_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "clip_of_tomorrow", FAMILIES["clip"])
    ours.patch()
    with pytest.raises(ValueError, match="'clip_of_tomorrow' is not in the installed transformers; there are"):
        ours.patch("clip_of_tomorrow")


def test_a_class_that_the_installed_version_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "clip", FAMILIES["clip"]._replace(models=("CLIPModel", "CLIPOfTomorrow")))
    with patched("clip"):
        assert hasattr(CLIP.class_of().forward, "__wrapped__")


def test_transformers_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "transformers")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    for function in (ours.patch, ours.unpatch):
        with pytest.raises(ImportError, match="need transformers: pip install transformers"):
            function()
    monkeypatch.undo()


LATE = """
import sys
from pycl.bench.workloads.baselines import declare_torchvision
declare_torchvision()
from pycl.compat import transformers as ours
assert "transformers" not in sys.modules
ours.patch("clip", "siglip")
assert "transformers" not in sys.modules
from transformers import CLIPModel
from transformers.models.clip import modeling_clip
assert hasattr(CLIPModel.forward, "__wrapped__")
assert type(modeling_clip.__loader__).__module__ == "_frozen_importlib_external"
assert not vars(modeling_clip.__loader__).get("exec_module")
import inspect
assert "contrastive" in inspect.getsource(modeling_clip)
ours.unpatch()
from transformers import SiglipModel
assert "__wrapped__" not in vars(CLIPModel.__dict__["forward"]) or CLIPModel.forward.__module__ == CLIPModel.__module__
original = CLIPModel.__dict__["forward"]
ours.patch()
assert CLIPModel.__dict__["forward"] is not original
assert SiglipModel.forward.__wrapped__
ours.unpatch()
assert CLIPModel.__dict__["forward"] is original
"""


def test_modules_that_are_imported_after(tmp_path: Path) -> None:
    root = Path(pycl.__file__).parent.parent
    subprocess.run([sys.executable, "-W", "ignore", "-c", LATE], check=True, cwd=root, timeout=120)


def test_patching_is_fast() -> None:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        ours.patch()
        times.append(time.perf_counter() - start)
        ours.unpatch()
    assert min(times) < 0.1


def test_explain() -> None:
    clip, frames = CLIP.make(), NAMED["PeAudioFrameLevelModel"].make()
    own = "transformers.models.clip.modeling_clip.CLIPModel  1        the library's own code: "
    assert f"{own}call pycl.compat.transformers.patch()" in pycl.compat.explain(clip)
    with patched():
        assert "modeling_clip.CLIPModel  1        fused" in pycl.compat.explain(clip)
        assert "the library's own code: a matrix of logits for every frame" in pycl.compat.explain(frames)
        assert "patch(): align, altclip" in pycl.compat.explain(torch.nn.Linear(2, 2))
        assert "no loss of pycl's" in pycl.compat.explain(torch.nn.Linear(2, 2))


def forwards(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    for c in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        yield from ((c.name, f) for f in c.body if isinstance(f, ast.FunctionDef) and f.name == "forward")


def returns_a_loss(forward: ast.FunctionDef) -> bool:
    """Whether it takes return_loss and reads it otherwise than to hand it on."""
    arguments = {a.arg for a in (*forward.args.args, *forward.args.kwonlyargs)}
    tests = [node.test for node in ast.walk(forward) if isinstance(node, ast.If | ast.IfExp)]
    names = {n.id for test in tests for n in ast.walk(test) if isinstance(n, ast.Name)}
    return "return_loss" in arguments & names


def test_every_model_with_a_contrastive_loss_is_known(library: Any) -> None:
    """A new model of transformers: it belongs into ``FAMILIES``, fused or with the reason why it is not."""
    found, names = {}, set()
    for path in sorted((Path(library.__file__).parent / "models").glob("*/modeling_*.py")):
        text = path.read_text(encoding="utf-8")
        if "return_loss" in text:
            here = {name for name, forward in forwards(ast.parse(text)) if returns_a_loss(forward)} - OTHERS
            if here:
                found[path.parent.name] = here
        if "contrastive_loss" in text:
            names.add(path.parent.name)
    there = {name: row for name, row in FAMILIES.items() if name in ours._installed()}
    assert found == {name: set(row.classes) for name, row in there.items() if row.asks == "return_loss"}
    assert names <= set(there) | ELSEWHERE


def test_every_family_is_tried() -> None:
    tried = {(m.family, m.name) for m in (*MODELS, *OWN_CODE)}
    assert tried == {(family, name) for family, row in FAMILIES.items() for name in row.classes}
    assert {m.name for m in OWN_CODE} == {name for row in FAMILIES.values() for name, _ in row.own_code}
    assert module_of("clip") == CLIP.class_of().__module__
