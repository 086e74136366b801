# SPDX-License-Identifier: Apache-2.0
"""Learn features of generated signals without labels: MVCNet on rhythms, HiCLR on a moving figure, NT-Xent beside both.

    python examples/signals.py                          # mvcnet and nt_xent on rhythms like those of an EEG
    python examples/signals.py --signals skeleton       # hiclr and nt_xent on the joints of a figure
    python examples/signals.py --loss hiclr --seeds 3

    mvcnet   a convolutional and a transformer branch; a signal meets its views in time, frequency and space, and each
             branch meets the other one (arXiv 2502.17482; there beside a cross entropy, here alone)
    hiclr    momentum contrast of a weak augmentation, and stronger ones that learn from weaker ones (arXiv 2211.13466)
    nt_xent  the same encoder and the same views, every pair of views alike

The signals are generated (examples/common/signals/data.py says how), so the figures are about these losses on these
signals and not about any recording. The objectives of the papers take no process group: with torchrun each rank
contrasts its own share of a batch; the queue of hiclr has the keys of all ranks.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from common import flags, ranks, runs
from common.signals import data as signals
from common.signals import encoders as signal_encoders
from common.signals import pictures as signal_pictures
from common.signals import views as signal_views
from common.tables import grid, spread
from common.trainer import Task, Trainer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import pycl
from pycl import metrics, objectives, viz
from pycl.bench.workloads import dense
from pycl.testing.objectives import OBJECTIVES


class NTXent(Task):
    """Views of one signal are close, views of two signals are not. The other tasks have another loss."""

    make_projector: Callable[[int], nn.Module] = staticmethod(signal_encoders.projector)

    def __init__(self, data: signals.Dataset, args: argparse.Namespace) -> None:
        super().__init__()
        self.data, self.args, self.size = data, args, len(data.train.y)
        self.views = signal_views.VIEWS[args.signals]
        self.encoder = signal_encoders.ENCODERS[args.signals](*data.train.x.shape[1:])
        self.projector = self.make_projector(self.encoder.width)

    def batch(self, rows: Tensor) -> Tensor:
        return self.views(self.data.train.x[rows])

    def compared(self, views: Tensor) -> Tensor:
        """What the loss compares, [V, N, d], of views [V, N, C, T]."""
        return self.projector(self.encoder(views.flatten(0, 1))).unflatten(0, views.shape[:2])

    def embed(self, batch: Tensor) -> Any:
        return self.compared(batch)

    def loss(self, embeddings: Any, batch: Tensor) -> Tensor:
        return pycl.functional.nt_xent(embeddings, temperature=self.args.temperature, group="world")

    def dense_loss(self, embeddings: Any, batch: Tensor) -> Tensor:
        return dense.fastest("nt_xent")(embeddings, temperature=self.args.temperature)

    def measure(self, thorough: bool) -> dict[str, Any]:
        splits = self.data.splits()
        found = {name: split._replace(x=self.encoder(split.x).float()) for name, split in splits.items()}
        return accuracies(found, thorough) | viz.measure(self.compared(self.views(self.data.dev.x)[:2]))


class MVCNet(NTXent):
    """Both branches' features of a signal and of its views, across views and across branches."""

    make_projector = staticmethod(signal_encoders.Halves)

    def embed(self, batch: Tensor) -> tuple[Tensor, ...]:
        return self.compared(batch).chunk(2, -1)

    def loss(self, embeddings: tuple[Tensor, ...], batch: Tensor) -> Tensor:
        return sum(objectives.mvcnet(*embeddings, temperature=self.args.temperature))

    def dense_loss(self, embeddings: tuple[Tensor, ...], batch: Tensor) -> Tensor:
        return sum(OBJECTIVES["mvcnet"].formula(*embeddings, temperature=self.args.temperature))


class HiCLR(NTXent):
    """Three augmentations of growing strength, keys of a slow copy of the encoder, and a queue of earlier keys."""

    def __init__(self, data: signals.Dataset, args: argparse.Namespace) -> None:
        super().__init__(data, args)
        average = get_ema_multi_avg_fn(args.momentum)
        self.slow = AveragedModel(self._fast(), multi_avg_fn=average).requires_grad_(False)
        self.queue = pycl.FeatureQueue(args.queue_size, signal_encoders.DIM, group="world")
        self.mine = False
        self.mine_from = args.mine_from * (self.size // min(args.batch_size, self.size))

    def _fast(self) -> nn.Module:
        return nn.Sequential(self.encoder, self.projector)

    def before_step(self, step: int) -> None:
        self.slow.update_parameters(self._fast())
        self.mine = step >= self.mine_from

    def batch(self, rows: Tensor) -> Tensor:
        x = self.data.train.x[rows]
        return torch.cat([self.views(x), signal_views.basic(x)[None]])

    def embed(self, batch: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            self.key = self.slow(batch[-1])
        return (*self.compared(batch[:-1]), self.key)

    def loss(self, embeddings: tuple[Tensor, ...], batch: Tensor) -> Tensor:
        return self._of(objectives.hiclr, embeddings)

    def dense_loss(self, embeddings: tuple[Tensor, ...], batch: Tensor) -> Tensor:
        return self._of(OBJECTIVES["hiclr"].formula, embeddings)

    def _of(self, function: Callable[..., Tensor], embeddings: tuple[Tensor, ...]) -> Tensor:
        queue = self.queue.features  # written to after the backward alone
        return function(*embeddings, queue, temperature=self.args.temperature, mine=self.mine)

    def before_update(self, step: int) -> None:
        self.queue.write(self.key)


TASKS: dict[str, dict[str, type[NTXent]]] = {  # by what is generated, what the paper does first
    "eeg": {"mvcnet": MVCNet, "nt_xent": NTXent},
    "skeleton": {"hiclr": HiCLR, "nt_xent": NTXent},
}


def accuracies(found: dict[str, signals.Split], thorough: bool) -> dict[str, float]:
    """Of a vote of neighbours; at the end also on the test split, and of a linear classifier."""
    row, (bank, labels) = {}, found["train"]
    for split in ("dev", "test") if thorough else ("dev",):
        row[f"{split}_knn"] = metrics.knn_accuracy(bank, labels, *found[split])
        if thorough:
            row[f"{split}_linear"] = metrics.linear_probe_accuracy(bank, labels, *found[split])
    return row


def train(data: signals.Dataset, args: argparse.Namespace, here: ranks.Ranks, *, profile: bool) -> dict[str, Any]:
    """Trains as the flags say; what was found."""
    torch.manual_seed(args.seed)
    trainer = Trainer(TASKS[args.signals][args.loss](data, args), args, here)
    return runs.train(trainer, args.loss, profile=profile)


def table(summary: dict[str, Any]) -> str:
    """What was learnt, as text."""
    data, run = summary["data"], summary["run"]
    head = f"generated signals ({run['signals']}), {data['train']} to train on, {data['classes']} classes; "
    keys = [f"{split}_{key}" for split in ("dev", "test") for key in ("knn", "linear")]
    rows = [["", *(f"{split}: {label}" for split in ("dev", "test") for label in ("kNN (%)", "linear (%)"))]]
    stages = {"raw signals": summary["raw"]}
    for loss, trained in summary["trainings"].items():
        stages |= {f"{loss}, {stage}": trained[stage] for stage in ("before", "after")}
    rows += [[name, *(spread(found[key], 100) for key in keys)] for name, found in stages.items()]
    return "\n".join([head + runs.over_seeds(summary), *grid(rows)])


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = flags.make_parser(__doc__, out="runs/signals", batch_size=128, epochs=20, lr=2e-3, temperature=0.2)
    add = parser.add_argument_group("example").add_argument
    add("--signals", choices=list(TASKS), help="what is generated; by default what --loss is for, or eeg")
    losses = list(dict.fromkeys(loss for tasks in TASKS.values() for loss in tasks))
    add("--loss", nargs="+", choices=losses, help="what is trained, one after the other; by default all of the signals")
    add("--train-size", type=int, default=1024, help="signals to train on")
    add("--test-size", type=int, default=512, help="signals of the dev and of the test split")
    add("--momentum", type=float, default=0.95, help="of hiclr's slow encoder")
    add("--queue-size", type=int, default=512, help="keys that hiclr keeps")
    add("--mine-from", type=int, default=10, help="epoch from which on hiclr's nearest keys are positives, too")
    add("--seeds", type=int, default=1, help="how many, from --seed on")
    given, _ = parser.parse_known_args(argv)
    kinds = [name for name, tasks in TASKS.items() if set(given.loss or ()) <= tasks.keys()]
    if not kinds or given.signals not in (None, *kinds):
        parser.error(f"--loss {' '.join(given.loss)}: mvcnet is for --signals eeg, and hiclr for --signals skeleton")
    kind = given.signals or kinds[0]
    parser.set_defaults(signals=kind, loss=list(TASKS[kind]))
    least = {"seeds": 1, "train_size": 16, "test_size": 16, "queue_size": 1, "mine_from": 0}
    args = flags.parse(parser, argv, least=least)
    if args.data_root is not None:
        parser.error("--data-root: these signals are generated, --train-size and --test-size say how many")
    if not 0 <= args.momentum < 1:
        parser.error(f"--momentum must be from 0 to below 1, got {args.momentum}")
    return args


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    """Runs the example; returns its summary on the first rank."""
    args = parse(argv)
    with flags.one_line(), ranks.start(args.device) as here:
        data = signals.generate(args.signals, args.train_size, args.test_size).to(here.device)
        found = [train(data, one, here, profile=one.seed == args.seed) for one in runs.each(args, "loss", args.loss)]
        return show(data, args, found) if here.first else None


def show(data: signals.Dataset, args: argparse.Namespace, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Prints and writes what all seeds of all losses found."""
    summary = runs.summarise(found, args, ("signals", "temperature"), data.train.x.device.type)
    raw = accuracies({name: split._replace(x=split.x.flatten(1)) for name, split in data.splits().items()}, True)
    summary["raw"] = {key: (value, 0.0) for key, value in raw.items()}
    summary["data"] = {name: len(split.y) for name, split in data.splits().items()} | {"classes": data.classes}
    curves = runs.curves(found, "dev_knn")
    signal_pictures.draw(data, args.signals, curves, 100 * raw["dev_knn"], args.out / "signals.png")
    print(table(summary), runs.profiles(summary), sep="\n")
    runs.write(summary, args.out)
    return summary


if __name__ == "__main__":
    main()
