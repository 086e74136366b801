# SPDX-License-Identifier: Apache-2.0
"""What the drop-ins for open_clip stand on where it is not installed: its attributes and methods, on one process."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid

from pycl.functional._common import Scalar

DIST_IMPLS = ("bidir", "shift", "reduce", "gather")


class _Alone(nn.Module):
    def __init__(self, cache_labels: bool, rank: int, world_size: int) -> None:
        super().__init__()
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.prev_num_logits = 0
        self.labels: dict[torch.device, Tensor] = {}

    def _own_logits(self, image: Tensor, text: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        if self.world_size > 1:
            raise RuntimeError(f"the logits of {self.world_size} processes need open_clip: pip install open_clip_torch")
        logits = scale * image @ text.T
        return logits if bias is None else logits + bias


class ClipAlone(_Alone):
    def __init__(
        self, local_loss: bool, gather_with_grad: bool, cache_labels: bool, rank: int, world_size: int
    ) -> None:
        super().__init__(cache_labels, rank, world_size)
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad

    def get_ground_truth(self, device: torch.device, num_logits: int) -> Tensor:
        return torch.arange(num_logits, device=device)

    def get_logits(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Scalar, logit_bias: Scalar | None = None
    ) -> tuple[Tensor, Tensor]:
        logits = self._own_logits(image_features, text_features, logit_scale, logit_bias)
        return logits, logits.T

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Scalar,
        logit_bias: Scalar | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        of_images, of_texts = self.get_logits(image_features, text_features, logit_scale, logit_bias=logit_bias)
        labels = self.get_ground_truth(image_features.device, len(of_images))
        return packed((cross_entropy(of_images, labels) + cross_entropy(of_texts, labels)) / 2, output_dict)


class SigLipAlone(_Alone):
    def __init__(self, cache_labels: bool, rank: int, world_size: int, dist_impl: str | None) -> None:
        super().__init__(cache_labels, rank, world_size)
        self.dist_impl = dist_impl or DIST_IMPLS[0]
        assert self.dist_impl in DIST_IMPLS

    def get_ground_truth(
        self, device: torch.device, dtype: torch.dtype, num_logits: int, negative_only: bool = False
    ) -> Tensor:
        positive = torch.eye(num_logits, device=device, dtype=dtype) * (not negative_only)
        return 2 * positive - 1

    def get_logits(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Scalar, logit_bias: Scalar | None = None
    ) -> Tensor:
        return self._own_logits(image_features, text_features, logit_scale, logit_bias)

    def _loss(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Scalar,
        logit_bias: Scalar | None = None,
        negative_only: bool = False,
    ) -> Tensor:
        n = len(image_features)
        signs = self.get_ground_truth(image_features.device, image_features.dtype, n, negative_only=negative_only)
        return -logsigmoid(signs * self.get_logits(image_features, text_features, logit_scale, logit_bias)).sum() / n

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Scalar,
        logit_bias: Scalar | None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        return packed(self._loss(image_features, text_features, logit_scale, logit_bias), output_dict)


def packed(loss: Tensor, output_dict: bool) -> Tensor | dict[str, Tensor]:
    """The loss, or what open_clip's training loop adds up by name."""
    return {"contrastive_loss": loss} if output_dict else loss
