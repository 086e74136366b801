# SPDX-License-Identifier: Apache-2.0
"""``SelfSupervisedLoss`` and ``CrossBatchMemory`` of pytorch-metric-learning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pycl.compat._peer import Hooks, find_peer
from pycl.compat._plain import is_hooked

from ._alone import MemoryAlone, SelfSupervisedAlone
from ._fused import FusedPairLoss
from ._pairs import AllPairs

_LOSSES: Any = find_peer("pytorch_metric_learning.losses")
_SelfSupervisedBase: Any = _LOSSES.SelfSupervisedLoss if _LOSSES else SelfSupervisedAlone
_MemoryBase: Any = _LOSSES.CrossBatchMemory if _LOSSES else MemoryAlone

STATE = ("queue_idx", "has_been_filled")


class SelfSupervisedLoss(_SelfSupervisedBase):
    """pytorch-metric-learning's ``SelfSupervisedLoss``: row i of one batch and row i of another are a class.

    ``symmetric=True`` gives the loss both batches as one; otherwise the first has the anchors and the second the
    references. The loss must be one of ``supported_losses()``, by the name of its class; without
    pytorch-metric-learning those are ``NTXentLoss`` and ``SupConLoss``.

    Shape:
        ``embeddings`` and ``ref_emb`` [n, d]; what the loss returns.

    Raises:
        Exception: a loss that is not supported, as the library raises it.
    """

    def __init__(self, loss: nn.Module, symmetric: bool = True, **kwargs: Any) -> None:
        super().__init__(loss, symmetric=symmetric, **kwargs)

    def _pycl_why_not(self) -> str:
        """Why its loss runs the library's code whatever it is given, or nothing."""
        return why_not_inside(self.loss)

    def forward(self, embeddings: Tensor, ref_emb: Tensor) -> Any:
        labels = torch.arange(len(embeddings), device=embeddings.device)
        if self.symmetric:
            return self.loss(torch.cat([embeddings, ref_emb]), torch.cat([labels, labels]))
        # labels of their own: the very same ones would say that row i of both is one point
        return self.loss(embeddings=embeddings, labels=labels, ref_emb=ref_emb, ref_labels=labels.clone())


class CrossBatchMemory(_MemoryBase):
    """pytorch-metric-learning's ``CrossBatchMemory``: a loss against the embeddings of the last batches.

    Every batch goes into a queue of ``memory_size`` embeddings, without gradients, and is then compared with the whole
    queue, except for each point with itself. With ``enqueue_mask`` [n] the marked points go into the queue and the
    others are compared. A batch of one point meets itself, too, as in the library.

    With pycl's ``NTXentLoss``, ``SupConLoss``, ``MultiSimilarityLoss`` or ``GeneralizedLiftedStructureLoss``, without
    a miner or an ``indices_tuple``, the pairs are not listed, O(n + memory_size) numbers instead of O(n * memory_size).
    Whatever the loss or the miner, the library's code lists the pairs; other losses of the library work as they do
    there. The queue has the dtype of the batch. With float16 this is within 4e-4 of float64, the library's sums of
    float16 exponentials were up to 5 % off it.

    ``queue_idx`` and ``has_been_filled`` travel in the metadata of ``state_dict()``, which ``torch.save`` keeps, so
    that training goes on where it stopped; the library forgets them and with them what is in the queue. The keys are
    the library's, and its state dicts load, with an empty queue as there.

    Shape:
        ``embeddings`` [n, d] and ``labels`` [n]; what the loss returns.

    Raises:
        ValueError: an ``indices_tuple`` and an ``enqueue_mask``.
        AssertionError: a batch that is larger than the queue, a mask of another length.
        Exception: a loss that is not one of ``supported_losses()``, as the library raises it.
        RuntimeError: a miner or an ``indices_tuple`` where the library is not installed.
    """

    embedding_memory: Tensor
    label_memory: Tensor
    queue_idx: int
    has_been_filled: bool

    def __init__(
        self, loss: nn.Module, embedding_size: int, memory_size: int = 1024, miner: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(loss, embedding_size, memory_size=memory_size, miner=miner, **kwargs)

    def forward(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Any = None, enqueue_mask: Tensor | None = None
    ) -> Any:
        if indices_tuple is not None and enqueue_mask is not None:
            raise ValueError("indices_tuple and enqueue_mask cannot be given both")
        if indices_tuple is not None or self.miner or _LISTS.replaced_in(self) or not takes_all_pairs(self.loss):
            return super().forward(embeddings, labels, indices_tuple, enqueue_mask)
        self.reset_stats()
        labels = labels.to(embeddings.device)
        self.embedding_memory = self.embedding_memory.to(embeddings)
        self.label_memory = self.label_memory.to(labels)
        first = self.queue_idx
        if enqueue_mask is None:
            assert len(embeddings) <= self.memory_size, (
                f"a batch of {len(embeddings)} for a queue of {self.memory_size}"
            )
            self.add_to_memory(embeddings, labels, len(embeddings))
            pairs = AllPairs(0 if len(embeddings) > 1 else None)
        else:
            assert len(enqueue_mask) == len(embeddings), f"{len(enqueue_mask)} marks for {len(embeddings)} embeddings"
            marked = embeddings[enqueue_mask]
            self.add_to_memory(marked, labels[enqueue_mask], len(marked))
            embeddings, labels = embeddings[~enqueue_mask], labels[~enqueue_mask]
            pairs = AllPairs(None)
        stored = self.memory_size if self.has_been_filled else self.queue_idx
        # a copy, which the next batch does not write into before this one's backward, with this batch in front
        queue, queue_labels = (t[:stored].roll(-first, 0) for t in (self.embedding_memory, self.label_memory))
        return self.loss(embeddings, labels, pairs, queue, queue_labels)

    def _pycl_why_not(self) -> str:
        """Why its loss runs the library's code whatever it is given, or nothing."""
        return why_not_inside(self.loss)

    def add_to_memory(self, embeddings: Tensor, labels: Tensor, batch_size: int) -> None:
        first = self.queue_idx
        self.curr_batch_idx = torch.arange(first, first + batch_size, device=labels.device) % self.memory_size
        self.embedding_memory[self.curr_batch_idx] = embeddings.detach()
        self.label_memory[self.curr_batch_idx] = labels.detach()
        self.queue_idx = (first + batch_size) % self.memory_size
        # nothing to add counts as a whole round, as in the library
        self.has_been_filled = self.has_been_filled or self.queue_idx <= first

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", {}).get(prefix[:-1])
        if metadata is not None:
            metadata.update({name: getattr(self, name) for name in STATE})

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        for name in STATE:
            if name in local_metadata:
                setattr(self, name, local_metadata[name])


_LISTS = Hooks(CrossBatchMemory, "create_indices_tuple")
_READERS = Hooks(FusedPairLoss, "forward", "compute_loss")


def why_not_inside(loss: Any) -> str:
    """Why a wrapped loss runs the library's code whatever it is given, or nothing."""
    return str(loss._pycl_why_not()) if hasattr(loss, "_pycl_why_not") else f"{type(loss).__name__} is the library's"


def takes_all_pairs(loss: Any) -> bool:
    """Whether ``AllPairs`` in the place of a list are read by nobody who may expect a list."""
    return isinstance(loss, FusedPairLoss) and not (_READERS.replaced_in(loss) or is_hooked(loss))
