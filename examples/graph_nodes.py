# SPDX-License-Identifier: Apache-2.0
"""Learn the nodes of a graph without labels: GRACE, gCooL, MEOW, AdaMEOW and POT, which compare all nodes with all.

    pip install torch_geometric
    python examples/graph_nodes.py                                       # a generated graph, a minute on a CPU
    python examples/graph_nodes.py --data cora --data-root DIR           # DIR as torch_geometric's Planetoid keeps it
                                                                         # (it downloads what is missing), or an .npz
    python examples/graph_nodes.py --nodes 100000 --dim 64 --max-steps 5 # every step compares 20,000 of them
    torchrun --nproc_per_node=2 examples/graph_nodes.py ...              # every rank encodes all, and compares its part

A step encodes two views of the whole graph and compares the nodes of the batch, --batch-nodes. Terms of a loss that
compare no pairs of nodes (gCooL's communities, MEOW's prototypes, POT's bound) see all nodes in every step. Writes to
--out what every example writes, and a map of the nodes. One seed and one thread give one result, bit for bit.
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any

import torch
from common import flags, loss_cost, ranks, runs
from common.graphs import data as graphs
from common.graphs import probe as node_probe
from common.graphs.data import Graph
from common.graphs.losses import DENSE, LOSSES, OURS, Batch, Encoder
from common.trainer import Task, Trainer
from torch import Tensor, nn

from pycl import viz
from pycl.testing.objectives import OBJECTIVES

SHAPE_OF = 2000  # nodes whose two views show the shape of the embedding
DENSE_MOST = 2 << 30  # bytes of the matrices of all pairs up to which the profile runs the dense form, too
MEASURES = {  # key: (label, factor, decimals)
    "public": ("accuracy, public split (%)", 100, 1),
    "random": ("accuracy, random splits of 10/10/80 (%)", 100, 1),
    "effective_rank": ("effective rank of the projection", 1, 1),
    "alignment": ("alignment, 0 is best", 1, 2),
    "uniformity": ("uniformity, lower is more even", 1, 2),
}


class Nodes(Task):
    """A node is close to itself in the other view, and far from all other nodes."""

    def __init__(self, graph: Graph, args: argparse.Namespace) -> None:
        super().__init__()
        self.graph, self.args, self.size = graph, args, len(graph.y)
        self.whole = graphs.adjacency(graph.edge_index, self.size)
        self.encoder = Encoder(graph.x.shape[1], args.dim)
        self.projector = nn.Sequential(nn.Linear(args.dim, args.dim), nn.ELU(), nn.Linear(args.dim, args.dim))
        self.objective = LOSSES[args.loss](graph, args, self.encoder)
        self.step = 0

    def before_step(self, step: int) -> None:
        self.step = step
        self.objective.before_step(step, self)

    def batch(self, rows: Tensor) -> Batch:
        with torch.random.fork_rng():  # every rank draws the views of this step, so that ranks compare the same graph
            torch.manual_seed((self.args.seed << 32) + self.step)
            views = [graphs.augment(self.graph, *drops) for drops in self.objective.drops()]
        x, edges = (list(parts) for parts in zip(*views, strict=True))
        return Batch(rows, x, edges, [graphs.adjacency(e, self.size) for e in edges])

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        z = [self.encoder(*view) for view in zip(batch.x, batch.adjacency, strict=True)]
        h = [self.projector(view) for view in z]
        # views of the encodings: their gradient from the loss is not that of the projections
        return (*h, *(view.view_as(view) for view in z)) if self.objective.needs_encodings else tuple(h)

    def loss(self, embeddings: tuple[Tensor, ...], batch: Batch) -> Tensor:
        return self.objective(OURS, embeddings, batch)

    def dense_loss(self, embeddings: tuple[Tensor, ...], batch: Batch) -> Tensor:
        return self.objective(DENSE, embeddings, batch)

    def encodings(self) -> Tensor:
        """What is kept of the training: the encoder's output on the whole graph."""
        return self.encoder(self.graph.x, self.whole)

    def measure(self, thorough: bool) -> dict[str, Any]:
        z = self.encodings()
        found = node_probe.public(z, self.graph)
        if thorough:
            found |= node_probe.random_splits(z, self.graph, self.args.random_splits)
        else:
            del found["public"]  # nobody shall look at the test split while the training goes on
        views = self.embed(self.batch(torch.arange(self.size)))[:2]
        shape = viz.measure(torch.stack([h[:SHAPE_OF].float() for h in views]))
        return found | shape | {"peak_mib": peak_mib(self.graph.y.device)}


def stored(args: argparse.Namespace, nodes: int) -> int:
    """Bytes of the matrices of all pairs that dense code of a loss holds at least."""
    paper = OBJECTIVES[LOSSES[args.loss].stores].paper
    return paper.official(min(args.batch_size, nodes), args.dim) if paper and paper.official else 0


def peak_mib(device: torch.device) -> float | None:
    """The most memory that was taken so far, of the device or of this process; None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return None if sys.platform == "win32" else loss_cost.high_water_mib()


def train(graph: Graph, args: argparse.Namespace, here: ranks.Ranks) -> dict[str, Any]:
    """Trains as the flags say; what was found."""
    torch.manual_seed(args.seed)
    trainer = Trainer(task := Nodes(graph, args), args, here)
    found = runs.train(trainer, args.loss, dense=stored(args, task.size) <= DENSE_MOST)
    if here.first:
        shown = {"features of the nodes": graph.x, f"after training, {args.loss}": task.eval().encodings()}
        node_probe.draw_maps(shown, graph, args.out / "map.png")
    return found


def summarise(graph: Graph, args: argparse.Namespace, found: list[dict[str, Any]]) -> dict[str, Any]:
    """What all seeds found, as JSON: a pair (mean, standard deviation) for every measure."""
    settings = ("temperature", "dim", "drop_edge", "drop_feature")
    summary = runs.summarise(found, args, settings, graph.y.device.type)
    raw = node_probe.public(graph.x, graph) | node_probe.random_splits(graph.x, graph, args.random_splits)
    summary["features"] = {key: (value, 0.0) for key, value in raw.items()}
    sizes = {"nodes": len(graph.y), "edges": graph.edge_index.shape[1] // 2, "features": graph.x.shape[1]}
    summary["data"] = {"name": graph.name, **sizes, "classes": len(graph.y.unique())}
    peaks = [row["peak_mib"] for row in found[0]["measured"]]
    summary["memory"] = {"before": peaks[0], "after": peaks[-1], "dense": stored(args, len(graph.y)) / 2**20}
    return summary


def table(summary: dict[str, Any]) -> str:
    """What was learnt, as text."""
    data = summary["data"]
    ((loss, trained),) = summary["trainings"].items()
    stages = {"raw features": summary["features"], "before training": trained["before"]}
    head = f"{data['name']}: {data['nodes']} nodes, {data['edges']} edges, {data['classes']} classes"
    how = f"{loss}, temperature {summary['run']['temperature']:g}; {runs.over_seeds(summary)}"
    return "\n".join([head, how, *runs.compare("", MEASURES, stages | {"after training": trained["after"]})])


def memory(found: dict[str, float | None]) -> str:
    """MiB that the run took, and that matrices of all pairs would have taken, as text."""
    before, after = found["before"], found["after"]
    took = "not known here" if before is None else f"{after:.0f} MiB, {before:.0f} before the first step"
    return f"peak memory: {took}; dense code holds matrices of {found['dense']:.0f} MiB"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = flags.make_parser(__doc__, out="runs/graph_nodes", batch_size=20_000, epochs=60, lr=1e-3, temperature=0.4)
    parser.set_defaults(weight_decay=1e-5, evaluate_every=20)
    graphs.add_flags(parser)
    add = parser.add_argument_group("example").add_argument
    add("--loss", choices=sorted(LOSSES), default="grace", help="what is trained")
    add("--batch-nodes", type=int, dest="batch_size", default=argparse.SUPPRESS, help="another name of --batch-size")
    add("--dim", type=int, default=128, help="features of an embedding")
    add("--drop-edge", type=float, nargs=2, default=[0.2, 0.4], help="shares of the edges that the views lose")
    add("--drop-feature", type=float, nargs=2, default=[0.3, 0.4], help="shares of the features that the views lose")
    add("--communities", type=int, default=10, help="gcool: how many")
    add("--stride", type=int, default=500, help="gcool: steps; after a fifth of them communities count no more")
    add("--clusters", type=int, nargs="+", default=[100, 300], help="meow: of each clustering")
    add("--prototypes", type=float, default=0.1, help="meow: weight of ProtoNCE")
    add("--kappa", type=float, default=0.3, help="pot: weight of the bound")
    add("--slack", type=float, default=0.02, help="pot: of the way to the bounds of all graphs that may be drawn")
    add("--random-splits", type=int, default=3, help="how many splits of 10/10/80 are averaged")
    add("--seeds", type=int, default=1, help="how many, from --seed on")
    least = {"dim": 2, "communities": 2, "stride": 1, "random_splits": 0, "seeds": 1}
    args = flags.parse(parser, argv, least=graphs.LEAST | least)
    for name, shares in (("drop-edge", args.drop_edge), ("drop-feature", args.drop_feature), ("kappa", [args.kappa])):
        if not all(0 <= share < 1 for share in shares):
            parser.error(f"--{name} must be from 0 to below 1, got {' '.join(map(str, shares))}")
    if not 0 <= args.slack <= 1:
        parser.error(f"--slack must be from 0 to 1, got {args.slack}")
    if min(args.clusters) < 2:
        parser.error(f"--clusters must be at least 2, got {min(args.clusters)}")
    if not 0 <= args.prototypes < math.inf:
        parser.error(f"--prototypes must not be negative, got {args.prototypes}")
    return args


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    """Runs the example; returns its summary on the first rank."""
    args = parse(argv)
    with flags.one_line(), ranks.start(args.device) as here:
        graph = graphs.load(args).to(here.device)
        found = [train(graph, one, here) for one in runs.each(args, "loss", [args.loss])]
        if not here.first:
            return None
        summary = summarise(graph, args, found)
        print(table(summary), runs.profiles(summary), memory(summary["memory"]), sep="\n")
        runs.write(summary, args.out)
        return summary


if __name__ == "__main__":
    main()
