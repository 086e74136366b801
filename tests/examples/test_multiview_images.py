# SPDX-License-Identifier: Apache-2.0
"""The multi-view example in miniature: it learns, repeats itself, and draws and writes what it says."""

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
def example() -> Iterator[ModuleType]:
    with imported("multiview_images") as module:
        yield module


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    with one_thread():
        yield


def test_digits_from_start_to_end(example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `make demo` runs it, with fewer steps."""
    summary = example.main([*TINY, "--seeds", "2", "--loss-cost", "--out", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "kNN accuracy" in shown
    assert "dense eager (ms)" in shown
    assert "the loss in plain torch" in shown
    for picture in ("similarity.png", "loss_cost.png", "seed-0/dashboard.png"):
        check_picture(tmp_path / picture)

    written = json.loads((tmp_path / "summary.json").read_text())
    assert written == json.loads(json.dumps(summary))
    assert written["data"] == {"name": "digits", "train": 60, "test": 60, "classes": 10}
    assert written["run"]["seeds"] == [0, 1]
    trained = written["trainings"]["mv_dhel"]
    assert all(math.isfinite(loss) for loss in trained["last_loss"])
    for stage in ("before", "after"):
        measures = trained[stage]
        assert {"knn", "linear", "few_labels", "effective_rank", "alignment", "uniformity"} < set(measures)
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


@pytest.mark.parametrize("colour", [True, False])
def test_folder_of_images(example: ModuleType, tmp_path: Path, colour: bool) -> None:
    root = write_folder(tmp_path / "squares", colour=colour)
    arguments = ["--data-root", str(root), "--image-size", "16", "--views", "2", "--loss", "dcl"]
    summary = example.main([*TINY, *arguments, "--out", str(tmp_path / "out")])
    assert summary["data"] == {"name": "squares", "train": 16, "test": 4, "classes": 2}
    assert summary["pixels"]["linear"][0] == 1.0  # light and dark are told apart by their pixels
    check_picture(tmp_path / "out" / "similarity.png")


def test_one_seed_is_one_result(example: ModuleType, tmp_path: Path) -> None:
    def run(name: str, seed: int) -> tuple[list[float], dict]:
        options = ["--seed", str(seed), "--out", str(tmp_path / name)]
        summary = example.main([*TINY, "--learnable-temperature", *options])
        trained = summary["trainings"]["mv_dhel"]
        return trained["last_loss"], trained["after"]

    first, again, other = run("first", 3), run("again", 3), run("other", 4)
    assert first == again
    assert first[0] != other[0]
    rows = [json.loads(line) for line in (tmp_path / "first" / "log.jsonl").read_text().splitlines()]
    temperatures = [row["temperature"] for row in rows if "loss" in row]
    assert temperatures[0] != temperatures[-1]


@pytest.mark.parametrize("loss", ["simclr", "pairwise", "dcl", "dhel", "mv_info_nce", "mv_dhel", "poly_view", "cacr"])
def test_dense_form_is_the_same_loss(example: ModuleType, loss: str) -> None:
    """What the profile compares with has the values and the gradients of what is trained."""
    views = 4 if example.LOSSES[loss].many_views else 2
    args = example.parse(["--loss", loss, "--views", str(views), "--limit", "20"])
    task = example.MultiView(example.images.load(args), args)
    z = torch.randn(views, 9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    losses = [task.loss(z, z), task.dense_loss(z, z)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, z)[0] for loss in losses))


@pytest.mark.parametrize("name", ["mv_dhel", "nt_xent", "mv_info_nce"])
def test_cost_is_that_of_the_same_loss(example: ModuleType, name: str) -> None:
    x = torch.randn(3, 9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = [example.loss_cost.make_loss(name, side, 0.3)(x) for side in ("dense", "pycl")]
    torch.testing.assert_close(*values)


def refuse(example: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message with which the example ends."""
    with pytest.raises(SystemExit) as stop:
        example.main([*TINY, *arguments])
    assert stop.value.code not in (0, None)
    return str(stop.value.code) + capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--views", "1"], "--views must be at least 2"),
        (["--loss", "dcl", "--views", "3"], "--loss dcl compares two views, got --views 3"),
        (["--loss", "pairwise", "--learnable-temperature"], "--learnable-temperature: not with --loss pairwise"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--limit", "1"], "--limit must be at least 2"),
        (["--data-root", "nowhere"], "has no folder 'train'"),
    ],
)
def test_bad_options_are_explained(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in refuse(example, capsys, "--out", str(tmp_path), *arguments)
