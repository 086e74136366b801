# SPDX-License-Identifier: Apache-2.0
"""The example of graphs in miniature: losses train and resume, views and bounds hold, graphs are read or refused."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from helpers.example_runner import EXAMPLES, check_picture, imported, one_thread
from scipy.sparse import csr_matrix
from torch import Tensor

pytest.importorskip("torch_geometric")
TINY = ["--nodes", "120", "--dim", "8", "--clusters", "3", "5", "--random-splits", "1", "--quiet", "--epochs", "3"]
CLOCKS = ("images_per_second", "loss_share", "peak_mib")
LOSSES = ("grace", "gcool", "meow", "ada_meow", "pot")


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    with imported("graph_nodes") as module, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.node_probe, "STRENGTHS", [1.0, 64.0])  # most of the time of so small a run
        yield module


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    with one_thread():
        yield


def rows(folder: Path) -> list[dict[str, Any]]:
    """The log without its clocks."""
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in CLOCKS} for row in found]


@pytest.mark.parametrize("loss", ["grace", "ada_meow", "pot"])  # others are resumed below
def test_from_start_to_end(example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], loss: str) -> None:
    summary = example.main([*TINY, "--loss", loss, "--out", str(tmp_path)])
    shown = capsys.readouterr().out
    for said in ("accuracy, public split (%)", "the loss in plain torch", "dense code holds matrices of", loss):
        assert said in shown
    check_picture(tmp_path / "map.png")
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(summary))
    data = summary["data"]
    assert (data["name"], data["nodes"], data["features"], data["classes"]) == ("synthetic, 120 nodes", 120, 1000, 10)
    trained = summary["trainings"][loss]
    assert all(math.isfinite(value) for value in trained["last_loss"])
    for stage in (summary["features"], trained["before"], trained["after"]):
        assert all(0 <= stage[key][0] <= 1 for key in ("public", "random", "validation"))
    assert trained["before"]["uniformity"] != trained["after"]["uniformity"]
    assert trained["profile"]["batch_size"] == 120  # all nodes are compared
    assert trained["profile"]["dense_loss"] > 0
    if sys.platform != "win32":
        assert 0 < summary["memory"]["before"] <= summary["memory"]["after"]
    assert "public" not in [row for row in rows(tmp_path) if "validation" in row][1:-1]


def test_nodes_are_told_apart_after_training(example: ModuleType, tmp_path: Path) -> None:
    arguments = ["--nodes", "600", "--dim", "16", "--epochs", "20", "--lr", "0.01", "--random-splits", "0", "--quiet"]
    summary = example.main([*arguments, "--out", str(tmp_path)])
    trained = summary["trainings"]["grace"]
    stages = summary["features"], trained["before"], trained["after"]
    features, before, after = (stage["public"][0] for stage in stages)
    assert after > max(features, before) + 0.1
    assert "random" not in trained["after"]


class Killed(Exception):
    """The run ends here."""


@pytest.mark.parametrize("loss", ["meow", "gcool"])
def test_a_resumed_run_is_the_uninterrupted_one(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    """Also where it goes on between two clusterings of MEOW."""
    arguments = [*TINY, "--epochs", "14", "--checkpoint-every", "4", "--loss", loss, "--batch-nodes", "60"]
    arguments += ["--max-steps", "14"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    example.main([*arguments, "--out", str(whole)])

    def stop(self: Any, step: int) -> None:
        if step == 13:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(example.Nodes, "before_update", stop)
        with pytest.raises(Killed):
            example.main([*arguments, "--out", str(parts)])
    example.main([*arguments, "--out", str(parts), "--resume", "auto"])
    assert rows(parts) == rows(whole)
    one, other = (torch.load(folder / "checkpoint.pt")["task"] for folder in (whole, parts))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("nodes", [120, 50])
def test_dense_form_is_the_same_loss(example: ModuleType, loss: str, nodes: int) -> None:
    """What the profile compares with has the values and the gradients of what is trained."""
    args = example.parse([*TINY, "--loss", loss])
    torch.manual_seed(0)
    task = example.Nodes(example.graphs.load(args), args)
    task.before_step(0)
    task.objective.double()
    batch = task.batch(torch.randperm(120)[:nodes])
    embeddings = tuple(z.detach().double().requires_grad_() for z in task.embed(batch))
    losses = [task.loss(embeddings, batch), task.dense_loss(embeddings, batch)]
    torch.testing.assert_close(*losses)
    wanted = [*embeddings, *task.objective.parameters()]
    for ours, theirs in zip(*(torch.autograd.grad(loss, wanted) for loss in losses), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_two_ranks_are_one(tmp_path: Path) -> None:
    """Both draw the same views and share the nodes of a step, so they train what one process does."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    for size in ("1", "2"):
        command = [*launcher, size, str(EXAMPLES / "graph_nodes.py"), *TINY, "--loss", "gcool"]
        command += ["--threads", "1", "--out", str(tmp_path / size)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr
    one, two = rows(tmp_path / "1"), rows(tmp_path / "2")
    for key in ("loss", "validation", "uniformity"):
        values = [torch.tensor([row[key] for row in run if key in row]) for run in (one, two)]
        assert len(values[0]) >= 2
        torch.testing.assert_close(*values, rtol=1e-4, atol=1e-5)


def test_views_lose_what_they_are_told_to_lose(example: ModuleType) -> None:
    graph = example.graphs.generate(2000)
    torch.manual_seed(0)
    x, edges = example.graphs.augment(graph, 0.25, 0.4)
    kept = edges.shape[1] / graph.edge_index.shape[1]
    assert 0.7 < kept < 0.8
    given = {tuple(edge) for edge in graph.edge_index.T.tolist()}
    assert {tuple(edge) for edge in edges.T.tolist()} < given
    before, after = graph.x.to_dense(), x.to_dense()
    gone = (after == 0).all(0)
    assert 0.3 < gone.float().mean() < 0.5
    assert torch.equal(after[:, ~gone], before[:, ~gone])
    whole = example.graphs.augment(graph, 0.0, 0.0)
    assert torch.equal(whole[0].to_dense(), before)
    assert torch.equal(whole[1], graph.edge_index)


def test_adjacency_is_that_of_a_graph_convolution(example: ModuleType) -> None:
    from torch_geometric.nn import GCNConv

    torch.manual_seed(0)
    edges = torch.tensor([[0, 1, 2, 4], [1, 2, 0, 0]])  # an edge has a direction once its reverse is dropped
    layer = GCNConv(3, 4)
    x = torch.randn(5, 3)
    expected = layer(x, edges)
    layer.normalize = False
    torch.testing.assert_close(layer(x, example.graphs.adjacency(edges, 5)), expected)


def test_bounds_hold_for_every_graph_within_the_budget(example: ModuleType) -> None:
    graph = example.graphs.generate(150)
    ends, lower, upper = example.graphs.bounds(graph, 0.3)
    assert (lower <= upper).all()
    inside = [torch.zeros(150, 150).index_put(tuple(ends), bound) for bound in (lower, upper)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        kept = []  # every node loses at most its share, rounded, and keeps an edge
        for node in range(150):
            into = (graph.edge_index[1] == node).nonzero().squeeze(1)
            lost = min(round(0.3 * len(into)), len(into) - 1)
            kept.append(into[torch.randperm(len(into), generator=generator)[lost:]])
        a = example.graphs.adjacency(graph.edge_index[:, torch.cat(kept)], 150).to_dense()
        assert (a >= inside[0].T - 1e-6).all()
        assert (a <= inside[1].T + 1e-6).all()


def test_generated_graph_is_the_same_every_time_and_has_communities(example: ModuleType) -> None:
    one, other = example.graphs.generate(500), example.graphs.generate(500)
    assert torch.equal(one.edge_index, other.edge_index)
    assert torch.equal(one.x.to_dense(), other.x.to_dense())
    same = (one.y[one.edge_index[0]] == one.y[one.edge_index[1]]).float().mean()
    assert 0.55 < same < 0.75
    assert (one.edge_index[0] != one.edge_index[1]).all()
    assert len(torch.cat([one.train, one.val, one.test]).unique()) == len(one.train) + len(one.val) + len(one.test)


def arrays(nodes: int = 12) -> dict[str, Any]:
    """What an .npz file of a graph has: a ring."""
    rng = np.random.default_rng(0)
    x = csr_matrix((rng.random((nodes, 7)) < 0.4).astype(np.float32))
    ring = np.stack([np.arange(nodes), (np.arange(nodes) + 1) % nodes])
    found = {"x_data": x.data, "x_indices": x.indices, "x_indptr": x.indptr, "x_shape": np.array(x.shape)}
    found |= {"edge_index": np.concatenate([ring, ring[::-1]], 1), "y": np.arange(nodes) % 3}
    return found | {"train": np.arange(6), "val": np.arange(6, 9), "test": np.arange(9, nodes)}


def read(example: ModuleType, *arguments: str) -> Any:
    return example.graphs.load(example.parse([*TINY, *arguments]))


def test_npz_is_read(example: ModuleType, tmp_path: Path) -> None:
    given = arrays()
    np.savez(tmp_path / "cora.npz", **given)
    graph = read(example, "--data-root", str(tmp_path / "cora.npz"))
    x = csr_matrix((given["x_data"], given["x_indices"], given["x_indptr"]), given["x_shape"]).toarray()
    torch.testing.assert_close(graph.x.to_dense(), torch.from_numpy(x / x.sum(1, keepdims=True).clip(1)))
    assert graph.edge_index.tolist() == given["edge_index"].tolist()
    assert (graph.name, graph.y.tolist(), graph.test.tolist()) == ("cora", given["y"].tolist(), [9, 10, 11])

    dense = {key: value for key, value in given.items() if not key.startswith("x_")} | {"x": x}
    dense["val"] = np.isin(np.arange(12), given["val"])
    np.savez(tmp_path / "dense.npz", **dense)
    other = read(example, "--data-root", str(tmp_path / "dense.npz"))
    assert torch.equal(other.x.to_dense(), graph.x.to_dense())
    assert torch.equal(other.val, graph.val)
    assert torch.equal(read(example, "--data", "cora", "--data-root", str(tmp_path)).x.to_dense(), graph.x.to_dense())


def write_planetoid(folder: Path) -> dict[str, Tensor]:
    """The files of kimiyoung/planetoid, of a small graph, and what is in them."""
    rng = np.random.default_rng(0)
    n, others, train = 560, 530, 20  # PyTorch Geometric takes the 500 nodes behind the training nodes to validate
    x, y = (rng.random((n, 9)) < 0.3).astype(np.float32), np.eye(3, dtype=np.int64)[rng.integers(3, size=n)]
    parts = {"x": csr_matrix(x[:train]), "allx": csr_matrix(x[:others]), "tx": csr_matrix(x[others:])}
    parts |= {"y": y[:train], "ally": y[:others], "ty": y[others:]}
    parts["graph"] = {i: [(i + 1) % n, (i - 1) % n] for i in range(n)}
    folder.mkdir(parents=True)
    for name, part in parts.items():
        (folder / f"ind.cora.{name}").write_bytes(pickle.dumps(part))
    (folder / "ind.cora.test.index").write_text("\n".join(str(i) for i in range(others, n)) + "\n")
    return {"x": torch.from_numpy(x), "y": torch.from_numpy(y.argmax(1))}


def test_planetoid_is_read_as_pytorch_geometric_keeps_it(example: ModuleType, tmp_path: Path) -> None:
    wanted = write_planetoid(tmp_path / "Cora" / "raw")
    graph = read(example, "--data", "cora", "--data-root", str(tmp_path))
    assert torch.equal(graph.y, wanted["y"])
    assert torch.equal(graph.x.to_dense() > 0, wanted["x"] > 0)
    assert graph.edge_index.shape == (2, 2 * 560)
    assert graph.train.tolist() == list(range(20))
    assert graph.val.tolist() == list(range(20, 520))
    assert graph.test.tolist() == list(range(530, 560))


def refuse(example: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which the example ends."""
    with pytest.raises(SystemExit) as stop:
        example.main([*TINY, *arguments])
    assert stop.value.code not in (0, None)
    return str(stop.value.code) + capsys.readouterr().err


def test_planetoid_that_cannot_be_had_is_one_line(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(self: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(example.graphs.Planetoid, "download", download)
    said = refuse(example, capsys, "--data", "citeseer", "--data-root", str(tmp_path))
    assert "CiteSeer has no complete graph, and it could not be downloaded: no route to host" in said
    write_planetoid(tmp_path / "Cora" / "raw")
    (tmp_path / "Cora" / "raw" / "ind.cora.allx").write_bytes(b"cut off")
    assert "Cora has no complete graph" in refuse(example, capsys, "--data", "cora", "--data-root", str(tmp_path))


BROKEN = {
    "lacks y, test": {"y": None, "test": None},
    "edge_index in": {"edge_index": np.array([[0], [99]])},
    "must be from 0 to 11, the nodes of the graph": {"edge_index": np.array([[0], [99]])},
    "y in": {"y": np.arange(5)},
    "must be integers of shape [12], got float64": {"y": np.zeros(12)},
    "must not be negative": {"y": np.arange(12) - 1},
    "train in": {"train": np.array([0.5])},
    "val in": {"val": np.array([], dtype=int)},
    "nodes of one class only": {"train": np.array([0, 3])},
    "features in": {"x_indptr": np.arange(3)},
    "not all finite": {"x_data": np.full(arrays()["x_data"].shape, np.nan)},
}


@pytest.mark.parametrize("message", BROKEN)
def test_npz_that_is_no_graph_is_one_line(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], message: str
) -> None:
    broken = {key: value for key, value in (arrays() | BROKEN[message]).items() if value is not None}
    np.savez(tmp_path / "graph.npz", **broken)
    assert message in refuse(example, capsys, "--data-root", str(tmp_path / "graph.npz"))


def test_damaged_file_is_one_line(example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "graph.npz", **arrays())
    content = (tmp_path / "graph.npz").read_bytes()
    for damaged in (content[: len(content) // 2], b"no file of numpy", b""):
        (tmp_path / "graph.npz").write_bytes(damaged)
        assert "is no .npz file, or a damaged one" in refuse(
            example, capsys, "--data-root", str(tmp_path / "graph.npz")
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "cora"], "--data cora takes --data-root"),
        (["--data-root", "nowhere"], "there is no nowhere"),
        (["--data-root", "."], "--data cora or citeseer or pubmed says which graph of it"),
        (["--data", "synthetic", "--data-root", "."], "--data synthetic is generated"),
        (["--nodes", "10"], "--nodes must be at least 100"),
        (["--drop-edge", "0.1", "1"], "--drop-edge must be from 0 to below 1, got 0.1 1.0"),
        (["--kappa", "1"], "--kappa must be from 0 to below 1"),
        (["--clusters", "1"], "--clusters must be at least 2, got 1"),
        (["--loss", "meow", "--clusters", "121"], "--clusters 121 is more than the 120 nodes"),
        (["--prototypes", "-1"], "--prototypes must not be negative"),
    ],
)
def test_bad_options_are_explained(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in refuse(example, capsys, "--out", str(tmp_path), *arguments)
