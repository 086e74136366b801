# SPDX-License-Identifier: Apache-2.0
"""sentence-transformers' sparse encoders: their in-batch loss alone, in the losses around it, and in their trainer."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.example_runner import one_thread
from parity import Largest, peer
from sentence_cases import ALL, Encoder, columns, tokenizer
from torch import Tensor

from pycl.compat import explain

MODULE = "sentence_transformers.sparse_encoder.losses"
DROP_IN = "pycl.compat.sentence_transformers.sparse_encoder"
OURS = {"SparseMultipleNegativesRankingLoss", "CSRLoss"}
RANKING = "SparseMultipleNegativesRankingLoss"


@pytest.fixture
def library() -> ModuleType:
    return peer(MODULE)


@pytest.fixture
def ours(library: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("PYCL_STRICT", "1")
    return importlib.import_module(f"{DROP_IN}.losses")


def test_every_name_of_the_library(library: ModuleType, ours: ModuleType) -> None:
    names: dict[str, Any] = {}
    exec(
        f"import {DROP_IN} as a\nfrom {DROP_IN} import SparseEncoder, SparseEncoderTrainer, losses as b\n"
        f"import {DROP_IN}.losses as c\nfrom {DROP_IN}.losses import SpladeLoss, CachedSpladeLoss, FlopsLoss",
        names,
    )
    assert names["SpladeLoss"] is library.SpladeLoss
    theirs = importlib.import_module("sentence_transformers.sparse_encoder")
    assert names["SparseEncoder"] is theirs.SparseEncoder
    assert {*theirs.__all__, "losses"} <= set(names["a"].__all__)
    for module in (names["a"].losses, names["b"], names["c"]):
        assert module is ours
        assert set(library.__all__) <= set(module.__all__)
        for name in library.__all__:
            assert (getattr(module, name) is not getattr(library, name)) == (name in OURS)
    single = ours.sparse_multiple_negatives_ranking
    assert single.SparseMultipleNegativesRankingLoss is ours.SparseMultipleNegativesRankingLoss


@pytest.mark.parametrize("name", sorted(OURS))
def test_is_the_library_s_class(name: str, ours: ModuleType, library: ModuleType) -> None:
    from sentence_transformers.base.model_card import fullname

    mine, theirs = getattr(ours, name), getattr(library, name)
    assert issubclass(mine, theirs)
    assert inspect.signature(mine.__init__) == inspect.signature(theirs.__init__)
    assert fullname(mine) == fullname(theirs)
    a, b = mine(Encoder()), theirs(Encoder())
    assert a.state_dict().keys() == b.state_dict().keys()
    assert vars(a).keys() == vars(b).keys()
    said, expected = a.get_config_dict(), b.get_config_dict()
    assert said.pop("computed_by") == "pycl.compat.sentence_transformers"
    assert {k: v for k, v in said.items() if k != "loss"} == {k: v for k, v in expected.items() if k != "loss"}
    assert a.citation == b.citation
    assert "fused" in explain(a)
    assert "has a fused" in explain(b)


OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "all directions": {"directions": ALL},
    "each": {"directions": (ALL[0], ALL[2]), "partition_mode": "per_direction", "scale": 0.3},
    "hard": {"hardness_mode": "all_negatives", "hardness_strength": 0.7},
}


def ranked(lib: ModuleType, x: list[Tensor], **options: Any) -> list[Tensor]:
    x = [z.clone().requires_grad_() for z in x]
    value = getattr(lib, RANKING)(Encoder(), **options).compute_loss_from_embeddings(x, None)
    value.backward()
    return [value.detach(), *(z.grad for z in x)]


@pytest.mark.parametrize("case", OPTIONS)
def test_of_many_zeros(case: str, ours: ModuleType, library: ModuleType) -> None:
    """Dense embeddings as SPLADE's model gives them: of a word each, no less than 0, most of them 0."""
    x = [(z - 0.8).relu() for z in columns(7, 600, 3)]
    assert all((z == 0).double().mean() > 0.7 for z in x)
    mine, theirs = (ranked(lib, x, **OPTIONS[case]) for lib in (ours, library))
    torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13)


def test_no_matrix_is_made(ours: ModuleType) -> None:
    n, d = 1024, 8
    with Largest() as largest:
        ranked(ours, [z.relu() for z in columns(n, d, 2, torch.float32)])
    assert largest.numel <= n * n / 4


@pytest.mark.filterwarnings("ignore::pycl.compat.FallbackWarning")
def test_sparse_tensors_are_the_library_s_error(
    ours: ModuleType, library: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = [(z - 0.5).relu().to_sparse() for z in columns(6, 20, 2)]
    with pytest.raises(RuntimeError, match="embeddings that are sparse tensors"):
        ranked(ours, x)
    monkeypatch.delenv("PYCL_STRICT")
    for lib in (ours, library):
        with pytest.raises(NotImplementedError, match="aten::index"):
            ranked(lib, x)


def test_alone_it_raises_the_library_s_error(ours: ModuleType) -> None:
    with pytest.raises(AttributeError, match="should not be used alone"):
        getattr(ours, RANKING)(Encoder())([], None)


def features(n: int, k: int) -> tuple[list[dict[str, Tensor]], list[Tensor]]:
    x = [(z - 0.3).relu().requires_grad_() for z in columns(n, 40, k)]
    return [{"embedding": z, "input_ids": z} for z in x], x


AROUND: dict[str, dict[str, Any]] = {
    "SpladeLoss": {"document_regularizer_weight": 0.3, "query_regularizer_weight": 0.2},
    "CachedSpladeLoss": {
        "document_regularizer_weight": 0.3,
        "query_regularizer_weight": 0.2,
        "mini_batch_size": 3,
    },
}


@pytest.mark.parametrize("name", AROUND)
def test_the_losses_around_it(name: str, ours: ModuleType, library: ModuleType) -> None:
    found = []
    for lib in (ours, library):
        inner = getattr(lib, RANKING)(Encoder())
        given, x = features(7, 3)
        parts = getattr(lib, name)(Encoder(), inner, **AROUND[name])(given, None)
        sum(parts.values()).backward()
        found.append([{k: float(v.detach()) for k, v in parts.items()}, *(z.grad for z in x)])
    mine, theirs = found
    assert mine[0] == pytest.approx(theirs[0], rel=1e-6)  # the cached loss keeps its parts in float32
    assert len(mine[0]) == 3
    torch.testing.assert_close(mine[1:], theirs[1:], rtol=1e-10, atol=1e-13)


class Decoded(Encoder):
    """Stands for a model with an autoencoder."""

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        x = features["embedding"]
        parts = {f"decoded_embedding_{k}": 0.5 * x for k in ("k", "4k", "aux", "k_pre_bias")}
        return {"sentence_embedding": x, "sentence_embedding_backbone": x.detach() + 1, **parts}


def test_csr_makes_a_fused_loss_where_it_is_given_none(ours: ModuleType, library: ModuleType) -> None:
    found = []
    for lib in (ours, library):
        loss = lib.CSRLoss(Decoded())
        assert type(loss.loss) is getattr(lib, RANKING)
        given, x = features(6, 3)
        parts = loss(given, None)
        sum(parts.values()).backward()
        found.append([*parts.values(), *(z.grad for z in x)])
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-13)
    given = library.SparseTripletLoss(Encoder())
    assert ours.CSRLoss(Decoded(), loss=given).loss is given
    assert type(given) is library.SparseTripletLoss


def tiny(folder: Path) -> Any:
    """A sparse encoder of one layer."""
    from sentence_transformers.sparse_encoder import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import SpladePooling, Transformer
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(vocab_size=16, max_position_embeddings=32, **sizes)).save_pretrained(folder / "bert")
    words = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(), pad_token="[PAD]", unk_token="[UNK]", mask_token="[UNK]"
    )
    words.save_pretrained(folder / "bert")
    first = Transformer(str(folder / "bert"), transformer_task="fill-mask")
    return SparseEncoder(modules=[first, SpladePooling("max")], device="cpu")


NOUNS, VERBS = ("man", "woman", "dog", "cat"), ("runs", "eats", "is red", "is blue")
PAIRS = [(f"a {noun} {verb}", f"{noun} {verb} apple") for noun in NOUNS for verb in VERBS]


def trained(lib: ModuleType, name: str, folder: Path) -> list[float]:
    from datasets import Dataset
    from sentence_transformers.sparse_encoder import SparseEncoderTrainer, SparseEncoderTrainingArguments

    model = tiny(folder)
    loss = getattr(lib, name)(model, getattr(lib, RANKING)(model), **AROUND[name])
    data = Dataset.from_dict({"anchor": [a for a, _ in PAIRS], "positive": [b for _, b in PAIRS]})
    settings = SparseEncoderTrainingArguments(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = SparseEncoderTrainer(model=model, args=settings, train_dataset=data, loss=loss)
    trainer.train()
    return [row["base_loss"] for row in trainer.state.log_history if "base_loss" in row]


@pytest.mark.parametrize("name", AROUND)
def test_trainer(name: str, ours: ModuleType, library: ModuleType, tmp_path: Path) -> None:
    with one_thread():
        mine, theirs = (trained(lib, name, tmp_path) for lib in (ours, library))
    assert mine == pytest.approx(theirs, rel=1e-4)
    assert len(set(mine)) == 3
