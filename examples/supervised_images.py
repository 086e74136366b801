# SPDX-License-Identifier: Apache-2.0
"""Learn image features with labels: SupCon, SimLAP, also on pairs of different classes, and BaCon on a long tail.

    python examples/supervised_images.py --loss sup_con                     # scikit-learn's digits, a minute on a CPU
    python examples/supervised_images.py --loss simlap --pairs arbitrary    # a partner of any class for every image
    python examples/supervised_images.py --loss bacon --long-tail 20        # the commonest class 20 times the rarest
    torchrun --nproc_per_node=2 examples/supervised_images.py ...

Writes a table, a dashboard of the run, its log and a checkpoint to --out.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from common import flags, ranks, runs
from common.images import data as images
from common.images import encoders, evaluate
from common.images.augment import Augment
from common.images.data import Dataset
from common.trainer import Task, Trainer
from torch import Tensor, nn

import pycl
from pycl import Pairs, Points, functional, objectives, viz
from pycl.testing import formulas
from pycl.testing.objectives.bacon import soft_sup_con as dense_soft_sup_con
from pycl.testing.objectives.simlap import simlap as dense_simlap

VIEWS = 2
WORLD = "world"
MEASURES = {"knn": "kNN, k = 20", "linear": "linear probe, all labels", "few_labels": "linear probe, 10 labels a class"}


@pycl.together
def arbitrary_sup_con(
    views: Tensor, labels: Tensor, partners: Tensor, *, temperature: float, group: Any = None
) -> Tensor:
    """SupCon's formula with the positives of a partner's class: what SimLAP's authors hold against it."""
    z = views.flatten(0, 1)
    rows, cols = Points(z, partners.repeat(VIEWS)), Points(z, labels.repeat(VIEWS))
    sets = {"denominator": Pairs.OTHERS, "positives": Pairs.POSITIVE}
    stats = pycl.pair_stats(rows, cols, 1 / temperature, **sets, normalize=True, group=group)
    terms = stats.lse - stats.pos_sum / stats.pos_count.clamp_min(1)
    return pycl.reduce(terms.masked_fill(stats.pos_count == 0, 0.0), "mean", group)


class Criterion(nn.Module):
    """What a loss takes beside views [V, B, d], labels and the partners' labels."""

    def network(self, labels: Tensor, partners: Tensor) -> tuple[Tensor, ...]:
        """Embeddings that the loss has of its own: they count as the encoder's work in the profile."""
        return ()


class SupCon(Criterion):
    """Points of one class attract each other; with a partner's label in place of the own one, those of its class."""

    def __init__(self, args: argparse.Namespace, n_classes: int) -> None:
        super().__init__()
        self.temperature, self.arbitrary = args.temperature, args.pairs == "arbitrary"

    def forward(self, views: Tensor, labels: Tensor, partners: Tensor) -> Tensor:
        if not self.arbitrary:
            return functional.sup_con(views, labels, temperature=self.temperature, group=WORLD)
        return arbitrary_sup_con(views, labels, partners, temperature=self.temperature, group=WORLD)

    def dense(self, views: Tensor, labels: Tensor, partners: Tensor) -> Tensor:
        if not self.arbitrary:
            return formulas.sup_con(views, labels, self.temperature).mean()
        z = F.normalize(views.flatten(0, 1), dim=1)
        logits, others = z @ z.T / self.temperature, ~torch.eye(len(z), dtype=torch.bool, device=z.device)
        positive = others & (partners.repeat(VIEWS)[:, None] == labels.repeat(VIEWS))
        counts = positive.sum(1)
        terms = logits.where(others, -torch.inf).logsumexp(1) - (logits * positive).sum(1) / counts.clamp_min(1)
        return terms.masked_fill(counts == 0, 0.0).mean()


class SimLAP(Criterion):
    """A query finds the keys of its partner's class by the features that a gate picks for the two classes."""

    def __init__(self, args: argparse.Namespace, n_classes: int, *, width: int = 512) -> None:
        super().__init__()
        self.temperature, self.arbitrary = args.temperature, args.pairs == "arbitrary"
        self.embedding = nn.Embedding(n_classes, width)
        layers = [nn.Linear(width, 1024), nn.ReLU(), nn.BatchNorm1d(1024), nn.Linear(1024, encoders.DIM), nn.Sigmoid()]
        self.gate = nn.Sequential(*layers)

    def network(self, labels: Tensor, partners: Tensor) -> tuple[Tensor, ...]:
        partners = partners if self.arbitrary else labels
        return (self.gate((self.embedding(labels) + self.embedding(partners)) / 2),)

    def forward(self, views: Tensor, labels: Tensor, partners: Tensor, gate: Tensor) -> Tensor:
        given = self._arguments(views, labels, partners, gate)
        return objectives.simlap(*given, temperature=self.temperature, group=WORLD)

    def dense(self, views: Tensor, labels: Tensor, partners: Tensor, gate: Tensor) -> Tensor:
        return dense_simlap(*self._arguments(views, labels, partners, gate), self.temperature)

    def _arguments(self, views: Tensor, labels: Tensor, partners: Tensor, gate: Tensor) -> tuple[Any, ...]:
        return views[0], views[1], labels, (labels, partners if self.arbitrary else labels), gate


class BaCon(Criterion):
    """Points attract each other as much as a classifier finds their classes alike; it learns from every second image.

    The term of arXiv 2310.01376 alone: its estimate of the class distribution is left out.
    """

    def __init__(self, args: argparse.Namespace, n_classes: int) -> None:
        super().__init__()
        self.temperature = args.temperature
        self.classify = nn.Linear(encoders.DIM, n_classes)

    def forward(self, views: Tensor, labels: Tensor, partners: Tensor) -> Tensor:
        loss, probabilities = self._classify(views, labels)
        return loss + objectives.soft_sup_con(views, probabilities, temperature=self.temperature, group=WORLD)

    def dense(self, views: Tensor, labels: Tensor, partners: Tensor) -> Tensor:
        loss, probabilities = self._classify(views, labels)
        return loss + dense_soft_sup_con(views, probabilities, self.temperature)

    def _classify(self, views: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.classify(F.normalize(views, dim=2)) / self.temperature
        known = torch.arange(len(labels), device=labels.device) % 2 == 0
        loss = F.cross_entropy(logits[:, known].flatten(0, 1), labels[known].repeat(VIEWS))
        return loss, logits.detach().mean(0).softmax(1)


LOSSES = {"sup_con": SupCon, "simlap": SimLAP, "bacon": BaCon}


class Supervised(Task):
    """Labels say which images are alike."""

    def __init__(self, data: Dataset, args: argparse.Namespace) -> None:
        super().__init__()
        self.data, self.args, self.size = data, args, len(data.train.labels)
        self.encoder = encoders.make(args.encoder, data)
        self.projector = encoders.projector(self.encoder.width)
        self.augment = Augment(data.channels, data.side)
        self.criterion = LOSSES[args.loss](args, len(data.classes))

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        labels = self.data.train.labels[rows]
        partners = labels[torch.randperm(len(rows)).to(rows.device)]
        return self.augment(self.data.train.images[rows], VIEWS), labels, partners

    def embed(self, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
        views = self.projector(encoders.encode(self.encoder, batch[0])).unflatten(0, (VIEWS, -1))
        return views, *self.criterion.network(*batch[1:])

    def loss(self, embeddings: tuple[Tensor, ...], batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        views, *gate = embeddings
        return self.criterion(views, *batch[1:], *gate)

    def dense_loss(self, embeddings: tuple[Tensor, ...], batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        views, *gate = embeddings
        return self.criterion.dense(views, *batch[1:], *gate)

    def measure(self, thorough: bool) -> dict[str, Any]:
        found = evaluate.features(self.encoder, self.data)
        test = self.data.test
        views = self.augment(test.images, VIEWS)
        parts = [encoders.encode(self.encoder, part) for part in views.split(evaluate.CHUNK)]
        shape = viz.measure(self.projector(torch.cat(parts)).unflatten(0, (VIEWS, -1)), test.labels)
        probes = evaluate.probes(found, self.args.seed) if thorough else {}
        return {"knn": evaluate.knn(found), **probes, **shape}


def train(data: Dataset, args: argparse.Namespace, here: ranks.Ranks) -> dict[str, Any]:
    """Trains as the flags say; what was found."""
    torch.manual_seed(args.seed)
    return runs.train(Trainer(Supervised(data, args), args, here), args.loss)


def table(summary: dict[str, Any]) -> str:
    """What was learnt, as text."""
    run, data = summary["run"], summary["data"]
    head = images.title(data)
    how = f"{run['pairs']} pairs, temperature {run['temperature']:g}; {runs.over_seeds(summary)}"
    return "\n".join([head, how, *runs.table(summary, "accuracy (%)", MEASURES)])


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = flags.make_parser(
        __doc__, out="runs/supervised_images", batch_size=256, epochs=16, lr=3e-3, temperature=0.1
    )
    images.add_flags(parser)
    add = parser.add_argument_group("example").add_argument
    add("--loss", choices=LOSSES, nargs="+", default=["sup_con"], help="what is trained, one after the other")
    add("--pairs", choices=("same", "arbitrary"), default="same", help="the class of an image's partners")
    add("--encoder", choices=sorted(encoders.ENCODERS), default="small", help="the network")
    add("--seeds", type=int, default=1, help="how many, from --seed on")
    args = flags.parse(parser, argv, least=images.LEAST | {"seeds": 1})
    if "bacon" in args.loss and args.pairs != "same":
        parser.error("--loss bacon has no partners: --pairs same")
    return args


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    """Runs the example; returns its summary on the first rank."""
    args = parse(argv)
    with flags.one_line(), ranks.start(args.device) as here:
        data = images.load(args).to(here.device)
        found = [train(data, one, here) for one in runs.each(args, "loss", args.loss)]
        if not here.first:
            return None
        summary = runs.summarise(found, args, ("pairs", "long_tail", "temperature"), here.device.type)
        summary["data"] = data.counts
        print(table(summary), runs.profiles(summary), sep="\n")
        runs.write(summary, args.out)
        return summary


if __name__ == "__main__":
    main()
