# SPDX-License-Identifier: Apache-2.0
"""Every name of a library comes from its drop-in; what is fused is said, what is not is said once."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from parity import declare_torchvision, embeddings, peer
from torch import nn

declare_torchvision()

import pycl  # noqa: E402
import pycl.compat.info_nce  # noqa: E402
import pycl.compat.lightly  # noqa: E402
import pycl.compat.open_clip  # noqa: E402
import pycl.compat.solo  # noqa: E402
from pycl.compat import FallbackWarning, _peer, explain  # noqa: E402
from pycl.compat._explain import DROP_INS  # noqa: E402

FORWARDED = {
    "lightly.loss": pycl.compat.lightly,
    "open_clip.loss": pycl.compat.open_clip,
    "info_nce": pycl.compat.info_nce,
}


def public(module: ModuleType) -> set[str]:
    names: dict[str, Any] = {}
    exec(f"from {module.__name__} import *", names)
    return set(names) - {"__builtins__"}


def own_names(library: str) -> set[str]:
    """What a module brings when it is imported; torch.compile puts more into one whose code it has seen."""
    spec = importlib.util.find_spec(library)
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    return set(getattr(fresh, "__all__", None) or (n for n in vars(fresh) if not n.startswith("_")))


@pytest.mark.parametrize("library", FORWARDED)
def test_every_name_of_the_library(library: str) -> None:
    theirs, ours = peer(library), FORWARDED[library]
    names = own_names(library)
    assert names <= public(ours)
    assert names <= set(dir(ours))
    fused = next(d.fused for d in DROP_INS if d.library == library)
    for name in names - set(fused) - set(ours.__dict__):
        mine, found = getattr(ours, name), getattr(theirs, name)
        assert mine is found or (isinstance(found, ModuleType) and mine.__name__ == found.__name__)


@pytest.mark.parametrize("drop_in", DROP_INS, ids=lambda d: d.module)
def test_names_that_are_said_to_be_fused(drop_in: Any) -> None:
    if drop_in.module.startswith("pycl.compat.sentence_transformers"):
        peer("sentence_transformers")
    ours = importlib.import_module(drop_in.module)
    here = [n for n in drop_in.fused if hasattr(ours, n)]
    assert all(getattr(ours, n).__module__.startswith("pycl.compat.") for n in here)
    # these are there beside the library alone, or gone from its newest version
    missing = {n for n in drop_in.fused if n not in here}
    if drop_in.module == "pycl.compat.pml.losses":
        assert not missing or importlib.util.find_spec("pytorch_metric_learning") is None
    else:
        assert missing <= {"CoCaLoss", "DistillClipLoss"} | {n for n in drop_in.fused if "Symmetric" in n or "MSN" in n}


def test_modules_of_the_library_have_the_fused_losses() -> None:
    peer("lightly.loss")
    from pycl.compat.lightly import loss, ntx_ent_loss, swav_loss

    assert loss is pycl.compat.lightly
    assert ntx_ent_loss.NTXentLoss is loss.NTXentLoss
    assert swav_loss.sinkhorn is loss.sinkhorn
    assert peer("lightly.loss").ntx_ent_loss.NTXentLoss is not loss.NTXentLoss
    assert importlib.import_module("pycl.compat.open_clip").loss is pycl.compat.open_clip


@pytest.mark.parametrize("ours", FORWARDED.values(), ids=lambda m: m.__name__)
def test_a_name_that_is_nowhere(ours: ModuleType) -> None:
    with pytest.raises(AttributeError, match="nor is there one of an installed"):
        _ = ours.no_such_name
    assert not hasattr(ours, "__wrapped__")


SOLO = """
import sys, torch
import solo.losses, solo.utils.sinkhorn_knopp
import pycl.compat.solo as ours
from pycl.compat.solo import *
from pycl.compat.solo import losses, byol_loss_func, simclr
assert isinstance(ours.SinkhornKnopp(), solo.utils.sinkhorn_knopp.SinkhornKnopp)
assert losses is ours and simclr.simclr_loss_func is simclr_loss_func is ours.simclr_loss_func
assert byol_loss_func is solo.losses.byol_loss_func and "byol_loss_func" in dir(ours)
assert ours.SinkhornKnopp(num_iters=0)(torch.ones(2, 2)) == "solo-learn's own"
"""


def test_solo_learn_where_it_is_installed(tmp_path: Path) -> None:
    files = {
        "solo/__init__.py": "",
        "solo/utils/__init__.py": "",
        "solo/losses/simclr.py": "def simclr_loss_func(z, indexes, temperature=0.1): ...\n",
        "solo/losses/__init__.py": "from solo.losses.simclr import simclr_loss_func\ndef byol_loss_func(): ...\n",
        "solo/utils/sinkhorn_knopp.py": "import torch\nclass SinkhornKnopp(torch.nn.Module):\n"
        '    def forward(self, Q): return "solo-learn\'s own"\n',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{SOLO}"
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, cwd=Path(pycl.__file__).parent.parent)


def test_another_package_called_solo(tmp_path: Path) -> None:
    (tmp_path / "solo").mkdir()
    (tmp_path / "solo" / "__init__.py").write_text("")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport pycl.compat.solo"
    command = [sys.executable, "-W", "error::pycl.compat.FallbackWarning", "-c", program]
    found = subprocess.run(command, cwd=Path(pycl.__file__).parent.parent, capture_output=True, text=True, check=True)
    assert "solo" not in found.stderr


def test_one_warning_for_all_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    peer("open_clip.loss")
    monkeypatch.setattr(_peer, "_warned", set())
    loss = pycl.compat.open_clip.ClipLoss()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for n in range(2, 12):
            with pytest.raises(RuntimeError):
                loss(torch.ones(n, 3), torch.ones(n, 4), 1.0)
    assert [str(w.message) for w in said if w.category is FallbackWarning] == [
        "ClipLoss runs the library's own code: features that are not two of one shape [N, d]: (2, 3) and (2, 4)"
    ]
    assert len(_peer._warned) == 1


def second_table(*losses: nn.Module) -> list[str]:
    return [" ".join(line.split()) for line in explain(*losses).partition("\n\n")[2].splitlines()[1:]]


def test_explain_of_a_model() -> None:
    lightly, theirs = pycl.compat.lightly, peer("lightly.loss")
    own = type("Mine", (lightly.DCLLoss,), {"_loss": lambda self, *_: torch.tensor(42.0), "__module__": "training"})
    model = nn.ModuleList(
        [nn.Linear(2, 2), lightly.NTXentLoss(), lightly.NTXentLoss(-0.5), theirs.SwaVLoss(), own(), pycl.NTXentLoss()]
    )
    model.append(theirs.BarlowTwinsLoss())
    assert second_table(model) == [
        "lightly.loss.swav_loss.SwaVLoss 1 the library's own code: pycl.compat.lightly has a fused SwaVLoss",
        "pycl.compat.lightly._nt_xent.NTXentLoss 1 fused",
        "pycl.compat.lightly._nt_xent.NTXentLoss 1 the library's own code: a negative temperature",
        "pycl.modules.losses.NTXentLoss 1 fused",
        "training.Mine 1 the library's own code: Mine has a _loss of its own",
    ]
    assert second_table(nn.Linear(2, 2)) == ["none no loss of pycl's, and none of a library's that a drop-in is for"]


def test_explain_of_a_process() -> None:
    kind = type("Alive", (pycl.compat.lightly.DCLLoss,), {"__module__": "training"})
    losses = [kind(), kind()]
    assert "training.Alive 2 fused" in second_table()
    del losses[:]
    assert not any("training.Alive" in line for line in second_table())


def test_explain_says_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"lightly": "1.6.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    lines = [" ".join(line.split()) for line in explain().partition("\n\n")[0].splitlines()]
    assert lines[1].startswith("pycl.compat.lightly lightly.loss 1.6.0 NTXentLoss, DirectCLRLoss")
    assert "pycl.compat.info_nce info_nce not installed InfoNCE, info_nce" in lines


def test_patched_open_clip_builds_a_fused_distill_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    library = peer("open_clip.loss")
    monkeypatch.setenv("PYCL_STRICT", "1")
    features = [embeddings(6, 4, seed).requires_grad_(seed < 2) for seed in range(4)]
    theirs = library.DistillClipLoss()(*features[:2], 5.0, *features[2:], 3.0, output_dict=True)
    pycl.compat.open_clip.patch()
    try:
        loss = importlib.import_module("open_clip.factory").DistillClipLoss()
    finally:
        pycl.compat.open_clip.unpatch()
    mine = loss(*features[:2], 5.0, *features[2:], 3.0, output_dict=True)
    for name in ("contrastive_loss", "distill_loss"):
        torch.testing.assert_close(mine[name], theirs[name])
        found, wanted = (torch.autograd.grad(m[name], features[:2], retain_graph=True) for m in (mine, theirs))
        torch.testing.assert_close(found, wanted)
