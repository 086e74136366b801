# SPDX-License-Identifier: Apache-2.0
"""The images of the examples: where they come from, what is wrong with a folder, and how views are drawn."""

from __future__ import annotations

import argparse
import hashlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from helpers.example_runner import imported, write_folder


@pytest.fixture(scope="module")
def images() -> Iterator[ModuleType]:
    with imported("common.images.data") as module:
        yield module


@pytest.fixture(scope="module")
def evaluate() -> Iterator[ModuleType]:
    with imported("common.images.evaluate") as module:
        yield module


@pytest.fixture(scope="module")
def augment() -> Iterator[ModuleType]:
    with imported("common.images.augment") as module:
        yield module


def load(
    images: ModuleType, root: Path | None = None, limit: int | None = None, side: int = 16, tail: float = 1.0
) -> Any:
    return images.load(argparse.Namespace(data_root=root, limit=limit, image_size=side, long_tail=tail))


def test_digits_split_keeps_classes_and_shares_no_image(images: ModuleType) -> None:
    data = load(images)
    train, test = data.train.labels.bincount(), data.test.labels.bincount()
    assert int(train.sum() + test.sum()) == 1797
    assert ((test / (train + test) - 0.2).abs() < 0.01).all()
    pixels = [split.images.flatten(1).float() for split in (data.test, data.train)]
    assert torch.cdist(*pixels, p=1).min() > 0
    limited = load(images, limit=33)
    assert sorted(limited.train.labels.bincount().tolist()) == [3] * 7 + [4] * 3


@pytest.mark.parametrize("colour", [True, False])
def test_folder_has_channels_of_its_pictures(images: ModuleType, tmp_path: Path, colour: bool) -> None:
    data = load(images, write_folder(tmp_path / "squares", colour=colour))
    assert data.train.images.shape == (16, 3 if colour else 1, 16, 16)
    assert data.train.images.dtype == torch.uint8
    assert (data.channels, data.side, data.classes) == (3 if colour else 1, 16, ["dark", "light"])


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve random pictures in the files of CIFAR-10, whose sums torchvision is told."""
    from pycl.bench.workloads.baselines import declare_torchvision

    declare_torchvision()
    datasets = pytest.importorskip("torchvision.datasets", reason="reads the files of CIFAR")
    rng = np.random.default_rng(0)
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    sums = []
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name in names:
        batch = {"data": rng.integers(0, 256, (2, 3072), dtype=np.uint8), "labels": rng.integers(0, 10, 2).tolist()}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    sums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in (*names, "batches.meta")}
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [[name, sums[name]] for name in names[:-1]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)


def test_cifar_as_torchvision_stores_it(images: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, monkeypatch)
    for root in (tmp_path, tmp_path / "cifar-10-batches-py"):
        data = load(images, root)
        assert data.train.images.shape == (10, 3, 32, 32)
        assert data.test.images.shape == (2, 3, 32, 32)
        assert data.classes[3] == "class 3"
    first = pickle.loads((tmp_path / "cifar-10-batches-py" / "data_batch_1").read_bytes())
    assert data.train.images[0].flatten().tolist() == first["data"][0].tolist()
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(images.Refused, match=r"--data-root: CIFAR10 in .* is not complete"):
        load(images, tmp_path)


def test_bad_data_root_is_explained(images: ModuleType, tmp_path: Path) -> None:
    def message(root: Path) -> str:
        with pytest.raises(images.Refused) as refused:
            load(images, root)
        return str(refused.value)

    assert "has no folder 'train'" in message(tmp_path / "nowhere")
    (tmp_path / "empty" / "train" / "cat").mkdir(parents=True)
    assert "no .jpg or .png below" in message(tmp_path / "empty")
    assert "at least two classes" in message(write_folder(tmp_path / "one", colour=True, classes=("cat",)))
    extra = write_folder(tmp_path / "extra", colour=True)
    for name in ("dark", "light", "unknown"):
        (extra / "test" / name).mkdir(parents=True)
    assert "classes ['unknown'] are in" in message(extra)
    (extra / "test" / "unknown").rmdir()
    (extra / "test" / "light").rmdir()
    assert "classes ['light'] are in" in message(extra)
    broken = write_folder(tmp_path / "broken", colour=True)
    (broken / "train" / "dark" / "torn.png").write_bytes(b"no image")
    assert "torn.png is not an image" in message(broken)
    (broken / "train" / "dark" / "torn.png").unlink()
    short = broken / "train" / "dark" / "1.png"
    short.write_bytes(short.read_bytes()[:200])
    assert "1.png is not an image" in message(broken)
    few = write_folder(tmp_path / "few", colour=True, each=1)
    assert "too few images" in message(few)


def test_long_tail_keeps_the_first_class_and_a_share_of_the_last(images: ModuleType) -> None:
    split = images.Split(torch.zeros(400, 1, 8, 8, dtype=torch.uint8), torch.arange(4).repeat(100))
    counts = images.long_tail(split, 8.0).labels.bincount().tolist()
    assert counts == [100, 50, 25, 12]
    assert images.long_tail(split, 1.0).labels.tolist() == split.labels.tolist()
    assert images.long_tail(split, 1e9).labels.bincount()[-1] == 2  # or the class had no pair


def test_a_long_tail_is_of_the_training_alone(images: ModuleType, evaluate: ModuleType) -> None:
    """Labels are known of all images, where nothing was trained on them."""
    data = load(images, limit=100, tail=10.0)
    assert len(data.train.labels) < len(data.whole.labels) == len(data.test.labels) == 100
    encoder = torch.nn.Flatten()
    found = evaluate.features(encoder, data, data.whole)
    assert found.train.labels.tolist() == data.whole.labels.tolist()
    assert len(found.train.images) == 100
    assert evaluate.features(encoder, data).train.labels.tolist() == data.train.labels.tolist()
    with pytest.raises(images.Refused, match="--long-tail must be at least 1"):
        load(images, tail=float("nan"))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("small", [False, True])
def test_views_are_drawn_from_torchs_generator(augment: ModuleType, channels: int, small: bool) -> None:
    images = torch.randint(256, (6, channels, 16, 16), dtype=torch.uint8)
    views = augment.Augment(channels, 16, small=small)

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return views(images, 3)

    once, again, other = drawn(1), drawn(1), drawn(2)
    side = 8 if small else 16
    assert once.shape == (18, channels, side, side)
    assert 0 <= once.min() < once.max() <= 1
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert not torch.equal(once[:6], once[6:12])  # the views of an image differ
