# SPDX-License-Identifier: Apache-2.0
"""The supervised example in miniature: its losses are their formulas, its tail is long, and it runs to its end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers.example_runner import check_picture, imported, one_thread

TINY = ["--max-steps", "3", "--batch-size", "32", "--limit", "100", "--quiet"]
CASES = [("sup_con", "same"), ("sup_con", "arbitrary"), ("simlap", "same"), ("simlap", "arbitrary"), ("bacon", "same")]


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    with imported("supervised_images") as module:
        yield module


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.mark.parametrize(("loss", "pairs"), CASES)
def test_dense_form_is_the_same_loss(example: ModuleType, loss: str, pairs: str) -> None:
    """Values and gradients, those of the loss's own parameters too."""
    torch.manual_seed(0)
    criterion = example.LOSSES[loss](example.parse(["--loss", loss, "--pairs", pairs]), 5).double()
    views = torch.randn(2, 24, example.encoders.DIM, dtype=torch.float64).requires_grad_()
    labels, partners = torch.randint(4, (2, 24))  # no image of the last class
    labels[0] = 4  # and one of the fourth: without a partner of its own class it has no positives
    batch = [views, labels, partners]
    values = [form(*batch, *criterion.network(*batch[1:])) for form in (criterion, criterion.dense)]
    asking = [views, *criterion.parameters()]
    gradients = [torch.autograd.grad(value, asking, allow_unused=True) for value in values]
    torch.testing.assert_close(*values)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_arbitrary_pairs_of_the_own_class_are_sup_con(example: ModuleType) -> None:
    views, labels = torch.randn(2, 24, 8, dtype=torch.float64), torch.randint(4, (24,))
    value = example.arbitrary_sup_con(views, labels, labels, temperature=0.2)
    torch.testing.assert_close(value, example.functional.sup_con(views, labels, temperature=0.2))


@pytest.mark.parametrize(("losses", "pairs"), [(["simlap"], "arbitrary"), (["bacon", "sup_con"], "same")])
def test_digits_from_start_to_end(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], losses: list[str], pairs: str
) -> None:
    arguments = ["--loss", *losses, "--pairs", pairs, "--long-tail", "5", "--out", str(tmp_path)]
    summary = example.main([*TINY, *arguments])
    assert "linear probe, all labels" in capsys.readouterr().out
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["data"]["test"] == 100
    assert list(summary["trainings"]) == losses
    for loss, trained in summary["trainings"].items():
        assert 0.2 < trained["after"]["knn"][0] <= 1  # of ten classes
        check_picture((tmp_path / loss if len(losses) > 1 else tmp_path) / "dashboard.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "1"], "--batch-size must be at least 2"),
        (["--loss", "bacon", "--pairs", "arbitrary"], "--loss bacon has no partners"),
    ],
)
def test_bad_options_are_explained(
    example: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        example.main([*TINY, *arguments])
    assert message in capsys.readouterr().err
