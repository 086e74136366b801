# SPDX-License-Identifier: Apache-2.0
"""Graphs whose nodes have features and classes: citation graphs, an .npz of your own, or one that is generated.

An .npz file of a graph has these arrays:

=====================================================  ===============================================================
``x_indptr``, ``x_indices``, ``x_data``, ``x_shape``    features [N, f] as a sparse matrix in CSR form; or ``x``, dense
``edge_index``                                         integers [2, E], an undirected edge in both directions
``y``                                                  integers [N], the class of each node
``train``, ``val``, ``test``                           numbers of the nodes of the split, or a mask [N]
=====================================================  ===============================================================
"""

from __future__ import annotations

import argparse
import pickle
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_matrix, csr_matrix
from sklearn.preprocessing import normalize
from torch import Tensor

from common.flags import Refused

try:
    from torch_geometric.datasets import Planetoid
    from torch_geometric.nn.conv.gcn_conv import gcn_norm
    from torch_geometric.utils import degree, dropout_edge, to_torch_csr_tensor, to_undirected
except ImportError as error:
    raise ImportError("graphs take PyTorch Geometric: pip install torch_geometric") from error

PLANETOID = {"cora": "Cora", "citeseer": "CiteSeer", "pubmed": "PubMed"}
SPLITS = ("train", "val", "test")
CSR = ("x_data", "x_indices", "x_indptr")
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)
# of the generated graph
CLASSES, PARTNERS, SAME_CLASS, WORDS, WORDS_A_NODE, OWN_WORDS = 10, 5, 0.6, 1000, 20, 0.15

# torch says both once a process, whoever makes the tensor
for said in ("Sparse CSR tensor support is in beta", "Sparse invariant checks are implicitly disabled"):
    warnings.filterwarnings("ignore", message=said)


class Graph(NamedTuple):
    """Features ``x`` [N, f] in CSR form, edges in both directions, classes ``y`` [N], and nodes of the split."""

    name: str
    x: Tensor
    edge_index: Tensor
    y: Tensor
    train: Tensor
    val: Tensor
    test: Tensor

    def to(self, device: torch.device) -> Graph:
        return self._replace(**{key: t.to(device) for key, t in self._asdict().items() if isinstance(t, Tensor)})


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("graph").add_argument
    add("--data", choices=["synthetic", *PLANETOID], help="which graph of --data-root; without one it is synthetic")
    add("--nodes", type=int, default=3000, help="of the synthetic graph")


LEAST = {"nodes": 100}


def load(args: argparse.Namespace) -> Graph:
    """The graph that --data and --data-root name.

    --data-root is an .npz file, a folder with ``<data>.npz``, or the root of torch_geometric.datasets.Planetoid, which
    downloads what is missing there.

    Raises:
        Refused: flags that do not go together, no such graph there, or what is there is no graph.
    """
    root: Path | None = args.data_root
    if root is None:
        if args.data in PLANETOID:
            raise Refused(
                f"--data {args.data} takes --data-root: the root of torch_geometric.datasets.Planetoid, or an .npz"
            )
        return generate(args.nodes)
    if args.data == "synthetic":
        raise Refused("--data synthetic is generated and takes no --data-root")
    if not root.exists():
        raise Refused(f"--data-root: there is no {root}")
    if root.is_file():
        return read_npz(root)
    if args.data is None:
        raise Refused(f"--data-root {root} is a folder: --data {' or '.join(PLANETOID)} says which graph of it")
    own = root / f"{args.data}.npz"
    return read_npz(own) if own.exists() else read_planetoid(root, args.data)


def read_npz(path: Path) -> Graph:
    """The graph of an .npz file, see the module."""
    try:
        with np.load(path) as file:
            found = {name: file[name] for name in file.files}
    except UNREADABLE as error:
        raise Refused(f"--data-root: {path} is no .npz file, or a damaged one: {_line(error)}") from error
    features = ("x",) if "x" in found else (*CSR, "x_shape")
    if missing := [name for name in (*features, "edge_index", "y", *SPLITS) if name not in found]:
        raise Refused(f"--data-root: {path} lacks {', '.join(missing)}")
    try:
        x = csr_matrix(found["x"] if "x" in found else tuple(found[name] for name in CSR), _shape(found))
        x.check_format()
    except (ValueError, TypeError, IndexError) as error:
        raise Refused(f"--data-root: the features in {path} are no matrix: {_line(error)}") from error
    return _graph(path.stem, str(path), x, found)


def _shape(found: dict[str, Any]) -> tuple[int, ...]:
    return found["x"].shape if "x" in found else tuple(int(n) for n in found["x_shape"])


def read_planetoid(root: Path, name: str) -> Graph:
    """The graph as PyTorch Geometric keeps it, with the public split."""
    folder = next((f.name for f in root.iterdir() if f.name.lower() == name), PLANETOID[name])
    try:
        data = Planetoid(str(root), folder)[0]
    except (*UNREADABLE, pickle.UnpicklingError, ImportError) as error:
        raise Refused(
            f"--data-root: {root / folder} has no complete graph, and it could not be downloaded: {_line(error)}"
        ) from error
    found = {"edge_index": data.edge_index, "y": data.y} | {name: data[f"{name}_mask"] for name in SPLITS}
    return _graph(name, str(root / folder), csr_matrix(data.x.numpy()), {k: t.numpy() for k, t in found.items()})


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _graph(name: str, where: str, x: csr_matrix, found: dict[str, Any]) -> Graph:
    """The graph of these arrays, checked; the features of a node are divided by their sum, as GRACE does."""
    n, y, edges = x.shape[0], found["y"], found["edge_index"]
    for key, array, shape, limit in (("y", y, (n,), None), ("edge_index", edges, (2, edges.shape[-1]), n)):
        _check(where, key, array, shape, limit)
    split = {}
    for key in SPLITS:
        rows = found[key].nonzero()[0] if found[key].dtype == bool and found[key].shape == (n,) else found[key]
        _check(where, key, rows, (rows.size,), n)
        if not rows.size:
            raise Refused(f"--data-root: {key} in {where} is empty")
        split[key] = torch.from_numpy(rows.astype(np.int64))
    if len(np.unique(y[split["train"]])) < 2:
        raise Refused(f"--data-root: train in {where} has nodes of one class only")
    if not np.isfinite(x.data).all():
        raise Refused(f"--data-root: the features in {where} are not all finite")
    edge_index, labels = (torch.from_numpy(array.astype(np.int64)) for array in (edges, y))
    return Graph(name, _features(x), edge_index, labels, **split)


def _check(where: str, key: str, array: Any, shape: tuple[int, ...], limit: int | None) -> None:
    """``array`` holds integers, from 0 and below ``limit``, and has that shape."""
    if array.dtype.kind not in "iu" or array.shape != shape:
        raise Refused(
            f"--data-root: {key} in {where} must be integers of shape {list(shape)}, "
            f"got {array.dtype} of shape {list(array.shape)}"
        )
    if array.size and (array.min() < 0 or (limit is not None and array.max() >= limit)):
        allowed = "not be negative" if limit is None else f"be from 0 to {limit - 1}, the nodes of the graph"
        raise Refused(f"--data-root: {key} in {where} must {allowed}; it has {array.min()} to {array.max()}")


def _features(x: csr_matrix) -> Tensor:
    x = normalize(x.astype(np.float32), norm="l1")
    parts = (torch.from_numpy(part) for part in (x.indptr.astype(np.int64), x.indices.astype(np.int64), x.data))
    return torch.sparse_csr_tensor(*parts, size=x.shape, check_invariants=True)


def generate(nodes: int) -> Graph:
    """A stochastic block model: nodes prefer partners, and words, of their class. Always the same of one size."""
    rng = np.random.default_rng(0)
    y = rng.integers(CLASSES, size=nodes)
    members, sizes = np.argsort(y, kind="stable"), np.bincount(y, minlength=CLASSES)
    source = np.repeat(np.arange(nodes), PARTNERS)
    own = y[source]
    among_own = members[(np.cumsum(sizes) - sizes)[own] + (rng.random(len(source)) * sizes[own]).astype(int)]
    target = np.where(rng.random(len(source)) < SAME_CLASS, among_own, rng.integers(nodes, size=len(source)))
    apart = source != target
    edge_index = to_undirected(torch.from_numpy(np.stack([source[apart], target[apart]])), num_nodes=nodes)

    each = WORDS // CLASSES
    shape = (nodes, WORDS_A_NODE)
    of_class = y[:, None] * each + rng.integers(each, size=shape)
    words = np.where(rng.random(shape) < OWN_WORDS, of_class, rng.integers(WORDS, size=shape))
    rows = np.repeat(np.arange(nodes), WORDS_A_NODE)
    x = coo_matrix((np.ones(words.size, np.float32), (rows, words.ravel())), (nodes, WORDS)).tocsr()

    order = torch.from_numpy(rng.permutation(nodes))
    train, val = min(20 * CLASSES, nodes // 5), min(500, nodes // 5)
    split = {"train": order[:train], "val": order[train : train + val], "test": order[train + val :][:1000]}
    return Graph(f"synthetic, {nodes} nodes", _features(x), edge_index, torch.from_numpy(y), **split)


def adjacency(edge_index: Tensor, nodes: int) -> Tensor:
    """The matrix of a graph convolution, in CSR form: with self loops, divided by the roots of both degrees."""
    ends, weights = gcn_norm(edge_index, num_nodes=nodes)
    return to_torch_csr_tensor(ends.flip(0), weights, size=(nodes, nodes))  # a row gathers what points to its node


def augment(graph: Graph, drop_edge: float, drop_feature: float) -> tuple[Tensor, Tensor]:
    """GRACE's view of a graph: features with some columns at 0, and edges of which some are dropped."""
    x, edges = graph.x, dropout_edge(graph.edge_index, p=drop_edge)[0]
    kept = torch.rand(x.shape[1], device=x.device) >= drop_feature
    values = x.values() * kept[x.col_indices()]
    return torch.sparse_csr_tensor(x.crow_indices(), x.col_indices(), values, x.shape, check_invariants=False), edges


def bounds(graph: Graph, drop_edge: float, slack: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Ends, lower and upper bounds of the entries of :func:`adjacency` where each node loses a share of its edges.

    As POT's code has them at a ``slack`` of 1: a node loses at most ``drop_edge`` of its edges, rounded, and keeps one.
    An edge may be gone; a self loop weighs at least what it does with all edges. Less slack is that part of the way to
    these bounds from the entries of the whole graph.
    """
    nodes = len(graph.y)
    loops = torch.arange(nodes, device=graph.y.device).expand(2, nodes)
    ends = torch.cat([graph.edge_index, loops], 1)
    given = degree(graph.edge_index[1], nodes)
    lost = torch.minimum((drop_edge * given).round(), (given - 1).clamp_min(0))
    entries, upper = (root[ends[0]] * root[ends[1]] for root in ((given + 1).rsqrt(), (given + 1 - lost).rsqrt()))
    lower = torch.where(ends[0] == ends[1], entries, 0.0)
    return ends, torch.lerp(entries, lower, slack), torch.lerp(entries, upper, slack)
