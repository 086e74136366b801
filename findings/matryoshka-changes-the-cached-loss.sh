#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# sentence-transformers 6.2.0: MatryoshkaLoss(model, loss, dims) around a loss with gradient caching changes that loss.
# Called by itself afterwards, as for another data set in the trainer's dict of losses, it is the Matryoshka loss, too.
# The same loss without caching stays what it was.
#
# The constructor puts a decorated calculate_loss on the loss that it is given. A second MatryoshkaLoss around the same
# loss decorates that again and stops: it truncates to every dimension what is truncated already.
#
# Seen with torch 2.13.0 (CPU), transformers 5.23.0:
#   MultipleNegativesRankingLoss: alone 0.8193, in MatryoshkaLoss 1.6887, alone again 0.8193, in another one 1.6887
#   CachedMultipleNegativesRankingLoss: alone 0.8193, in MatryoshkaLoss 1.6887, alone again 1.6887, in another one ValueError: Dimension 16 in matryoshka_dims cannot be greater than the model's embedding dimension: 4
#
# Exits with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.13.0 transformers==5.23.0 sentence-transformers==6.2.0
cd "$folder"
cat >seen.py <<'PYTHON'
import sys

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

COLUMNS = ["man runs", "dog eats", "cat is red", "woman is blue"], ["a man", "a dog", "a cat", "a woman"]


def tiny():
    """A sentence encoder of one layer and 16 dimensions."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=16, max_position_embeddings=32, **sizes)).save_pretrained("bert")
    words = ["[PAD]", "[UNK]", "a", "man", "woman", "dog", "cat", "is", "runs", "eats", "red", "blue"]
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]").save_pretrained("bert")
    return SentenceTransformer(modules=[Transformer("bert"), Pooling(16)], device="cpu").eval()


def value(loss, model):
    try:
        return f"{loss([model.preprocess(column) for column in COLUMNS], None).item():.4f}"
    except ValueError as error:
        return f"ValueError: {error}"


model, found = tiny(), {}
for kind in (losses.MultipleNegativesRankingLoss, losses.CachedMultipleNegativesRankingLoss):
    loss = kind(model)
    alone = value(loss, model)
    nested = value(losses.MatryoshkaLoss(model, loss, [16, 4]), model)
    again = value(loss, model)
    twice = value(losses.MatryoshkaLoss(model, loss, [16, 4]), model)
    print(f"{kind.__name__}: alone {alone}, in MatryoshkaLoss {nested}, alone again {again}, in another one {twice}")
    found[kind.__name__.startswith("Cached")] = alone != nested, again == alone, again == nested, twice == nested
sys.exit(0 if found == {False: (True, True, False, True), True: (True, False, True, False)} else 1)
PYTHON
env/bin/python seen.py
