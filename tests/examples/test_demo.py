# SPDX-License-Identifier: Apache-2.0
"""The demo in miniature: it runs, it is repeatable, it reads folders of images and says what is wrong with them."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers.example_runner import check_picture, imported, one_thread, write_folder

TINY = ["--max-steps", "3", "--batch-size", "16", "--limit", "60", "--quiet"]


@pytest.fixture(scope="module")
def demo() -> Iterator[ModuleType]:
    with imported("multiview") as module:
        yield module


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def no_cost(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the timing, which one test has already run."""
    row = demo.loss_cost.Cost(256, 2.0, 1.0, 4.0, 0.0, 0.0)
    monkeypatch.setattr(demo.loss_cost, "measure", lambda *_, **__: [row, row._replace(instances=512)])


def test_digits_from_start_to_end(demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = demo.main([*TINY, "--seeds", "2", "--out", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "kNN accuracy" in shown
    assert "dense eager (ms)" in shown
    check_picture(tmp_path / "similarity.png")
    check_picture(tmp_path / "loss_cost.png")

    written = json.loads((tmp_path / "summary.json").read_text())
    assert written == json.loads(json.dumps(summary))
    assert written["data"] == {"name": "digits", "train": 60, "test": 60, "classes": 10}
    assert written["run"]["seeds"] == [0, 1]
    assert all(math.isfinite(loss) for loss in written["run"]["losses"])
    for stage in ("before", "after"):
        measures = written["stages"][stage]
        assert set(measures) == {"knn", "linear", "few_labels", "effective_rank", "alignment", "uniformity"}
        assert all(0 <= measures[key][0] <= 1 for key in ("knn", "linear", "few_labels"))
        assert 1 <= measures["effective_rank"][0] <= 60
    small, large = written["loss_cost"]
    assert (small["instances"], large["instances"]) == (256, 512)
    for row in (small, large):
        assert row["relative_difference"] < 1e-5
        assert row["dense_ms"] > 0
        assert row["pycl_ms"] > 0
    if sys.platform != "win32":
        # four 512 x 512 matrices of float32 are 4 MiB: a mark inherited from this process would show less
        assert large["dense_mib"] >= 4


@pytest.mark.usefixtures("no_cost")
@pytest.mark.parametrize("colour", [True, False])
def test_folder_of_images(demo: ModuleType, tmp_path: Path, colour: bool) -> None:
    root = write_folder(tmp_path / "squares", colour=colour)
    arguments = ["--data-root", str(root), "--image-size", "16", "--seeds", "1", "--views", "2", "--loss", "nt_xent"]
    summary = demo.main([*TINY, *arguments, "--out", str(tmp_path / "out")])
    assert summary["data"] == {"name": "squares", "train": 16, "test": 4, "classes": 2}
    assert summary["stages"]["pixels"]["linear"][0] == 1.0  # light and dark are told apart by their pixels
    check_picture(tmp_path / "out" / "similarity.png")
    data = demo.training.load(root, image_size=16)
    assert data.train.images.shape == (16, 3 if colour else 1, 16, 16)
    assert data.augment.__name__ == ("augment_photo" if colour else "augment_drawing")


@pytest.mark.parametrize("n_threads", [1, 2])
def test_one_seed_is_one_result(demo: ModuleType, n_threads: int) -> None:
    torch.set_num_threads(n_threads)
    data = demo.training.load(None, image_size=32, limit=60)
    arguments = demo.parse(TINY)
    first, again, other = (demo.train_one_seed(data, arguments, seed) for seed in (3, 3, 4))
    assert first.loss == again.loss
    assert first.measures == again.measures
    assert first.loss != other.loss


@pytest.mark.parametrize("name", ["mv_dhel", "nt_xent", "mv_info_nce"])
@pytest.mark.parametrize("views", [2, 4])
def test_dense_formula_is_the_same_loss(demo: ModuleType, name: str, views: int) -> None:
    generator = torch.Generator().manual_seed(0)
    losses, grads = [], []
    for side in ("dense", "pycl"):
        x = torch.randn(views, 9, 5, generator=generator.manual_seed(0), dtype=torch.float64).requires_grad_()
        losses.append(demo.loss_cost.make_loss(name, side, 0.3)(x))
        grads.append(torch.autograd.grad(losses[-1], x)[0])
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*grads)


def test_digits_split_keeps_classes_and_shares_no_image(demo: ModuleType) -> None:
    data = demo.training.load(None, image_size=32)
    train, test = data.train.labels.bincount(), data.test.labels.bincount()
    assert int(train.sum() + test.sum()) == 1797
    assert ((test / (train + test) - 0.2).abs() < 0.01).all()
    distance = torch.cdist(data.test.images.flatten(1), data.train.images.flatten(1), p=1)
    assert distance.min() > 0
    limited = demo.training.load(None, image_size=32, limit=33)
    assert sorted(limited.train.labels.bincount().tolist()) == [3] * 7 + [4] * 3


@pytest.mark.parametrize("augment", ["augment_drawing", "augment_photo", "crop_drawing", "crop_photo"])
def test_augmentation_is_drawn_from_its_generator(demo: ModuleType, augment: str) -> None:
    function = getattr(sys.modules["data"], augment)
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    once, again, other = (function(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    side = 8 if augment.startswith("crop") else 16
    assert once.shape == (6, 3, side, side)
    assert once.isfinite().all()
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def refuse(demo: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message with which the demo ends."""
    with pytest.raises(SystemExit) as stop:
        demo.main([*TINY, *arguments])
    assert stop.value.code not in (0, None)
    return str(stop.value.code) + capsys.readouterr().err


def test_bad_data_root_is_explained(demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def message(root: Path) -> str:
        return refuse(demo, capsys, "--data-root", str(root))

    assert "has no folder 'train'" in message(tmp_path / "nowhere")
    (tmp_path / "empty" / "train" / "cat").mkdir(parents=True)
    assert "no .jpg or .png below" in message(tmp_path / "empty")
    assert "at least two classes" in message(write_folder(tmp_path / "one", colour=True, classes=("cat",)))
    extra = write_folder(tmp_path / "extra", colour=True)
    (extra / "test" / "unknown").mkdir(parents=True)
    assert "classes ['unknown'] are in" in message(extra)
    broken = write_folder(tmp_path / "broken", colour=True)
    (broken / "train" / "dark" / "torn.png").write_bytes(b"no image")
    assert "torn.png is not an image" in message(broken)
    few = write_folder(tmp_path / "few", colour=True, each=1)
    assert "too few images" in message(few)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--views", "1"], "--views must be at least 2"),
        (["--batch-size", "1"], "--batch-size must be at least 2"),
        (["--temperature", "0"], "--temperature must be positive"),
        (["--lr", "nan"], "--lr must be positive"),
        (["--seeds", "0"], "--seeds must be at least 1"),
    ],
)
def test_bad_options_are_explained(
    demo: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in refuse(demo, capsys, *arguments)
