# SPDX-License-Identifier: Apache-2.0
"""The drop-ins' bench: rows for what is installed, answers compared first, tables for the page."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from pycl.bench import dropins
from pycl.bench.measure import dropin_memory
from pycl.bench.present import page
from pycl.bench.scales import LINES, Library, ours
from pycl.bench.suites.dropins import DROPINS, DropIn
from pycl.testing import compare_with_one_process


class InfoNCE:
    """A library's loss, dense, and wrong by a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        logits = normalize(query, dim=1) @ normalize(key, dim=1).T / 0.1
        return self.factor * cross_entropy(logits, torch.arange(len(query)))


ROW = DropIn("package InfoNCE", "torch", "torch", "info_nce", lambda module: module.InfoNCE())


def test_a_row_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    absent = ROW._replace(distribution="no-such-library", peer="no_such_library", name="absent")
    monkeypatch.setattr(dropins, "DROPINS", (ROW._replace(largest=20), absent))
    monkeypatch.setattr(torch, "InfoNCE", InfoNCE, raising=False)
    monkeypatch.setattr(dropins, "peak", lambda dropin, dim, size, side: {"ours": 1.25, "peer": 7.5}[side])
    assert dropins.main(["--sizes", "16,24", "--dims", "8", "--seconds", "0.01", "--json", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "cpu-dropins.json").read_text())
    assert [(row["size"], sorted(row["time_s"])) for row in record["rows"]] == [(16, ["ours", "peer"]), (24, ["ours"])]
    assert [row.get("peak_mib") for row in record["rows"]] == [None, {"ours": 1.25}]
    assert "not run: 9 GB or more" in capsys.readouterr().out
    path = tmp_path / "page.md"
    path.write_text("<!-- bench:dropins -->\n<!-- /bench:dropins -->\n")
    page.main([str(tmp_path / "cpu-dropins.json"), str(path)])
    text = path.read_text()
    assert "| package InfoNCE | 8 | 16 |" in text
    assert "peer no-such-library: No module named 'no_such_library'" in text


def test_a_wrong_answer_is_not_timed() -> None:
    library: Any = SimpleNamespace(InfoNCE=lambda: InfoNCE(1.01))
    with pytest.raises(AssertionError, match=r"package InfoNCE, d = 8, N = 16: 0\.0099 from the peer"):
        dropins.measure(ROW, 8, 16, library, 0.01)


def test_peak_memory_of_a_drop_in() -> None:
    """Of info-nce's, which stands alone where its library is not installed: no 2048 x 2048 matrix, 16 MiB."""
    row = next(row for row in DROPINS if row.name == "info-nce-pytorch InfoNCE")
    assert 0.5 < dropin_memory.peak(row, 32, 2048, "ours") < 8


@pytest.mark.thorough
def test_scales_of_ours() -> None:
    assert LINES[0].call.build == ours.__name__
    found = compare_with_one_process(Library("ours", name="clip"))
    assert (found.value, found.scale, found.cosine) == pytest.approx((1, 1, 1))
