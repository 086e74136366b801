# SPDX-License-Identifier: Apache-2.0
"""What the drop-ins stand on where pytorch-metric-learning is not installed: its interface, and its defaults alone."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn


def need_library(what: str) -> NoReturn:
    """Raise for what pycl has no form of."""
    raise RuntimeError(f"{what} runs pytorch-metric-learning's own code: pip install pytorch-metric-learning")


class LossAlone(nn.Module):
    """A loss over pairs with the cosine similarity and the class's own reducer."""

    def __init__(
        self,
        temperature: float,
        distance: Any = None,
        reducer: Any = None,
        embedding_regularizer: Any = None,
        embedding_reg_weight: float = 1,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__()
        options = {"distance": distance, "reducer": reducer, "embedding_regularizer": embedding_regularizer}
        if given := [name for name, value in options.items() if value is not None]:
            need_library(f"{type(self).__name__}({given[0]}=...)")
        if collect_stats:
            need_library(f"{type(self).__name__}(collect_stats=True)")
        self.temperature = temperature
        self.distance = self.reducer = self.embedding_regularizer = None
        self.embedding_reg_weight = embedding_reg_weight
        self.collect_stats = False

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Any = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        _check_labels(embeddings, labels)
        labels = None if labels is None else labels.to(embeddings.device)
        if ref_emb is None:
            ref_emb, ref_labels = embeddings, labels
        elif ref_labels is not None:
            ref_labels = ref_labels.to(ref_emb.device)
        _check_labels(ref_emb, ref_labels)
        info = self.compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)["loss"]
        losses = info["losses"]
        if info["reduction_type"] == "element":
            losses = losses[losses > 0]
            return losses.mean() if len(losses) else (embeddings * 0).sum()
        return losses if isinstance(losses, Tensor) else (embeddings * 0).sum()

    def compute_loss(self, *_: Any) -> dict[str, Any]:
        raise NotImplementedError

    def zero_losses(self) -> dict[str, Any]:
        return {"loss": {"losses": 0, "indices": None, "reduction_type": "already_reduced"}}


def _check_labels(embeddings: Tensor, labels: Tensor | None) -> None:
    if labels is not None and len(labels) != len(embeddings):
        raise ValueError(f"there must be one label per embedding, got {len(labels)} for {len(embeddings)}")
    if labels is not None and labels.dim() != 1:
        raise ValueError(f"labels must have shape [n], got {tuple(labels.shape)}")


class WrapperAlone(nn.Module):
    """A wrapper around one of the losses that stand alone, known by the names of their classes."""

    @staticmethod
    def supported_losses() -> list[str]:
        return ["NTXentLoss", "SupConLoss"]

    @classmethod
    def check_loss_support(cls, loss_name: str) -> None:
        if loss_name not in cls.supported_losses():
            # pytorch-metric-learning raises no more special an exception
            raise Exception(f"{cls.__name__} without pytorch-metric-learning has no {loss_name}")


class SelfSupervisedAlone(WrapperAlone):
    def __init__(self, loss: nn.Module, symmetric: bool = True) -> None:
        super().__init__()
        self.check_loss_support(type(loss).__name__)
        self.loss = loss
        self.symmetric = symmetric


class MemoryAlone(WrapperAlone):
    embedding_memory: Tensor
    label_memory: Tensor

    def __init__(
        self,
        loss: nn.Module,
        embedding_size: int,
        memory_size: int = 1024,
        miner: Any = None,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__()
        self.check_loss_support(type(loss).__name__)
        if miner is not None:
            need_library("CrossBatchMemory(miner=...)")
        self.loss = loss
        self.miner = None
        self.embedding_size = embedding_size
        self.memory_size = memory_size
        self.collect_stats = bool(collect_stats)
        self.reset_queue()

    def reset_queue(self) -> None:
        self.register_buffer("embedding_memory", torch.zeros(self.memory_size, self.embedding_size))
        self.register_buffer("label_memory", torch.zeros(self.memory_size, dtype=torch.int64))
        self.has_been_filled = False
        self.queue_idx = 0

    def reset_stats(self) -> None:
        pass

    def create_indices_tuple(self, *_: Any) -> NoReturn:
        need_library("a list of pairs")

    def forward(self, *_: Any) -> Tensor:
        need_library("CrossBatchMemory with an indices_tuple")
