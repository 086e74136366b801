# SPDX-License-Identifier: Apache-2.0
"""What docs/numerics.md says about two curves: the difference is rounding, and chaos makes it larger."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from types import ModuleType

import pytest
import torch
from helpers.example_runner import check_picture, imported, one_thread

STEPS = 24
Gaps = dict[str, dict[str, list[float]]]


@pytest.fixture(scope="module")
def curves() -> Iterator[ModuleType]:
    with imported("curves") as module:
        yield module


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("curves")


@pytest.fixture(scope="module")
def gaps(curves: ModuleType, out: Path) -> Gaps:
    with one_thread():
        return curves.main(["--max-steps", str(STEPS), "--out", str(out)])


def test_float64_agrees(gaps: Gaps) -> None:
    assert max(gaps["stable"]["float64, pycl"]) < 1e-13
    assert max(gaps["unstable"]["float64, pycl"][:16]) < 1e-7


def test_stable_training_keeps_the_difference_what_it_was(gaps: Gaps) -> None:
    for title, gap in gaps["stable"].items():
        assert max(gap) < (4e-6 if title.startswith("float32") else 1e-9), title


def test_unstable_training_makes_it_larger(gaps: Gaps) -> None:
    found = gaps["unstable"]["float32, pycl"]
    assert max(found[-8:]) > 50 * max(found[:4])
    assert max(found[-8:]) > 1e-5


@pytest.mark.parametrize("other", ["float32, rows in another order", "float32, a weight moved by 1e-7"])
def test_plain_torch_parts_from_itself_as_fast(other: str, gaps: Gaps) -> None:
    """A tenth as far at least: the rest is which bits were the first to differ."""
    ours, own = (median(gaps["unstable"][title][-8:]) for title in ("float32, pycl", other))
    assert own > ours / 10


def test_a_moved_weight_parts_in_float64_too(gaps: Gaps) -> None:
    moved = gaps["unstable"]["float64, a weight moved by 1e-7"]
    assert max(moved[-8:]) > 1000 * moved[0]


def test_the_picture(gaps: Gaps, out: Path) -> None:
    check_picture(out / "chaos.png")
    assert (out / "chaos.png").stat().st_size < 100_000


def test_its_loss_is_the_plain_one(curves: ModuleType) -> None:
    z1, z2 = torch.randn(2, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(curves.plain(z1, z2), curves.pycl.NTXentLoss(curves.TEMPERATURE)(z1, z2))


def test_growth_is_that_of_a_geometric_sequence(curves: ModuleType) -> None:
    gap = [1e-7 * 2**step for step in range(12)] + [1.0] * 5
    assert curves.growth(gap) == pytest.approx(2.0)
    assert curves.growth([0.0, *gap]) == pytest.approx(2.0)


def test_bad_input(curves: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        curves.main(["--max-steps", "1"])
    assert "--max-steps must be at least 2, got 1" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "lightly.loss", None)
    with pytest.raises(SystemExit, match="pip install lightly"):
        curves.main(["--library", "lightly"])
