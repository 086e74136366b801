# SPDX-License-Identifier: Apache-2.0
"""Lightning's own trainer on two processes: the first step is that of one process with the whole batch."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launched import GUIDE, launched, names_of, program
from parity import embeddings, peer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pycl
from pycl.viz import read

pytestmark = pytest.mark.skipif(not GUIDE.exists(), reason="runs in a checkout")
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}
ROWS, BATCH = 20, 8  # of the data, and of all ranks together: two steps and a rest
SimCLR, Cached = "class SimCLR(pl.LightningModule)", "class Cached"


def loader(world: int) -> DataLoader:
    views = [embeddings(ROWS, 8, seed) for seed in (1, 2)]
    return DataLoader(TensorDataset(views[0], views[0] + 0.7 * views[1]), batch_size=BATCH // world)


def recording(kind: Any) -> Any:
    """A LightningModule in float64 that remembers losses, and the gradients that its optimizer gets."""

    class Recording(kind):
        def __init__(self) -> None:
            torch.manual_seed(0)
            super().__init__()
            self.double()
            self.losses: list[float] = []
            self.gradients: list[list[Tensor]] = []

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            found = super().training_step(batch, batch_idx)
            self.losses.append(float(self.trainer.callback_metrics["loss"] if found is None else found["loss"]))
            return found

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.gradients.append([p.grad.clone() for p in self.parameters()])

    return Recording


def page() -> dict[str, Any]:
    names = names_of(SimCLR)
    exec(program(Cached), names)
    return names


def unsynchronised(names: dict[str, Any]) -> Any:
    """The page's cached step without its loop over the parameters."""
    lines = program(Cached).splitlines()
    [start] = [k for k, line in enumerate(lines) if "for parameter" in line]
    exec("\n".join(lines[:start] + lines[start + 2 :]), own := dict(names))
    return own["Cached"]


def without_a_group(names: dict[str, Any]) -> Any:
    class Local(names["SimCLR"]):  # type: ignore[misc]  # made here
        def __init__(self) -> None:
            super().__init__()
            self.loss = pycl.NTXentLoss(0.5, learnable_temperature=True)

    return Local


def with_lightly(names: dict[str, Any]) -> Any:
    from pycl.compat.lightly import NTXentLoss

    class Lightly(names["SimCLR"]):  # type: ignore[misc]  # made here
        def __init__(self) -> None:
            super().__init__()
            self.loss = NTXentLoss(0.3, gather_distributed=True)

        def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
            return {"loss": self.loss(*[self.encoder(view) for view in batch])}

    return Lightly


def with_open_clip(names: dict[str, Any]) -> Any:
    from pycl.compat.open_clip import ClipLoss

    class Clip(names["SimCLR"]):  # type: ignore[misc]  # made here
        def __init__(self) -> None:
            super().__init__()
            self.loss = None
            self.logit_scale = nn.Parameter(torch.tensor(1.5))

        def setup(self, stage: str) -> None:  # the ranks are known now
            ranks = {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
            self.loss = ClipLoss(local_loss=True, gather_with_grad=True, **ranks)

        def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
            x = [nn.functional.normalize(self.encoder(view), dim=1) for view in batch]
            scale = self.logit_scale.exp()
            found = [z.detach() for z in x]
            return {"loss": self.loss(*x, scale), "found": {"embeddings": found, "temperature": 1 / scale.detach()}}

    return Clip


RUNS: dict[str, tuple[Callable[[dict[str, Any]], Any], dict[str, Any] | None]] = {
    "SimCLR": (lambda names: names["SimCLR"], {}),
    "cached": (lambda names: names["Cached"], None),
    "unsynchronised": (unsynchronised, None),
    "no group": (without_a_group, None),
    "lightly": (with_lightly, None),
    "open_clip": (with_open_clip, {"embeddings": "found"}),
}
SAME = ("SimCLR", "cached", "lightly", "open_clip")


def on_rank(rank: int, world: int, folder: str) -> dict[str, Any]:
    from pycl.viz.lightning import ContrastiveCallback

    names, results = page(), {}
    fit, log = names["fit"], Path(folder)
    for name, (kind, watch) in RUNS.items():
        module = recording(kind(page()))()
        names["SimCLR"] = lambda module=module: module  # what the page's fit makes
        callbacks = []
        if watch is not None:
            callbacks = [ContrastiveCallback(every_n_steps=1, log_path=log / f"{name}-{world}-{rank}.jsonl", **watch)]
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            steps = 1 if name == "unsynchronised" else -1  # ranks that part are an error at the next step
            fit(loader(world), devices=world, callbacks=callbacks, max_steps=steps, **QUIET)
        results[name] = {
            "losses": module.losses,
            "gradients": module.gradients,
            "parameters": [p.detach() for p in module.parameters()],
            "said": [str(w.message) for w in said if "was given no group" in str(w.message)],
        }
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    for library in ("pytorch_lightning", "lightly.loss", "open_clip.loss"):
        peer(library)


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    return launched(2, on_rank, str(folder))


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Any]:
    return launched(1, on_rank, str(folder))[0]


@pytest.mark.parametrize("name", SAME)
def test_a_step_is_that_of_one_process(name: str, two: list[dict[str, Any]], one: dict[str, Any]) -> None:
    alone = one[name]
    assert sum(rank[name]["losses"][0] for rank in two) / 2 == pytest.approx(alone["losses"][0], rel=1e-12)
    assert len(alone["gradients"][0]) == (2 if name == "lightly" else 3)
    for rank in two:
        for step in range(2):  # the third has fewer rows on one process than on two
            torch.testing.assert_close(rank[name]["gradients"][step], alone["gradients"][step], rtol=1e-10, atol=1e-13)


def test_the_cached_step_is_the_plain_one(one: dict[str, Any]) -> None:
    assert one["cached"]["losses"] == pytest.approx(one["SimCLR"]["losses"], rel=1e-12)
    torch.testing.assert_close(one["cached"]["parameters"], one["SimCLR"]["parameters"], rtol=1e-10, atol=1e-13)


def test_without_the_sum_over_ranks_they_part(two: list[dict[str, Any]]) -> None:
    """What the page warns of: Lightning's DDP does not communicate in a backward of one's own."""
    first, second = (rank["unsynchronised"]["parameters"][0] for rank in two)
    assert (first - second).abs().max() > 1e-3


def test_a_loss_without_a_group_says_so_once_on_each_rank(two: list[dict[str, Any]], one: dict[str, Any]) -> None:
    for rank in two:
        [said] = rank["no group"]["said"]
        assert "on one of 2 ranks" in said
        assert "group='world'" in said
        assert not any(rank[name]["said"] for name in SAME)
    assert one["no group"]["said"] == []
    gap = two[0]["no group"]["gradients"][0][0] - one["no group"]["gradients"][0][0]
    assert gap.abs().max() > 1e-3


@pytest.mark.parametrize("name", ["SimCLR", "open_clip"])
def test_rank_0_alone_reports(name: str, folder: Path, two: list[dict[str, Any]], one: dict[str, Any]) -> None:
    assert sorted(path.name for path in folder.glob(f"{name}-2-*")) == [f"{name}-2-0.jsonl"]
    rows, alone = read(folder / f"{name}-2-0.jsonl"), read(folder / f"{name}-1-0.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["loss"] for row in rows] == pytest.approx(two[0][name]["losses"])
    temperatures = [row["temperature"] for row in rows]
    assert temperatures[:2] == pytest.approx([row["temperature"] for row in alone[:2]], rel=1e-6)
    assert len(set(temperatures)) == 3  # learnt, on all ranks from the same gradients
    log_scale = two[1][name]["parameters"][-1 if name == "SimCLR" else 2]
    if name == "SimCLR":
        assert temperatures[-1] == pytest.approx(log_scale.exp().item(), rel=1e-6)


LAUNCHED = """
import json, sys
import torch
from torch.utils.data import DataLoader, TensorDataset

if __name__ == "__main__":
    torch.manual_seed(0)
    x = torch.randn(16, 8)
    fit(DataLoader(TensorDataset(x, x + 0.1), batch_size=4), accelerator="cpu", devices=2, logger=False,
        enable_progress_bar=False, enable_checkpointing=False, callbacks=[Losses(sys.argv[1])])
"""
LOSSES = """
class Losses(pl.Callback):
    def __init__(self, folder):
        self.folder, self.seen = folder, []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.seen.append(float(outputs["loss"]))

    def on_train_end(self, trainer, module):
        weights = [p.tolist() for p in module.parameters()]
        with open(f"{self.folder}/{trainer.global_rank}.json", "w") as file:
            json.dump({"losses": self.seen, "weights": weights, "world": trainer.world_size}, file)
"""


def test_processes_that_lightning_starts(tmp_path: Path) -> None:
    """The page's program, run as a user runs it: ``strategy="ddp"`` starts the second process itself."""
    script = tmp_path / "train.py"
    declared = "from pycl.bench.workloads.baselines import declare_torchvision\ndeclare_torchvision()\n"
    script.write_text(declared + program(SimCLR) + LOSSES + LAUNCHED)
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=240, cwd=Path(pycl.__file__).parent.parent)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [rank["world"] for rank in ranks] == [2, 2]
    assert ranks[0]["weights"] == ranks[1]["weights"]
    assert len(ranks[0]["losses"]) == 2
    assert ranks[0]["losses"] != ranks[1]["losses"]  # each has the share of its own anchors
