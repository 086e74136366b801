# SPDX-License-Identifier: Apache-2.0
"""A causal Transformer over sequences of items, small: what two cores can train in minutes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

DIM, LAYERS, HEADS = 64, 2, 2


class Encoder(nn.Module):
    """Items ``[B, L]`` to states ``[B, L, DIM]``; a state knows its item and those before it."""

    def __init__(self, items: int, length: int, dropout: float) -> None:
        super().__init__()
        self.mask_item = items + 1
        self.table = nn.Embedding(items + 2, DIM, padding_idx=0)
        self.places = nn.Embedding(length, DIM)
        for embedding in (self.table, self.places):
            nn.init.normal_(embedding.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(DIM, HEADS, DIM, dropout, "gelu", batch_first=True, norm_first=True)
        self.transformer = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(DIM), enable_nested_tensor=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, items: Tensor) -> Tensor:
        n = items.shape[1]
        x = self.dropout(self.table(items) + self.places.weight[:n])
        # padding is behind the items, so the causal mask hides it, too
        mask = nn.Transformer.generate_square_subsequent_mask(n, device=items.device)
        return self.transformer(x, mask=mask, is_causal=True).float()

    def scores(self, states: Tensor) -> Tensor:
        """``[..., 1 + items]``; column 0 is the padding."""
        return states @ self.table.weight[: self.mask_item].T


def last(states: Tensor, items: Tensor) -> Tensor:
    """``[B, DIM]``: the state of the last item, which stands for the sequence."""
    return states[torch.arange(len(items), device=items.device), (items > 0).sum(1) - 1]
