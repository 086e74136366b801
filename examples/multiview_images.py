# SPDX-License-Identifier: Apache-2.0
"""Learn image features without labels from augmented views: SimCLR, DCL, DHEL, MV-InfoNCE, MV-DHEL, poly-view, CACR.

    python examples/multiview_images.py                                  # scikit-learn's digits, a minute on a CPU
    python examples/multiview_images.py --data-root DIR --loss simclr    # CIFAR-10 as torchvision stores it, or
                                                                         # DIR/train/<class>/*.jpg
    torchrun --nproc_per_node=2 examples/multiview_images.py ...         # gloo on CPUs, NCCL on GPUs

Writes to --out: the log of every step, a checkpoint from which --resume auto goes on, a dashboard of the run, and a
table of the features before and after training over all seeds. One seed and one thread give one result, bit for bit.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from common import flags, loss_cost, ranks, runs
from common.images import data as images
from common.images import encoders, evaluate, pictures
from common.images.augment import Augment
from common.images.data import Dataset
from common.tables import count, grid
from common.trainer import Task, Trainer
from torch import Tensor, nn

import pycl
from pycl import functional, objectives, viz
from pycl.bench.workloads import dense
from pycl.testing.objectives.cacr import cacr as dense_cacr

COST_SIZES = (256, 512, 1024, 2048, 4096)
SHAPE_OF = 1024  # test images whose views show the shape of the embedding
SHAPE_VIEWS = 4
MOST_PIXELS = 1024  # a linear probe on more raw pixels than this takes longer than the training


class Function(nn.Module):
    """A loss that is a function: there is no module to learn its temperature."""

    def __init__(self, temperature: float, *, learnable_temperature: bool, group: str) -> None:
        super().__init__()
        if learnable_temperature:
            raise flags.Refused("--learnable-temperature: not with --loss pairwise or cacr")
        self.temperature, self.group = temperature, group


class Pairwise(Function):
    """The mean of NT-Xent over all pairs of views, each pair by itself: what SimCLR does with more than two views."""

    def forward(self, views: Tensor) -> Tensor:
        return functional.pairwise_nt_xent(views, temperature=self.temperature, group=self.group)


class CACR(Function):
    """Attraction of the far positives, repulsion of the near negatives: two factors of its own, and no temperature."""

    def forward(self, views: Tensor) -> Tensor:
        return objectives.cacr(views, group=self.group)


class Choice(NamedTuple):
    """A loss: its module, its dense form, and whether it takes more than two views."""

    module: Any
    dense: Callable[..., Tensor]
    many_views: bool = True


LOSSES = {
    "simclr": Choice(pycl.NTXentLoss, dense.fastest("nt_xent")),
    "pairwise": Choice(Pairwise, dense.fastest("pairwise_nt_xent")),
    "dcl": Choice(pycl.DCLLoss, dense.fastest("dcl"), many_views=False),
    "dhel": Choice(pycl.DHELLoss, dense.fastest("dhel"), many_views=False),
    "mv_info_nce": Choice(pycl.MVInfoNCELoss, dense.fastest("mv_info_nce")),
    "mv_dhel": Choice(pycl.MVDHELLoss, dense.fastest("mv_dhel")),
    "poly_view": Choice(pycl.PolyViewLoss, dense.fastest("poly_view")),
    "cacr": Choice(CACR, lambda views, temperature: dense_cacr(views)),
}
NAMES = {"simclr": "nt_xent", "pairwise": "pairwise_nt_xent"}  # of functions, where they are others
MEASURES = {  # key: (label, factor, decimals)
    "knn": ("kNN accuracy, k = 20 (%)", 100, 1),
    "linear": ("linear probe, all labels (%)", 100, 1),
    "few_labels": ("linear probe, 10 labels a class (%)", 100, 1),
    "effective_rank": ("effective rank of the embedding", 1, 1),
    "alignment": ("alignment, 0 is best", 1, 2),
    "uniformity": ("uniformity, lower is more even", 1, 2),
}


class MultiView(Task):
    """Views of one image are close, views of two images are not."""

    def __init__(self, data: Dataset, args: argparse.Namespace) -> None:
        super().__init__()
        self.data, self.args, self.size = data, args, len(data.train.labels)
        self.encoder = encoders.make(args.encoder, data)
        self.projector = encoders.projector(self.encoder.width)
        self.augment = Augment(data.channels, data.side)
        options = {"learnable_temperature": args.learnable_temperature, "group": "world"}
        self.criterion = LOSSES[args.loss].module(args.temperature, **options)

    def batch(self, rows: Tensor) -> Tensor:
        return self.augment(self.data.train.images[rows], self.args.views)

    def embed(self, batch: Tensor) -> Tensor:
        return self.projector(encoders.encode(self.encoder, batch)).unflatten(0, (self.args.views, -1))

    def loss(self, embeddings: Tensor, batch: Tensor) -> Tensor:
        return self.criterion(embeddings)

    def dense_loss(self, embeddings: Tensor, batch: Tensor) -> Tensor:
        return LOSSES[self.args.loss].dense(embeddings, temperature=self.criterion.temperature)

    def measure(self, thorough: bool) -> dict[str, Any]:
        found = evaluate.features(self.encoder, self.data, self.data.whole)  # a long tail is of the training alone
        views = self.augment(self.data.test.images[:SHAPE_OF], SHAPE_VIEWS)
        parts = [encoders.encode(self.encoder, part) for part in views.split(evaluate.CHUNK)]
        shape = viz.measure(self.projector(torch.cat(parts)).unflatten(0, (SHAPE_VIEWS, -1)), bins=80)
        probes = evaluate.probes(found, self.args.seed) if thorough else {}
        return {"knn": evaluate.knn(found), **probes, **shape}


def train(data: Dataset, args: argparse.Namespace, here: ranks.Ranks) -> dict[str, Any]:
    """Trains as the flags say; what was found."""
    torch.manual_seed(args.seed)
    return runs.train(Trainer(MultiView(data, args), args, here), args.loss)


def pixels(data: Dataset, args: argparse.Namespace) -> dict[str, float]:
    """The accuracies of the pixels themselves, which training has to beat."""
    known, test = data.whole or data.train, data.test
    raw = data._replace(
        train=known._replace(images=known.images.flatten(1).float()),
        test=test._replace(images=test.images.flatten(1).float()),
    )
    few_pixels = raw.train.images.shape[1] <= MOST_PIXELS
    return {"knn": evaluate.knn(raw), **evaluate.probes(raw, args.seed, all_labels=few_pixels)}


def table(summary: dict[str, Any]) -> str:
    """What was learnt, as text."""
    data, run = summary["data"], summary["run"]
    ((loss, trained),) = summary["trainings"].items()
    stages = {"raw pixels": summary["pixels"], "before training": trained["before"], "after training": trained["after"]}
    head = images.title(data)
    how = f"{loss}, {run['views']} views, temperature {run['temperature']:g}; {runs.over_seeds(summary)}"
    return "\n".join([head, how, *runs.compare("", MEASURES, stages)])


def cost_table(costs: Sequence[loss_cost.Cost], args: argparse.Namespace, backend: str) -> str:
    """Time and memory of the loss alone, as text."""
    rows = [
        ["instances", *(str(c.instances) for c in costs)],
        ["dense eager (ms)", *(f"{c.dense_ms:.1f}" for c in costs)],
        ["pycl (ms)", *(f"{c.pycl_ms:.1f}" for c in costs)],
        ["times faster", *(f"{c.dense_ms / c.pycl_ms:.1f}" for c in costs)],
        ["dense eager (MiB)", *("-" if c.dense_mib is None else f"{c.dense_mib:.1f}" for c in costs)],
        ["pycl (MiB)", *("-" if c.pycl_mib is None else f"{c.pycl_mib:.1f}" for c in costs)],
    ]
    head = f"one loss step, forward and backward, {args.views} views, {encoders.DIM} features, backend {backend!r}: "
    return "\n".join([head + "median time, peak memory above the inputs", *grid(rows)])


def show_cost(args: argparse.Namespace, summary: dict[str, Any]) -> None:
    """Measures the loss alone at growing batches; a table, a picture, and rows of the summary."""
    # a run cut short is a trial: small batches will do
    sizes, seconds = (COST_SIZES, 1.5) if args.max_steps is None else (COST_SIZES[:2], 0.2)
    setting = {"views": args.views, "dim": encoders.DIM, "temperature": args.temperature}
    costs = loss_cost.measure(NAMES.get(args.loss, args.loss), sizes, **setting, seconds=seconds)
    summary["loss_cost"] = [row._asdict() for row in costs]
    title = f"{args.loss}: one step forward and backward, {args.views} views, {encoders.DIM} features, "
    pictures.draw_costs(costs, args.out / "loss_cost.png", title=title + count(torch.get_num_threads(), "thread"))
    print("", cost_table(costs, args, summary["run"]["backend"]), sep="\n")


def show(data: Dataset, args: argparse.Namespace, found: list[dict[str, Any]], device: str) -> dict[str, Any]:
    """Prints and writes what all seeds found."""
    summary = runs.summarise(found, args, ("views", "temperature", "long_tail"), device)
    summary |= {"data": data.counts, "pixels": {key: (value, 0.0) for key, value in pixels(data, args).items()}}
    first, *_, last = found[0]["measured"]
    pictures.draw_similarities({"before training": first, "after training": last}, args.out / "similarity.png")
    print(table(summary), runs.profiles(summary), sep="\n")
    if args.loss_cost:
        show_cost(args, summary)
    runs.write(summary, args.out)
    return summary


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = flags.make_parser(
        __doc__, out="runs/multiview_images", batch_size=256, epochs=16, lr=3e-3, temperature=0.5
    )
    images.add_flags(parser)
    add = parser.add_argument_group("example").add_argument
    add("--loss", choices=sorted(LOSSES), default="mv_dhel", help="what is trained")
    add("--views", type=int, default=4, help="of an image in a batch")
    add("--encoder", choices=sorted(encoders.ENCODERS), default="small", help="the network")
    add("--learnable-temperature", action="store_true", help="--temperature is where it starts")
    add("--seeds", type=int, default=1, help="how many, from --seed on")
    add("--loss-cost", action="store_true", help="measure the loss alone, too, at growing batches")
    args = flags.parse(parser, argv, least=images.LEAST | {"views": 2, "seeds": 1})
    if args.views > 2 and not LOSSES[args.loss].many_views:
        parser.error(f"--loss {args.loss} compares two views, got --views {args.views}")
    if args.loss == "cacr" and args.loss_cost:
        parser.error("--loss-cost has no measurement of cacr; python -m pycl.bench --suite objectives has")
    return args


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    """Runs the example; returns its summary on the first rank."""
    args = parse(argv)
    with flags.one_line(), ranks.start(args.device) as here:
        data = images.load(args).to(here.device)
        found = [train(data, one, here) for one in runs.each(args, "loss", [args.loss])]
        return show(data, args, found, here.device.type) if here.first else None


if __name__ == "__main__":
    main()
