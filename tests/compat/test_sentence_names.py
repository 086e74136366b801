# SPDX-License-Identifier: Apache-2.0
"""What is around sentence-transformers' losses: names, model cards, the dtype of the result."""

from __future__ import annotations

import contextlib
import importlib
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from parity import peer
from sentence_cases import ALL, columns, guided, guided_columns, ranking, tiny_encoder
from torch import Tensor, nn

MODULE = "sentence_transformers.sentence_transformer.losses"
DROP_IN = "pycl.compat.sentence_transformers"
OURS = {
    f"{cached}{name}"
    for cached in ("", "Cached")
    for name in ("MultipleNegativesRankingLoss", "MultipleNegativesSymmetricRankingLoss", "GISTEmbedLoss")
} | {"BatchHardSoftMarginTripletLoss", "BatchHardTripletLoss", "MegaBatchMarginLoss"}


@pytest.fixture
def library() -> ModuleType:
    return peer(MODULE)


def spellings() -> list[ModuleType]:
    """Every way the library's own import lines are written, with the drop-in's name in them."""
    names: dict[str, Any] = {}
    exec(
        f"import {DROP_IN} as a\nfrom {DROP_IN} import losses as b\nimport {DROP_IN}.losses as c\n"
        f"from {DROP_IN}.losses import *\nfrom {DROP_IN}.losses import MatryoshkaLoss",
        names,
    )
    assert names.keys() >= OURS
    return [names["a"], names["b"], names["c"]]


def test_every_name_of_the_library(library: ModuleType) -> None:
    assert len(library.__all__) > 30
    for module in spellings():
        assert set(library.__all__) <= set(dir(module))
        assert set(library.__all__) <= set(module.__all__)
        for name in library.__all__:
            mine, its = getattr(module, name), getattr(library, name)
            assert mine.__name__ == name
            assert (mine.__module__.startswith(DROP_IN)) == (mine is not its) == (name in OURS)
        with pytest.raises(AttributeError, match="NoSuchLoss"):
            _ = module.NoSuchLoss


def test_modules_of_single_losses(library: ModuleType) -> None:
    from pycl.compat.sentence_transformers import losses

    for name in ("multiple_negatives_ranking", "matryoshka"):
        module = getattr(losses, name)
        assert {n for n in vars(getattr(library, name)) if not n.startswith("_")} <= set(vars(module))
    assert losses.multiple_negatives_ranking.MultipleNegativesRankingLoss is losses.MultipleNegativesRankingLoss


def card(loss: nn.Module, model: Any) -> str:
    from datasets import Dataset
    from sentence_transformers.base.model_card import generate_model_card

    data = Dataset.from_dict({"anchor": ["a man", "a dog"], "positive": ["man runs", "dog eats"]})
    described = model.model_card_data
    described.set_losses([loss])
    described.train_datasets = described.extract_dataset_metadata(data, [{}], loss, "train")
    return str(generate_model_card(model))


@pytest.mark.parametrize("name", sorted(OURS))
def test_card(name: str, library: ModuleType, tmp_path: Path) -> None:
    """The library's card but for one line, which says what computed the loss."""
    from test_sentence_transformers import build

    from pycl.compat.sentence_transformers import losses

    model = tiny_encoder(tmp_path)
    cards = [card(build(lib, name), model).splitlines() for lib in (library, losses)]
    more = [line for line in cards[1] if line not in cards[0]]
    assert any("computed_by" in line and DROP_IN in line for line in more)
    assert [line for line in cards[0] if name in line] == [line for line in cards[1] if name in line]
    assert any(f"[<code>{name}</code>](https://sbert.net/" in line for line in cards[1])


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_subclass_has_its_own_name(name: str, library: ModuleType) -> None:
    from sentence_transformers.base.model_card import fullname

    from pycl.compat.sentence_transformers import losses

    kind = getattr(losses, name)
    assert fullname(kind) == f"{getattr(library, name).__module__}.{name}"
    with pytest.warns(DeprecationWarning, match="deprecated") if "Symmetric" in name else contextlib.nullcontext():
        own = type("OwnLoss", (kind,), {})
    assert fullname(own) == f"{own.__module__}.OwnLoss"
    assert pickle.loads(pickle.dumps(kind)) is kind
    assert sys.modules[kind.__module__].__name__.startswith(DROP_IN)


CASES: dict[str, tuple[Any, tuple[Tensor, ...]]] = {
    "pairs": (ranking(), columns(6, 8, 2)),
    "dot": (ranking(similarity_fct="dot_score"), columns(6, 8, 3)),
    "all directions": (ranking(directions=ALL), columns(6, 8, 3)),
    "hard": (ranking(hardness_mode="hard_negatives", hardness_strength=2.0), columns(6, 8, 3)),
    "cached": (ranking(cached=4), columns(6, 8, 2)),
    "gist": (guided(temperature=0.1), guided_columns(6, 8, 3)),
    "cached gist": (guided(cached=4, temperature=0.1), guided_columns(6, 8, 3)),
}


DTYPES = [  # of the embeddings, and autocast's; torch combines no two half types
    (dtype, half)
    for dtype in (torch.float32, torch.bfloat16, torch.float64)
    for half in (None, torch.bfloat16, torch.float16)
    if (dtype, half) != (torch.bfloat16, torch.float16)
]


@pytest.mark.parametrize(("dtype", "half"), DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_result_has_the_library_s_dtype(
    case: str, dtype: torch.dtype, half: torch.dtype | None, library: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYCL_STRICT", "1")
    run, inputs = CASES[case]
    ours = importlib.import_module(DROP_IN)
    with contextlib.nullcontext() if half is None else torch.autocast("cpu", half):
        mine, its = (run(lib, *(z.to(dtype).requires_grad_() for z in inputs)) for lib in (ours, library))
    assert mine.dtype == its.dtype
    torch.testing.assert_close(mine, its, rtol=3e-2, atol=3e-2)
