# SPDX-License-Identifier: Apache-2.0
"""The training loop: batches, precision, ranks, learning rate, checkpoints and logs. What is learnt is the task's."""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from common import checkpoint
from common.flags import AMP, Refused
from common.logs import Logs
from common.ranks import Ranks
from common.stopwatch import Stopwatch

CHECKPOINT = "checkpoint.pt"
# flags that may differ between a run and the one that goes on with its checkpoint: they do not change what is computed
FREE = {"data_root", "out", "resume", "checkpoint_every", "tensorboard", "quiet", "device", "compile", "threads"}
Embeddings = Tensor | tuple[Tensor, ...]


class Task(nn.Module):
    """What an example defines: its batches, its embeddings, its loss, and what it measures.

    ``size`` is the number of instances in an epoch; ``encoder`` is what --compile compiles.
    """

    size: int
    encoder: nn.Module

    def batch(self, rows: Tensor) -> Any:
        """The instances of these rows, augmented: what ``embed`` takes."""
        raise NotImplementedError

    def embed(self, batch: Any) -> Embeddings:
        """What the loss compares."""
        raise NotImplementedError

    def loss(self, embeddings: Embeddings, batch: Any) -> Tensor:
        """pycl's loss, with group="world"."""
        raise NotImplementedError

    def dense_loss(self, embeddings: Embeddings, batch: Any) -> Tensor:
        """The same in plain torch, every matrix stored: what the profile compares with."""
        raise NotImplementedError

    def measure(self, thorough: bool) -> dict[str, Any]:
        """What is logged beside the loss; ``thorough`` before the first step and after the last one.

        Every rank is asked, in evaluation mode, without gradients, and with random numbers that the training does not
        see."""
        return {}

    def before_step(self, step: int) -> None:
        """Whatever comes before a step, counted from 0."""

    def before_update(self, step: int) -> None:
        """Whatever comes between the backward and the update of the parameters."""

    def forward(self, batch: Any, watch: Stopwatch, *, dense: bool = False) -> Tensor:
        """The loss of a batch, or its dense form; the time of its parts goes to ``watch``."""
        embeddings = _after_gradients(self.embed(batch), lambda: watch.lap("loss"))
        watch.lap("encoder")
        value = (self.dense_loss if dense else self.loss)(embeddings, batch)
        watch.lap("loss")
        return value


class _Joint(torch.autograd.Function):
    """Tensors as they are, and a call when all of them have their gradients."""

    @staticmethod
    def forward(ctx: Any, then: Callable[[], None], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.then = then
        return tensors

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.then()
        return None, *gradients


def _after_gradients(embeddings: Embeddings, then: Callable[[], None]) -> Embeddings:
    """The embeddings; ``then`` is called when the backward of the loss has given all of them their gradients.

    They leave one node of the graph: of several, the backward would walk through one tower before the next one's
    gradient counts as there.
    """
    several = embeddings if isinstance(embeddings, tuple) else (embeddings,)
    joint = iter(_Joint.apply(then, *(z for z in several if z.requires_grad)))
    several = tuple(next(joint) if z.requires_grad else z for z in several)
    return several if isinstance(embeddings, tuple) else several[0]


class Trainer:
    """Trains a task as the flags say. A run that was killed and resumed is, on one thread, the uninterrupted one."""

    def __init__(self, task: Task, args: argparse.Namespace, ranks: Ranks) -> None:
        self.task, self.args, self.ranks = task.to(ranks.device), args, ranks
        if args.batch_size // ranks.size < 2:
            raise Refused(f"--batch-size {args.batch_size} leaves a rank of {ranks.size} fewer than two instances")
        if task.size < 2:
            raise Refused(f"--data-root has {task.size} instances to train on; a contrast takes two")
        self.batch_size = min(args.batch_size, task.size)
        self.epoch = task.size // self.batch_size  # steps
        self.steps = min(args.epochs * self.epoch, args.max_steps or math.inf)
        self.watch = Stopwatch(ranks.device)
        if args.compile:
            task.encoder.compile()
        self.model = ranks.wrap(task)
        groups = _decayed_and_not(task.parameters(), args.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=args.lr)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda s: warm_up_then_cosine(s, self.steps))
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=args.amp == "fp16")
        self.step = 0
        self._order: tuple[int, Tensor] | None = None
        # ranks draw different augmentations
        _seed(args.seed * ranks.size + ranks.rank)
        self._resume()

    def fit(self) -> None:
        """Trains to the end; the log has a row for every step and every measurement."""
        self.args.out.mkdir(parents=True, exist_ok=True)
        logs = Logs(self.args, first=self.ranks.first, start=self.step, steps=self.steps)
        try:
            if self.step == 0:
                self._measure(logs)
            while self.step < self.steps:
                logs.step(self._train_one_step())
                if self.step % (self.args.evaluate_every * self.epoch) == 0 or self.step == self.steps:
                    self._measure(logs)
                every = self.args.checkpoint_every
                if every and (self.step % every == 0 or self.step == self.steps):
                    self.save()
        finally:
            logs.close()

    def _train_one_step(self) -> dict[str, Any]:
        self.watch.start()
        self.model.train()
        self.task.before_step(self.step)
        batch = self.task.batch(self.rows(self.step))
        self.watch.lap("data")
        with self.autocast():
            loss = self.model(batch, self.watch)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.watch.lap("encoder")
        self.task.before_update(self.step)
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.task.parameters(), self.args.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        rate = self.schedule.get_last_lr()[0]
        self.schedule.step()
        self.watch.lap("optimizer")
        value = self.ranks.mean(loss.detach()).item()
        parts = self.watch.stop()
        self.step += 1
        if not math.isfinite(value):
            raise Refused(f"the loss is {value} at step {self.step}; try a smaller --lr")
        return self._row(value, rate, parts)

    def autocast(self) -> torch.autocast:
        """The precision that --amp asks for."""
        dtype = AMP[self.args.amp]
        return torch.autocast(self.ranks.device.type, dtype, enabled=dtype is not None)

    def _row(self, loss: float, rate: float, parts: dict[str, float]) -> dict[str, Any]:
        seconds = sum(parts.values())
        row = {"step": self.step, "epoch": self.step / self.epoch, "loss": loss, "learning_rate": rate}
        temperature = getattr(getattr(self.task, "criterion", None), "temperature", None)
        if isinstance(temperature, Tensor):  # a learned one
            row["temperature"] = temperature.item()
        return row | {"images_per_second": self.batch_size / seconds, "loss_share": parts["loss"] / seconds}

    def rows(self, step: int) -> Tensor:
        """This rank's instances of a step. The order of an epoch follows from the seed and its number alone."""
        epoch, at = divmod(step, self.epoch)
        if self._order is None or self._order[0] != epoch:
            generator = Generator().manual_seed((self.args.seed << 32) + epoch)
            self._order = (epoch, torch.randperm(self.task.size, generator=generator))
        rows = self._order[1][at * self.batch_size :][: self.batch_size]
        return self.ranks.share(rows).to(self.ranks.device)

    @torch.no_grad()
    def _measure(self, logs: Logs) -> None:
        self.task.eval()
        with torch.random.fork_rng():  # a run that measures more often is the same run
            torch.manual_seed(self.args.seed)
            measures = self.task.measure(thorough=self.step in (0, self.steps))
        logs.write({"step": self.step, "epoch": self.step / self.epoch, **measures})

    def save(self) -> None:
        """Writes the checkpoint of this moment."""
        random_states = self.ranks.all(checkpoint.random_state())
        if self.ranks.first:
            parts = {name: part.state_dict() for name, part in self._stateful().items()}
            place = {"step": self.step, "steps": self.steps, "settings": _settings(self.args), "random": random_states}
            checkpoint.write(parts | place, self.args.out / CHECKPOINT)

    def _stateful(self) -> dict[str, Any]:
        return {"task": self.task, "optimizer": self.optimizer, "schedule": self.schedule, "scaler": self.scaler}

    def _resume(self) -> None:
        path = _checkpoint_of(self.args)
        if path is None:
            return
        state = checkpoint.read(path)
        now = _settings(self.args)
        for name, value in state["settings"].items():
            if now.get(name) != value:
                flag = "--" + name.replace("_", "-")
                raise Refused(f"--resume: {path} was made with {flag} {value}, not {now.get(name)}")
        if state["steps"] != self.steps:
            raise Refused(f"--resume: {path} is of a run of {state['steps']} steps, not {self.steps}: other data?")
        if len(state["random"]) != self.ranks.size:
            raise Refused(f"--resume: {path} is of {len(state['random'])} ranks, not {self.ranks.size}")
        for name, part in self._stateful().items():
            part.load_state_dict(state[name])
        self.step = state["step"]
        checkpoint.set_random_state(state["random"][self.ranks.rank])


def _checkpoint_of(args: argparse.Namespace) -> Path | None:
    """Where to go on from, by --resume. An unfinished run is not started over by oversight."""
    own = args.out / CHECKPOINT
    if args.resume == "auto":
        return own if own.exists() else None
    if args.resume == "never":
        return None
    if args.resume is not None:
        return Path(args.resume)
    if own.exists() and (state := checkpoint.read(own))["step"] < state["steps"]:
        raise Refused(
            f"{own} is of a run that stopped at step {state['step']} of {state['steps']}: "
            "--resume auto goes on with it, --resume never starts over"
        )
    return None


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that decide what is computed."""
    return {name: value for name, value in vars(args).items() if name not in FREE}


def _decayed_and_not(parameters: Iterable[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    parameters = list(parameters)
    matrices, others = [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() <= 1]
    return [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


def warm_up_then_cosine(step: int, steps: int) -> float:
    """The learning rate's factor: up in a line over the first tenth, down in half a cosine."""
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
