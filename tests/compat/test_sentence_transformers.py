# SPDX-License-Identifier: Apache-2.0
"""sentence-transformers: values, gradients, errors and attributes of its losses with in-batch negatives."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.spawn import on_ranks
from parity import Largest, assert_same, embeddings, golden, measure, peer
from sentence_cases import ALL, CASES, HARDNESS, Encoder, Guide, columns, guided, guided_columns, ranking
from torch import Tensor, nn

PEER = "sentence-transformers"
MODULE = "sentence_transformers.sentence_transformer.losses"


@pytest.fixture(autouse=True)
def nothing_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCL_STRICT", "1")


@pytest.fixture
def fallbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    from pycl.compat._peer import _warned

    monkeypatch.delenv("PYCL_STRICT")
    _warned.clear()


@pytest.fixture
def library() -> ModuleType:
    return peer(MODULE)


@pytest.fixture
def ours(library: ModuleType) -> ModuleType:
    return importlib.import_module("pycl.compat.sentence_transformers")


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, ours: ModuleType) -> None:
    assert_same(measure(CASES[case], ours), golden(PEER)[case], CASES[case].tolerance)


@pytest.mark.parametrize("case", CASES)
def test_live(case: str, ours: ModuleType, library: ModuleType) -> None:
    assert_same(measure(CASES[case], ours), measure(CASES[case], library), CASES[case].tolerance)


@pytest.mark.parametrize("case", [case for case in CASES if "gist" in case])
def test_guided_in_several_tiles(case: str, ours: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    part = importlib.import_module(f"{ours.__name__}.guided")
    monkeypatch.setattr(part, "_TILE", 1)
    monkeypatch.setattr(part, "_FEWEST", 3)
    assert_same(measure(CASES[case], ours), golden(PEER)[case], CASES[case].tolerance)


def test_without_the_library() -> None:
    """An interpreter that does not find sentence-transformers, whatever is installed."""
    program = "import sys; sys.modules['sentence_transformers'] = None; import pycl.compat.sentence_transformers"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "ImportError: pycl.compat.sentence_transformers needs sentence-transformers" in found.stderr
    assert "pip install" in found.stderr


RANKINGS = [f"{cached}MultipleNegatives{way}RankingLoss" for cached in ("", "Cached") for way in ("", "Symmetric")]
GUIDED = ["GISTEmbedLoss", "CachedGISTEmbedLoss"]


def build(lib: Any, name: str, **options: Any) -> Any:
    models = [Encoder(), Guide()][: 1 + (name in GUIDED)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return getattr(lib, name)(*models, **options)


@pytest.mark.parametrize("name", [*RANKINGS, *GUIDED])
def test_is_the_library_s_class(name: str, ours: ModuleType, library: ModuleType) -> None:
    mine, theirs = getattr(ours, name), getattr(library, name)
    assert issubclass(mine, theirs)
    assert mine.__name__ == theirs.__name__
    assert inspect.signature(mine.__init__) == inspect.signature(theirs.__init__)
    for method in ("forward", "calculate_loss", "compute_loss_from_embeddings"):
        if hasattr(theirs, method):
            found = [
                [(p.name, p.kind, p.default) for p in inspect.signature(getattr(cls, method)).parameters.values()]
                for cls in (mine, theirs)
            ]
            assert found[0] == found[1]
    a, b = build(ours, name), build(library, name)
    assert a.state_dict().keys() == b.state_dict().keys()
    mine_said, theirs_said = a.get_config_dict(), b.get_config_dict()
    assert mine_said.pop("computed_by") == "pycl.compat.sentence_transformers"
    assert [mine_said.pop("guide", None) is None, *mine_said.items()] == [
        theirs_said.pop("guide", None) is None,
        *theirs_said.items(),
    ]
    assert getattr(a, "citation", None) == getattr(b, "citation", None)  # not all have one
    assert a.temperature == b.temperature
    assert set(a._modules) == set(b._modules) >= {"model"}


@pytest.mark.parametrize("name", RANKINGS)
@pytest.mark.parametrize(
    "options", [{"scale": 0.0}, {"directions": ()}, {"directions": ("doc_to_doc",)}, {"partition_mode": "alone"}]
)
def test_same_errors(name: str, options: dict[str, Any], ours: ModuleType, library: ModuleType) -> None:
    if "Symmetric" in name and "scale" not in options:
        options = {"scale": -1.0}
    with pytest.raises(ValueError) as theirs:  # noqa: PT011
        build(library, name, **options)
    with pytest.raises(ValueError) as mine:  # noqa: PT011
        build(ours, name, **options)
    assert str(mine.value) == str(theirs.value)


@pytest.mark.usefixtures("fallbacks")
def test_too_few_columns(ours: ModuleType) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        build(ours, "MultipleNegativesRankingLoss").compute_loss_from_embeddings([torch.ones(3, 2)], None)
    with pytest.raises(ValueError, match="Expected 2 or 3 embeddings"):
        guided()(ours, *guided_columns(4, 3, 4))
    with pytest.raises(ValueError, match="same length"):
        build(ours, "CachedGISTEmbedLoss").calculate_loss([[torch.ones(2, 2)]] * 2, [])


@pytest.mark.parametrize("name", [name for name in RANKINGS if "Symmetric" in name])
def test_deprecated_classes_say_so(name: str, ours: ModuleType, library: ModuleType) -> None:
    for lib in (ours, library):
        with pytest.warns(DeprecationWarning, match="deprecated") as caught:
            getattr(lib, name)(Encoder())
        assert Path(caught[0].filename).name == Path(__file__).name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(ours)


def squared(a: Tensor, b: Tensor) -> Tensor:
    return -torch.cdist(a, b).square()


UNFUSED = {
    "similarity": ({"similarity_fct": squared, "scale": 1.0}, "similarity_fct=squared"),
    "an object": ({"similarity_fct": partial(squared), "scale": 1.0}, "similarity_fct=partial"),
}


@pytest.mark.usefixtures("fallbacks")
@pytest.mark.parametrize("case", UNFUSED)
def test_unfused_options_run_the_library_s_code(case: str, ours: ModuleType, library: ModuleType) -> None:
    from pycl.compat import FallbackWarning

    options, why = UNFUSED[case]
    x = list(columns(6, 4, 3))
    mine, theirs = (build(lib, RANKINGS[0], **options) for lib in (ours, library))
    with pytest.warns(FallbackWarning, match=f"MultipleNegativesRankingLoss runs the library's own code: {why}"):
        found = mine.compute_loss_from_embeddings(x, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        assert mine.compute_loss_from_embeddings(x, None) == found  # says so once
    assert found == theirs.compute_loss_from_embeddings(x, None)
    mine, theirs = (build(lib, RANKINGS[2], **options) for lib in (ours, library))
    with pytest.warns(FallbackWarning, match="CachedMultipleNegativesRankingLoss"):
        found = mine.calculate_loss([[z] for z in x])
    assert found == theirs.calculate_loss([[z] for z in x])


@pytest.mark.parametrize("case", UNFUSED)
def test_strict(case: str, ours: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="PYCL_STRICT=1"):
        build(ours, RANKINGS[0], **UNFUSED[case][0]).compute_loss_from_embeddings(list(columns(6, 4, 3)), None)


@pytest.mark.usefixtures("fallbacks")
def test_a_guide_s_own_similarity_counts(ours: ModuleType) -> None:
    from pycl.compat import FallbackWarning

    x = guided_columns(6, 4, 2)
    features = [{"embedding": a, "guide": b} for a, b in zip(x[:2], x[2:], strict=True)]

    class Halved(ours.GISTEmbedLoss):
        def sim_matrix(self, a: Tensor, b: Tensor) -> Tensor:
            return super().sim_matrix(a, b) / 2

    plain = ours.GISTEmbedLoss(Encoder(), Guide(), temperature=0.2)(features, None)
    with pytest.warns(FallbackWarning, match="sim_matrix of its own"):
        found = Halved(Encoder(), Guide(), temperature=0.1)(features, None)
    torch.testing.assert_close(found, plain)


@pytest.mark.parametrize("similarity", ["cos_sim", "dot_score"])
@pytest.mark.parametrize("mode", HARDNESS)
def test_a_learned_scale_with_hardness(mode: str, similarity: str, ours: ModuleType, library: ModuleType) -> None:
    found = []
    for lib in (ours, library):
        scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        x = [z.requires_grad_() for z in columns(6, 4, 3)]
        options = {"scale": scale, "hardness_mode": mode, "hardness_strength": 3.0, "similarity_fct": similarity}
        ranking(**options)(lib, *x).backward()
        found.append([scale.grad, *(z.grad for z in x)])
    assert found[0][0] != 0
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_guided_in_half(dtype: torch.dtype, ours: ModuleType, library: ModuleType) -> None:
    x = guided_columns(9, 8, 3, dtype)
    run = guided(temperature=0.5, margin=-3.0)  # nothing near the threshold
    found, expected = run(ours, *x), run(library, *x)
    assert found.dtype == expected.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


def test_rounding_at_the_threshold_drops_no_candidate(ours: ModuleType) -> None:
    """To this guide all pairs are alike, up to the lengths of the embeddings and so to rounding."""
    n = 64
    lengths = torch.linspace(1, 3, n)[:, None]
    x = columns(n, 5, 2, torch.float32)
    seen = [embeddings(1, 7, seed, torch.float32) * lengths for seed in (3, 4)]
    alone = {"contrast_anchors": False, "contrast_positives": False}
    found = guided(temperature=0.1, **alone)(ours, *x, *seen)
    torch.testing.assert_close(found, ranking(scale=10.0)(ours, *x))


def test_no_gradient_where_none_is_wanted(ours: ModuleType) -> None:
    x = guided_columns(5, 4, 2)
    with torch.no_grad():
        assert not guided()(ours, *(z.requires_grad_() for z in x)).requires_grad
    frozen = [x[0].detach().requires_grad_(), *(z.detach() for z in x[1:])]
    guided()(ours, *frozen).backward()
    assert frozen[0].grad.any()


@pytest.mark.parametrize("run", [ranking(directions=ALL), guided(temperature=0.1)])
def test_no_matrix_is_made(run: Any, ours: ModuleType) -> None:
    n = 2048
    x = [torch.randn(n, 4, generator=torch.Generator().manual_seed(i)).requires_grad_() for i in range(4)]
    with Largest() as largest:
        run(ours, *x).backward()
    assert 4 * n <= largest.numel <= n * n / 4


@pytest.mark.parametrize("size", [1e-20, 1e15])
def test_extremes_are_finite(size: float, ours: ModuleType) -> None:
    x = [(z * size).requires_grad_() for z in guided_columns(6, 4, 2, torch.float32)]
    (ranking(directions=ALL, scale=1e4)(ours, *x[:2]) + guided(temperature=1e-4)(ours, *x)).backward()
    assert all(z.grad.isfinite().all() for z in x[:2])


OVER_RANKS = {
    "pairs": (ranking(gather_across_devices=True), columns(10, 4, 2)),
    "all": (ranking(gather_across_devices=True, directions=ALL, scale=4.0), columns(10, 4, 3)),
    "both ways": (
        ranking(gather_across_devices=True, directions=(ALL[0], ALL[2]), partition_mode="per_direction"),
        columns(10, 4, 3),
    ),
    "cached": (ranking(gather_across_devices=True, cached=2), columns(10, 4, 3)),
    "alone": (ranking(), columns(10, 4, 2)),
    "gist": (guided(gather_across_devices=True, temperature=0.1), guided_columns(10, 4, 3)),
    "cached gist": (guided(gather_across_devices=True, temperature=0.1, cached=2), guided_columns(10, 4, 4)),
}


def rank_results(rank: int, world: int) -> dict[str, dict[str, list[Tensor]]]:
    libraries = {"theirs": peer(MODULE), "ours": importlib.import_module("pycl.compat.sentence_transformers")}
    found: dict[str, dict[str, list[Tensor]]] = {}
    for whose, lib in libraries.items():
        found[whose] = {}
        for case, (run, inputs) in OVER_RANKS.items():
            x = [z.chunk(world)[rank].clone().requires_grad_() for z in inputs]
            loss = run(lib, *x)
            loss.backward()
            found[whose][case] = [loss.detach(), *(z.grad for z in x if z.grad is not None)]
    return found


def test_two_ranks(library: ModuleType) -> None:
    for rank in on_ranks(2, rank_results, seconds=120):
        for case in OVER_RANKS:
            assert len(rank["ours"][case]) > 2
            for mine, theirs in zip(rank["ours"][case], rank["theirs"][case], strict=True):
                torch.testing.assert_close(mine, theirs, msg=lambda text, c=case: f"{c}: {text}")
