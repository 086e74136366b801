# SPDX-License-Identifier: Apache-2.0
"""Losses of papers on graphs, as their training loops put them together, and the encoder that they share."""

from __future__ import annotations

import argparse
import math
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch_geometric.nn import GCNConv

import pycl
from common.flags import Refused
from common.graphs import data as graphs
from common.graphs.data import Graph
from pycl.bench.workloads import dense
from pycl.objectives import PairWeight, node_compactness
from pycl.testing.objectives import OBJECTIVES

RECLUSTER = 10  # steps between two clusterings of MEOW; its authors cluster in every one
PAIRS = ("grace", "meow", "ada_meow")  # what compares nodes with nodes, and so takes a group
OURS = SimpleNamespace(
    info_nce=partial(pycl.functional.info_nce, group="world"),
    gcool_community=pycl.objectives.gcool_community,
    deca=pycl.objectives.deca,
    proto_nce=pycl.objectives.proto_nce,
    **{name: partial(getattr(pycl.objectives, name), group="world") for name in PAIRS},
)
DENSE = SimpleNamespace(**{name: row.formula for name, row in OBJECTIVES.items()}, info_nce=dense.fastest("info_nce"))
DENSE.grace = lambda h1, h2, temperature: dense.fastest("nt_xent")(torch.stack([h1, h2]), temperature=temperature)


class Batch(NamedTuple):
    """The nodes that are compared, and two views of the graph: features, edges, and their adjacency."""

    rows: Tensor
    x: list[Tensor]
    edges: list[Tensor]
    adjacency: list[Tensor]


class Encoder(nn.Module):
    """Two graph convolutions, the first one twice as wide, as in GRACE's code."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.first = GCNConv(features, 2 * width, normalize=False)  # adjacency comes normalised
        self.second = GCNConv(2 * width, width, normalize=False)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # sparse products know no 16-bit numbers on a CPU
            return self.second(self.first(x, adjacency).relu(), adjacency).relu()


class Grace(nn.Module):
    """GRACE: NT-Xent between the two views. The base of the other losses."""

    needs_encodings = False  # beside the projections
    stores = "grace"  # the row of pycl.testing.objectives that says what dense code stores

    def __init__(self, graph: Graph, args: argparse.Namespace, encoder: Encoder) -> None:
        super().__init__()
        self.args, self.temperature = args, args.temperature

    def drops(self) -> list[tuple[float, float]]:
        """Shares of edges and of features that each view loses."""
        return list(zip(self.args.drop_edge, self.args.drop_feature, strict=True))

    def before_step(self, step: int, task: Any) -> None:
        """Whatever the loss remembers between steps."""

    def forward(self, f: SimpleNamespace, embeddings: tuple[Tensor, ...], batch: Batch) -> Tensor:
        """The loss, by pycl's functions ``f`` or by their dense formulas."""
        h1, h2 = embeddings[:2]
        return f.grace(h1[batch.rows], h2[batch.rows], temperature=self.temperature)


class GCool(Grace):
    """gCooL: InfoNCE across the views, and communities, whose centres are learned and whose weight fades out."""

    stores = "deca"

    def __init__(self, graph: Graph, args: argparse.Namespace, encoder: Encoder) -> None:
        super().__init__(graph, args, encoder)
        self.centers = nn.Parameter(torch.randn(args.communities, args.dim))
        self.step = 0

    def before_step(self, step: int, task: Any) -> None:
        self.step = step

    def forward(self, f: SimpleNamespace, embeddings: tuple[Tensor, ...], batch: Batch) -> Tensor:
        h1, h2 = embeddings
        node = f.info_nce(h1[batch.rows], h2[batch.rows], symmetric=True, temperature=self.temperature)
        centers = F.normalize(self.centers)
        near = [F.normalize(h.detach()).to(centers.dtype) @ centers.T for h in embeddings]
        soft = [(s / self.temperature).softmax(1) for s in near]
        density = sum(f.deca(r, edges) for r, edges in zip(soft, batch.edges, strict=True)) / 2
        community = f.gcool_community(h1, h2, self.centers, temperature=self.temperature)
        alpha = max(0.0, 1 - self.step / (0.2 * self.args.stride))
        share = math.exp(-self.step / self.args.stride)
        return node + alpha * (share * density + (1 - share) * community)


class AdaMeow(Grace):
    """AdaMEOW: a network weighs every pair. Its views are meta-paths of a heterogeneous graph; here is one graph.

    Our stand-in: the coarse view is the whole graph, the fine one has lost edges and features, by one encoder.
    """

    stores = "ada_meow"

    def __init__(self, graph: Graph, args: argparse.Namespace, encoder: Encoder) -> None:
        super().__init__(graph, args, encoder)
        self.weight = PairWeight(args.dim)

    def drops(self) -> list[tuple[float, float]]:
        return [(0.0, 0.0), super().drops()[0]]

    def forward(self, f: SimpleNamespace, embeddings: tuple[Tensor, ...], batch: Batch) -> Tensor:
        coarse, fine = (h[batch.rows] for h in embeddings)
        return f.ada_meow(fine, coarse, self.weight, temperature=self.temperature)


class Meow(AdaMeow):
    """MEOW: negatives of other clusters count, and every node finds its clusters. Views as those of AdaMEOW."""

    stores = "meow"

    def __init__(self, graph: Graph, args: argparse.Namespace, encoder: Encoder) -> None:
        Grace.__init__(self, graph, args, encoder)
        if max(args.clusters) > len(graph.y):
            raise Refused(f"--clusters {max(args.clusters)} is more than the {len(graph.y)} nodes")
        # in the checkpoint: a run that goes on between two clusterings needs them
        self.register_buffer("own", torch.zeros(len(args.clusters), len(graph.y), dtype=torch.long))
        self.register_buffer("centroids", torch.zeros(sum(args.clusters), args.dim))
        self.register_buffer("concentrations", torch.ones(sum(args.clusters)))

    def before_step(self, step: int, task: Any) -> None:
        if step % RECLUSTER:
            return
        with torch.no_grad():
            z = F.normalize(task.projector(task.encodings()))
        found = [self._cluster(z, k, seed) for seed, k in enumerate(self.args.clusters)]
        buffers = self.own, self.centroids, self.concentrations
        for buffer, parts in zip(buffers, zip(*found, strict=True), strict=True):
            buffer.copy_(torch.cat(parts).view_as(buffer))

    def _cluster(self, z: Tensor, k: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Clusters, unit centroids, and concentrations as PCL has them, by distances: smaller for tighter clusters."""
        means = KMeans(k, n_init=1, max_iter=20, random_state=seed).fit(z.cpu().numpy())
        own = torch.from_numpy(means.labels_).to(z.device, torch.long)
        centroids = F.normalize(torch.from_numpy(means.cluster_centers_).to(z))
        size = own.bincount(minlength=k)
        phi = own.bincount((z - centroids[own]).norm(dim=1), k) / size.clamp_min(1) / torch.log(size + 10.0)
        phi = torch.where(size > 1, phi, phi.max())
        phi = phi / phi.mean().clamp_min(1e-12)
        # of an untrained encoder many nodes coincide: without a floor their clusters are the whole loss
        return own, centroids, (self.temperature * phi.clamp(0.5, 2)).to(z.dtype)

    def forward(self, f: SimpleNamespace, embeddings: tuple[Tensor, ...], batch: Batch) -> Tensor:
        coarse, fine = embeddings
        rows, sizes = batch.rows, self.args.clusters
        pairs = f.meow(coarse[rows], fine[rows], self.own[:, rows], temperature=self.temperature)
        prototypes = f.proto_nce(
            coarse, self.centroids.split(sizes), self.own.unbind(), self.concentrations.split(sizes)
        )
        return pairs + self.args.prototypes * prototypes


class Pot(Grace):
    """POT: GRACE, and a bound on how compact a node stays whatever edges it loses.

    Both forms take pycl's sparse bound: that of the formula has a matrix of all pairs for every hidden unit.
    """

    needs_encodings = True

    def __init__(self, graph: Graph, args: argparse.Namespace, encoder: Encoder) -> None:
        super().__init__(graph, args, encoder)
        self.x, self.bounds = graph.x, [graphs.bounds(graph, share, args.slack) for share in args.drop_edge]
        self.layers = [encoder.first, encoder.second]  # a list: they are parameters of the encoder, not of the loss

    def forward(self, f: SimpleNamespace, embeddings: tuple[Tensor, ...], batch: Batch) -> Tensor:
        *_, z1, z2 = embeddings
        network = [t for layer in self.layers for t in (layer.lin.weight.T, layer.bias)]
        terms = [
            node_compactness(self.x, *network, other, *bounds, last_relu=True)[1]
            for other, bounds in zip((z2, z1), self.bounds, strict=True)
        ]
        return (1 - self.args.kappa) * super().forward(f, embeddings, batch) + self.args.kappa * sum(terms) / 2


LOSSES = {"grace": Grace, "gcool": GCool, "meow": Meow, "ada_meow": AdaMeow, "pot": Pot}
