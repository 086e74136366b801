# SPDX-License-Identifier: Apache-2.0
"""The recommender in miniature: reading, augmenting, ranking, both contrasts, a whole run and a resumed one."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers.example_runner import check_picture, imported, one_thread
from torch import Tensor

ITEMS = 30
TINY = [
    "--batch-size",
    "16",
    "--length",
    "8",
    "--quiet",
    "--device",
    "cpu",
    "--checkpoint-every",
    "2",
    "--min-count",
    "5",
]


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    with imported("sequential_recommendation") as module:
        yield module


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 users who choose items by their number, from a random one on: the next item can be learnt."""
    starts = torch.randint(ITEMS, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    lines = [f"u{user} i{(start + i) % ITEMS}" for user, start in enumerate(starts) for i in range(7 + user % 3)]
    path = tmp_path_factory.mktemp("sequences") / "pairs.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def task(example: ModuleType, root: Path, *arguments: str) -> torch.nn.Module:
    args = example.parse([*TINY, "--data-root", str(root), *arguments])
    args.contrast = args.contrast[0]
    torch.manual_seed(0)
    return example.NextItem(example.sequences.load(args), args)


def load(example: ModuleType, path: Path, *arguments: str) -> object:
    return example.sequences.load(example.parse(["--data-root", str(path), *arguments]))


def test_reading(example: ModuleType, tmp_path: Path) -> None:
    text = "a x\na y\nb x\na z\nb y\nb z\nc x\nc y\nd z\na rare\n"
    (tmp_path / "folder").mkdir()
    with gzip.open(tmp_path / "folder" / "pairs.txt.gz", "wt") as file:
        file.write(text)
    data = load(example, tmp_path / "folder", "--min-count", "2")
    assert [user.tolist() for user in data.users] == [[1, 2, 3], [1, 2, 3]]
    assert data.items == 3
    assert data.dropped == (
        "dropped: 1 users and 1 items with fewer than 2, 1 users with fewer than 3 items, 0 users beyond --limit"
    )
    everything = load(example, tmp_path / "folder" / "pairs.txt.gz", "--min-count", "1")
    assert [user.tolist() for user in everything.users] == [[1, 2, 3, 4], [1, 2, 3]]


def test_the_core_is_stable(example: ModuleType) -> None:
    pairs = [(str(u), str(i)) for u in range(6) for i in range(u + 1)]
    kept = example.sequences._core(pairs, 3)
    assert kept == [(str(u), str(i)) for u in range(2, 6) for i in range(min(u + 1, 4))]


def test_bad_data_is_explained(example: ModuleType, root: Path, tmp_path: Path) -> None:
    def message(path: Path | None, *arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            example.main([*TINY, *([] if path is None else ["--data-root", str(path)]), *arguments])
        assert "\n" not in str(stop.value.code)
        return str(stop.value.code)

    assert "--data-root is needed" in message(None)
    assert "there is no" in message(tmp_path / "nowhere")
    assert "found 0" in message(tmp_path)
    (tmp_path / "words.txt").write_text("a x\na x 5\n")
    assert "line 2 of" in message(tmp_path / "words.txt")
    assert "'a x 5'" in message(tmp_path)
    (tmp_path / "torn.txt.gz").write_bytes(gzip.compress(root.read_bytes())[:-20])
    assert "cannot be read" in message(tmp_path / "torn.txt.gz")
    (tmp_path / "plain.txt.gz").write_text("a x\n")
    assert "cannot be read" in message(tmp_path / "plain.txt.gz")
    assert "found 3" in message(tmp_path)
    assert "0 users left to train on, of 60" in message(root, "--min-count", "50")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dropout", "1"], "--dropout must be at least 0"),
        (["--length", "1"], "--length must be at least 2"),
        (["--contrast-weight", "0"], "--contrast-weight must be positive"),
    ],
)
def test_bad_flags(example: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit):
        example.parse(arguments)
    assert message in capsys.readouterr().err


def kind_of(before: list[int], after: list[int], mask_item: int) -> str:
    """Which augmentation this is, all its properties checked."""
    n = len(before)
    if mask_item in after:
        assert after.count(mask_item) == int(0.3 * n)
        assert all(new in (old, mask_item) for old, new in zip(before, after, strict=True))
        return "masked"
    if len(after) < n:
        start = before.index(after[0])
        assert after == before[start : start + int(0.6 * n)]
        return "cropped"
    assert sorted(after) == sorted(before)
    moved = [place for place, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    assert not moved or moved[-1] - moved[0] < int(0.6 * n)
    return "reordered" if moved else "same"


def test_augmentations(example: ModuleType) -> None:
    torch.manual_seed(0)
    rows = [torch.randperm(40)[:n] + 1 for n in (1, 2, 5, 10, 10, 20) for _ in range(30)]
    items = example.sequences.pad(rows)
    views = example.sequences.augment(items, 99)
    kinds = []
    for row, view in zip(rows, views, strict=True):
        n = int((view > 0).sum())
        assert n >= 1
        assert not view[n:].any()
        if len(row) >= 5:
            kinds.append(kind_of(row.tolist(), view[:n].tolist(), 99))
    assert all(kinds.count(kind) > 20 for kind in ("masked", "cropped", "reordered"))


def test_a_state_knows_what_came_before_it(example: ModuleType, root: Path) -> None:
    encoder = task(example, root).encoder.eval()
    short, longer = torch.tensor([[3, 1, 4]]), torch.tensor([[3, 1, 4, 9, 2], [5, 6, 0, 0, 0]])
    torch.testing.assert_close(encoder(longer)[:1, :3], encoder(short))
    torch.testing.assert_close(example.last(encoder(longer), longer)[1:], encoder(torch.tensor([[5, 6]]))[:, 1])


def test_ranks(example: ModuleType) -> None:
    scores = torch.tensor([[9.0, 0.1, 0.5, 0.3, 0.9], [9.0, 0.2, 0.2, 0.2, 0.1], [9.0, 0.1, 0.5, 0.3, 0.9]])
    seen = torch.tensor([[4, 0], [1, 0], [3, 4]])  # the third user chooses a seen item once more
    found = example.ranking.ranks(scores, torch.tensor([3, 2, 3]), seen)
    assert found.tolist() == [1, 1, 1]  # a tie counts against
    measures = example.ranking.hits_and_gains(torch.tensor([0, 6, 30]))
    assert measures["hr_5"] == pytest.approx(1 / 3)
    assert measures["hr_10"] == pytest.approx(2 / 3)
    assert measures["ndcg_10"] == pytest.approx((1 + 1 / 3) / 3)


def test_training_sees_no_held_out_item(example: ModuleType, root: Path) -> None:
    built = task(example, root)
    batch = built.batch(torch.arange(4))
    for row, user in enumerate(built.data.users[:4]):
        n = len(user) - 2
        assert batch.items[row, :n].tolist() == user[:-2].tolist()
        assert batch.targets[row, :n].tolist() == [*user[1:-2].tolist(), 0]
        assert not batch.items[row, n:].any()


@pytest.mark.parametrize("contrast", ["nt_xent", "mclrec"])
def test_dense_loss_is_the_same_loss(example: ModuleType, root: Path, contrast: str) -> None:
    built = task(example, root, "--contrast", contrast)
    generator = torch.Generator().manual_seed(0)
    n_embeddings = {"nt_xent": 2, "mclrec": 4}[contrast]
    z = [torch.randn(9, 5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(n_embeddings)]
    next_item = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    values = [loss((next_item, *z), None) for loss in (built.loss, built.dense_loss)]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, [next_item, *z]) for value in values))


def test_one_objective_gives_the_augmenters_the_gradient_of_their_own_stage(example: ModuleType, root: Path) -> None:
    built = task(example, root, "--contrast", "mclrec", "--contrast-weight", "0.25").eval()
    augmenters = list(built.contrast.augmenters.parameters())
    torch.manual_seed(0)
    batch = built.batch(torch.arange(16))

    def gradients(value: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(value, augmenters))

    joint = gradients(built.loss(built.embed(batch), batch))
    with torch.no_grad():
        h = [example.last(built.encoder(view), view) for view in batch.views]
    own = gradients(built.contrast(*built.contrast.embed(h)))
    assert all(g.abs().max() > 0 for g in own)
    torch.testing.assert_close(joint, [0.25 * g for g in own])


def test_from_start_to_end(example: ModuleType, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data-root", str(root), "--contrast", "none", "nt_xent", "mclrec", "--epochs", "12"]
    summary = example.main([*TINY, *arguments, "--dropout", "0", "--lr", "0.01", "--out", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "NDCG@10 (%)" in shown
    assert shown.count("the loss in plain torch") == 3
    check_picture(tmp_path / "curves.png")
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written == json.loads(json.dumps(summary))
    assert written["data"] == {"name": "pairs.txt", "users": 60, "items": ITEMS, "pairs": 480}
    for contrast in ("none", "nt_xent", "mclrec"):
        result = written["trainings"][contrast]["after"]
        assert result["test_hr_5"][0] > 2 * written["popularity"]["test_hr_5"][0]
        assert all(0 <= result[key][0] <= 1 for key in example.MEASURES)
        rows = [json.loads(line) for line in (tmp_path / contrast / "log.jsonl").read_text().splitlines()]
        losses = [row["loss"] for row in rows if "loss" in row]
        assert losses[-1] < losses[0]
        assert rows[0]["test_ndcg_10"] < rows[-1]["test_ndcg_10"]


def run_log(out: Path) -> list[dict[str, float]]:
    timing = {"images_per_second", "loss_share"}
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in timing} for row in rows]


@pytest.mark.parametrize("contrast", ["nt_xent", "mclrec"])
def test_a_resumed_run_is_the_uninterrupted_one(
    example: ModuleType, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contrast: str
) -> None:
    arguments = [*TINY, "--data-root", str(root), "--contrast", contrast, "--max-steps", "7"]
    example.main([*arguments, "--out", str(tmp_path / "whole")])

    def stop(_: object, step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(example.NextItem, "before_update", stop)
        with pytest.raises(KeyboardInterrupt):
            example.main([*arguments, "--out", str(tmp_path / "parts")])
    example.main([*arguments, "--out", str(tmp_path / "parts"), "--resume", "auto"])
    rows = run_log(tmp_path / "whole")
    assert len(rows) == 7 + 2  # measured at the start and at the end
    assert all(math.isfinite(row["loss"]) for row in rows if "loss" in row)
    assert run_log(tmp_path / "parts") == rows
    whole, parts = (torch.load(tmp_path / run / "checkpoint.pt", weights_only=True) for run in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 7
    torch.testing.assert_close(parts["task"], whole["task"], rtol=0, atol=0)
    torch.testing.assert_close(parts["optimizer"], whole["optimizer"], rtol=0, atol=0)
