# SPDX-License-Identifier: Apache-2.0
"""A callback for the Trainer of transformers, and so for that of sentence-transformers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pycl.engine.validation import check_count
from pycl.viz.recording import Recorder, Speed, arguments_of, scalars

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    raise ImportError("pycl.viz.transformers needs transformers: pip install transformers") from error


class ContrastiveCallback(TrainerCallback):
    """Embeds a batch of yours at logging steps, measures it with :func:`pycl.viz.measure`, and logs what it finds.

    A callback of this Trainer sees no embeddings: neither batches nor outputs are handed to it. So it embeds the same
    batch again and again, by a function that you give, which also makes the numbers of one step comparable with those
    of another::

        def probe(model):  # of sentence-transformers; any model that gives [N, d] for each view will do
            return [model.encode(texts, convert_to_tensor=True) for texts in (anchors, positives)]

        trainer = SentenceTransformerTrainer(..., callbacks=[ContrastiveCallback(probe, loss=loss)])

    The function runs without gradients and with the model in evaluation mode, and what it draws from torch's generators
    is put back: the training is bit for bit the one without the callback.

    The numbers go to ``trainer.state.log_history``, as ``contrastive/alignment`` and so on, into the row of the step's
    loss, and to callbacks that come after this one. The Trainer puts its reporters (``report_to``: TensorBoard, W&B,
    ...) before callbacks of yours; :meth:`add_to` puts this one before them. With ``log_path`` every measured step is a
    row of a :class:`pycl.viz.RunLog`, with histograms, loss, learning rate and speed. A training that goes on from a
    checkpoint goes on with its log, too: rows of later steps are dropped.

    All ranks embed, so that a sharded model can; rank 0 measures and logs.

    Args:
        probe: ``probe(model)`` gives the views, or a dict of arguments of :func:`pycl.viz.measure` (``embeddings``,
            ``ids``, ``codes``, ``temperature``, ...). The model is the one that is trained.
        loss: what has a ``temperature``: itself, or a loss of pycl in it, a learnable one before others. None looks for
            that in the model. Losses of sentence-transformers are not in the model, and CLIP's scale is not in the
            loss: have the probe give ``temperature``.
        every_n_logs: logging steps between measures.
        log_path: JSON lines to write; at step 0 a file with rows in it is refused.
        dashboard: PNG to draw from them at the end of the training.

    Raises:
        ImportError: transformers is not installed, or there is a dashboard to draw and no matplotlib.
        TypeError: a probe that is no function, a loss without a temperature, an every_n_logs that is no integer.
        ValueError: every_n_logs < 1, a dashboard without a log_path.
    """

    def __init__(
        self,
        probe: Callable[[Any], Any],
        loss: Any = None,
        every_n_logs: int = 1,
        log_path: str | os.PathLike[str] | None = None,
        dashboard: str | os.PathLike[str] | None = None,
    ) -> None:
        if not callable(probe):
            raise TypeError(f"probe must be a function of the model, got {type(probe).__name__}")
        self.probe, self.every_n_logs = probe, check_count("every_n_logs", every_n_logs)
        self._recorder = Recorder(loss, log_path, dashboard)
        self._speed = Speed()
        self._logs = 0

    def add_to(self, trainer: Any) -> None:
        """Become the trainer's first callback, so that its reporters get the numbers as well."""
        trainer.callback_handler.callbacks.insert(0, self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._recorder.start(state.global_step)
        self._speed.go_on()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._speed.go_on()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._speed.go_on()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._speed.go_on()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._speed.note(args.train_batch_size * args.gradient_accumulation_steps * args.world_size)

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or "loss" not in logs:  # of an evaluation, or of the end
            return
        self._logs += 1
        if self._logs % self.every_n_logs:
            return
        with torch.no_grad(), evaluating(model), own_random_numbers():
            arguments = arguments_of(self.probe(model))
        if state.is_world_process_zero:
            row = self._recorder.measured(arguments, model)
            numbers = scalars(row)
            logs.update(numbers)
            state.log_history[-1].update(numbers)
            row |= {name: logs[name] for name in ("loss", "learning_rate", "grad_norm") if name in logs}
            row |= {"step": state.global_step, "epoch": state.epoch, "images_per_second": self._speed.rate()}
            self._recorder.append(row)
        self._speed.go_on()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._recorder.finish()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; each of its modules is put back into the mode that it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def own_random_numbers() -> Iterator[None]:
    """What is drawn inside leaves torch's generators, of the CPU and of the current GPU, as they were."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        yield
