# SPDX-License-Identifier: Apache-2.0
"""How good the features of an image encoder are: classes told apart by neighbours and by a line."""

from __future__ import annotations

from statistics import mean

import torch
from torch import Generator, Tensor, nn

from common.images.data import Dataset, Split, pick
from common.images.encoders import encode
from pycl import metrics

FEW_LABELS, FEW_LABELS_DRAWS = 10, 5
CHUNK = 512


def settle_batch_norm(encoder: nn.Module, images: Tensor) -> None:
    """Sets the running statistics to those of the plain images: an untrained network has none worth using."""
    norms = [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
    encoder.train()
    for part in images[: len(images) // CHUNK * CHUNK or None].split(CHUNK):
        encode(encoder, part.float().div(255))
    encoder.eval()
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum


def features(encoder: nn.Module, data: Dataset, labelled: Split | None = None) -> Dataset:
    """The features of the plain images in place of the images.

    ``labelled`` takes the place of the train split where classifiers know labels of other images than were trained on.
    """
    settle_batch_norm(encoder, data.train.images)

    def of(split: Split) -> Split:
        parts = [encode(encoder, part.float().div(255)) for part in split.images.split(CHUNK)]
        return Split(torch.cat(parts).float(), split.labels)

    return data._replace(train=of(labelled or data.train), test=of(data.test))


def knn(found: Dataset) -> float:
    """Accuracy of a vote of the nearest training images."""
    return metrics.knn_accuracy(found.train.images, found.train.labels, found.test.images, found.test.labels)


def probes(found: Dataset, seed: int, *, all_labels: bool = True) -> dict[str, float]:
    """Test accuracies of linear classifiers on the features, with all labels and with few."""
    found = found.to(torch.device("cpu"))
    generator = Generator().manual_seed(seed)
    few = [pick(found.train, FEW_LABELS, generator) for _ in range(FEW_LABELS_DRAWS)]
    result = {"few_labels": mean(metrics.linear_probe_accuracy(*draw, *found.test) for draw in few)}
    if all_labels:
        result["linear"] = metrics.linear_probe_accuracy(*found.train, *found.test)
    return result
