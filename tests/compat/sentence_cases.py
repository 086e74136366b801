# SPDX-License-Identifier: Apache-2.0
"""Calls of sentence-transformers' losses for the parity tests, with stand-ins for its models."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from parity import Case, embeddings
from torch import Tensor, nn

ALL = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")


def columns(n: int, d: int, k: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    return tuple(embeddings(n, d, seed, dtype) for seed in range(1, k + 1))


def similarity(name: str) -> Any:
    from sentence_transformers import util

    return getattr(util, name)


def ranking(*, similarity_fct: str = "cos_sim", cached: int = 0, symmetric: bool = False, **options: Any) -> Any:
    """A call of the loss on embeddings, in ``cached`` parts of a mini-batch if there are any."""

    def run(lib: Any, *x: Tensor) -> Tensor:
        name = f"{'Cached' * bool(cached)}MultipleNegatives{'Symmetric' * symmetric}RankingLoss"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            loss = getattr(lib, name)(Encoder(), similarity_fct=similarity(similarity_fct), **options)
        if cached:
            loss.mini_batch_size = cached
            return loss.calculate_loss([list(part.split(cached)) for part in x])
        return loss.compute_loss_from_embeddings(list(x), None)

    return run


class Encoder(nn.Sequential):
    """Stands for a model: embeddings are the features themselves, and the tokenizer is one of transformers'."""

    max_seq_length = 8

    def __init__(self) -> None:
        super().__init__(nn.Identity())
        from transformers import PreTrainedTokenizerFast

        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer())

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        return {**features, "sentence_embedding": features["embedding"]}


class Guide(Encoder):
    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        return {**features, "sentence_embedding": features["guide"]}


def tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = ["[PAD]", "[UNK]", "a", "man", "woman", "dog", "cat", "is", "runs", "eats", "red", "blue", "apple"]
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    return made


def tiny_encoder(folder: Path) -> Any:
    """A model of sentence-transformers with one layer."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=16, max_position_embeddings=32, **sizes)).save_pretrained(folder / "bert")
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer(), pad_token="[PAD]", unk_token="[UNK]")
    words.save_pretrained(folder / "bert")
    return SentenceTransformer(modules=[Transformer(str(folder / "bert")), Pooling(16)], device="cpu")


def guided(*, cached: int = 0, **options: Any) -> Any:
    """A call of the loss: the first half of the columns are embeddings, the second what the guide sees."""

    def run(lib: Any, *x: Tensor) -> Tensor:
        model, guide = Encoder(), Guide()
        mine, seen = x[: len(x) // 2], [z.detach() for z in x[len(x) // 2 :]]
        if cached:
            loss = lib.CachedGISTEmbedLoss(model, guide, mini_batch_size=cached, **options)
            return loss.calculate_loss(*([list(z.split(cached)) for z in part] for part in (mine, seen)))
        loss = lib.GISTEmbedLoss(model, guide, **options)
        return loss([{"embedding": a, "guide": b} for a, b in zip(mine, seen, strict=True)], None)

    return run


def guided_columns(n: int, d: int, k: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    seen = [embeddings(n, 3, 20 + seed) + 0.7 * embeddings(n, 3, 20) for seed in range(k)]  # the guide's agree somewhat
    seen[1][-1] = seen[1][0]  # a duplicate positive: as similar as the threshold of its twin
    return (*columns(n, d, k, dtype), *(z.to(dtype) for z in seen))


def margins(*, cached: int = 0, **options: Any) -> Any:
    """A call of ``MegaBatchMarginLoss`` on embeddings, in parts of ``cached`` if there are any."""

    def run(lib: Any, *x: Tensor) -> Tensor:
        loss = lib.MegaBatchMarginLoss(Encoder(), use_mini_batched_version=bool(cached), **options)
        return loss.calculate_loss([list(z.split(cached or len(z))) for z in x])

    return run


def triplets(labels: Sequence[float], *, soft: bool = False, metric: str = "euclidean", **options: Any) -> Any:
    """A call of ``BatchHardTripletLoss``, or of its soft form, on embeddings of these classes."""

    def run(lib: Any, x: Tensor) -> Tensor:
        distance = getattr(lib.BatchHardTripletLossDistanceFunction, f"{metric}_distance")
        loss = getattr(lib, f"BatchHard{'SoftMargin' * soft}TripletLoss")(Encoder(), distance, **options)
        return loss.compute_loss_from_embeddings([x], torch.tensor(labels))

    return run


HALF = 2e-2
HARDNESS = ("in_batch_negatives", "hard_negatives", "all_negatives")
CASES = {
    "pairs": Case(ranking(), columns(7, 5, 2), 1e-9),
    "triplets": Case(ranking(scale=7.0), columns(6, 4, 3), 1e-9),
    "four columns": Case(ranking(scale=3.0), columns(5, 8, 4), 1e-9),
    "one triplet": Case(ranking(directions=ALL, scale=2.0), columns(1, 4, 3), 1e-9),
    "dot": Case(ranking(similarity_fct="dot_score", scale=1.0), columns(9, 3, 3), 1e-9),
    "float32": Case(ranking(), columns(12, 8, 2, torch.float32)),
    "bfloat16": Case(ranking(), columns(8, 8, 3, torch.bfloat16), HALF),
    "all directions, pairs": Case(ranking(directions=ALL), columns(7, 4, 2), 1e-9),
    "all directions, triplets": Case(ranking(directions=ALL, scale=5.0), columns(6, 4, 3), 1e-9),
    "queries": Case(ranking(directions=ALL[:2], scale=4.0), columns(6, 4, 3), 1e-9),
    "documents": Case(ranking(directions=(ALL[0], ALL[3]), scale=4.0), columns(6, 4, 4), 1e-9),
    "both ways, joint": Case(ranking(directions=(ALL[0], ALL[2]), scale=6.0), columns(8, 4, 3), 1e-9),
    "both ways, each": Case(
        ranking(directions=(ALL[0], ALL[2]), partition_mode="per_direction"), columns(7, 4, 3), 1e-9
    ),
    "one way, each": Case(ranking(partition_mode="per_direction"), columns(5, 4, 2), 1e-9),
    "no strength": Case(ranking(hardness_mode="all_negatives"), columns(5, 4, 3), 1e-9),
    "ragged": Case(ranking(scale=4.0), (*columns(6, 4, 2), embeddings(9, 4, 3), embeddings(2, 4, 4)), 1e-9),
    "ragged, two directions": Case(
        ranking(scale=4.0, directions=(ALL[0], ALL[2])), (*columns(6, 4, 2), embeddings(9, 4, 3)), 1e-9
    ),
    "symmetric": Case(ranking(symmetric=True, scale=9.0), columns(8, 4, 2), 1e-9),
    "cached": Case(ranking(cached=3), columns(8, 4, 3), 1e-9),
    "cached, all directions": Case(ranking(cached=4, directions=ALL, scale=5.0), columns(7, 4, 3), 1e-9),
    "cached symmetric": Case(ranking(cached=3, symmetric=True), columns(6, 4, 2), 1e-9),
    "gist": Case(guided(), guided_columns(8, 4, 2), 1e-9),
    "gist triplets": Case(guided(temperature=0.05), guided_columns(7, 4, 3), 1e-9),
    "gist margin": Case(guided(margin=0.2, temperature=0.1), guided_columns(9, 4, 3), 1e-9),
    "gist relative": Case(guided(margin=0.1, margin_strategy="relative"), guided_columns(9, 4, 2), 1e-9),
    "gist, negative margin": Case(guided(margin=-3.0, temperature=0.2), guided_columns(6, 4, 3), 1e-9),
    "gist, no anchors": Case(guided(contrast_anchors=False, temperature=0.1), guided_columns(6, 4, 3), 1e-9),
    "gist, no positives": Case(guided(contrast_positives=False, temperature=0.1), guided_columns(6, 4, 2), 1e-9),
    "gist, neither": Case(
        guided(contrast_positives=False, contrast_anchors=False, temperature=0.1), guided_columns(6, 4, 3), 1e-9
    ),
    "gist one pair": Case(guided(), guided_columns(1, 4, 2), 1e-9),
    "gist float32": Case(guided(temperature=0.1), guided_columns(9, 8, 3, torch.float32)),
    "cached gist": Case(guided(cached=3, temperature=0.1, margin=0.1), guided_columns(8, 4, 4), 1e-9),
}
CASES |= {
    f"{mode}, {name}": Case(ranking(hardness_mode=mode, hardness_strength=3.0, **options), x, 1e-12)
    for mode in HARDNESS
    for name, options, x in (
        ("pairs", {"scale": 5.0}, columns(7, 4, 2)),
        ("four columns", {"scale": 2.0}, columns(6, 4, 4)),
        ("dot", {"scale": 1.0, "similarity_fct": "dot_score"}, columns(6, 3, 3)),
        ("all directions", {"scale": 4.0, "directions": ALL}, columns(6, 4, 3)),
        ("each", {"scale": 4.0, "directions": (ALL[0], ALL[2]), "partition_mode": "per_direction"}, columns(6, 4, 3)),
        ("one triplet", {"scale": 4.0}, columns(1, 4, 3)),
        ("cached", {"scale": 4.0, "cached": 4}, columns(7, 4, 3)),
    )
}
CLASSES: dict[str, Sequence[float]] = {
    "three of each": (0, 1, 2, 0, 1, 2, 0, 1, 2),
    "some alone": (7, 7, 1, 2, 2, 2, 3, -4, 2**40),
    "no positives": tuple(range(9)),
    "no negatives": (5,) * 9,
    "fractions": (0.25, 0.75, 0.25) * 3,
}
CASES |= {
    f"hardest, {metric}, {name}{', soft' * soft}": Case(
        triplets(labels, soft=soft, metric=metric, **({} if soft else {"margin": 0.4})), columns(9, 5, 1), 1e-12
    )
    for metric in ("euclidean", "cosine")
    for name, labels in CLASSES.items()
    for soft in (False, True)
    if (metric, name) != ("cosine", "no negatives")  # the library's gradient is rounding alone
}
CASES |= {
    "hardest, the margin's default": Case(triplets((0, 1) * 4), columns(8, 3, 1), 1e-12),
    "hardest, one": Case(triplets((3,)), columns(1, 3, 1), 1e-12),
    "hardest, float32": Case(triplets((0, 1, 1, 0) * 4), columns(16, 8, 1, torch.float32)),
    "hardest, bfloat16": Case(triplets((0, 1, 1, 0) * 2, metric="cosine"), columns(8, 8, 1, torch.bfloat16), HALF),
    "margins": Case(margins(), columns(9, 5, 2), 1e-12),
    "margins, one pair": Case(margins(), columns(1, 5, 2), 1e-12),
    "margins, easy": Case(margins(positive_margin=-0.9, negative_margin=0.95), columns(7, 5, 2), 1e-12),
    "margins, in parts": Case(margins(cached=4, positive_margin=0.9, negative_margin=0.1), columns(11, 4, 2), 1e-12),
    "margins, float32": Case(margins(cached=5), columns(12, 8, 2, torch.float32)),
    "margins, bfloat16": Case(margins(), columns(8, 8, 2, torch.bfloat16), HALF),
}
