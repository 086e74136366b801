# SPDX-License-Identifier: Apache-2.0
"""A callback for the trainer of Lightning, of ``lightning`` and of ``pytorch_lightning``."""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from pycl.engine.validation import check_count
from pycl.viz.recording import Recorder, Speed, arguments_of, scalars

PACKAGES = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}
# whoever has `lightning` has both, and which one the trainer is of shows only when there is one
BASES = tuple(
    importlib.import_module(module).Callback for top, module in PACKAGES.items() if importlib.util.find_spec(top)
)
NO_STEP = {"loss": None}  # what is left of a training step that returned None
if not BASES:
    raise ImportError("pycl.viz.lightning needs Lightning: pip install lightning")


class ContrastiveCallback(*BASES):  # type: ignore[misc]  # the classes that are installed
    """Measures the embeddings of a training step with :func:`pycl.viz.measure`, and logs what it finds.

    The training step returns a dict with its loss and its views under ``"embeddings"``::

        def training_step(self, batch, batch_idx):
            views = [self.encoder(view) for view in batch]
            return {"loss": self.loss(views), "embeddings": [z.detach() for z in views]}

    The numbers go to the module's loggers as ``contrastive/alignment`` and so on, the temperature of the loss among
    them. With ``log_path`` every measured step is a row of a :class:`pycl.viz.RunLog`, with histograms, loss, learning
    rate and speed. A fit that goes on from a checkpoint goes on with its log, too: rows of later steps are dropped.

    Rank 0 measures its own batch; no other rank logs any of this.

    Args:
        loss: what has a ``temperature``: itself, or a loss of pycl in it, a learnable one before others. None looks for
            that in the module that is trained. CLIP's scale is not in the loss: give ``temperature`` with the
            embeddings.
        embeddings: key of the views in what the training step returns, or a function of the module and what the step
            returned that gives the views, or a dict of arguments of :func:`pycl.viz.measure` (``embeddings``, ``ids``,
            ``codes``, ...).
        every_n_steps: steps of the optimizer between measures. None: as often as the trainer logs
            (``log_every_n_steps``). Lightning hands numbers to its loggers at those steps alone.
        log_path: JSON lines to write; at step 0 a file with rows in it is refused.
        dashboard: PNG to draw from them at the end of the fit.

    Raises:
        ImportError: Lightning is not installed, or there is a dashboard to draw and no matplotlib.
        TypeError: a loss without a temperature, an every_n_steps that is no integer.
        ValueError: every_n_steps < 1, a dashboard without a log_path.
    """

    def __init__(
        self,
        loss: Any = None,
        embeddings: str | Callable[[Any, Any], Any] = "embeddings",
        every_n_steps: int | None = None,
        log_path: str | os.PathLike[str] | None = None,
        dashboard: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        self.every_n_steps = None if every_n_steps is None else check_count("every_n_steps", every_n_steps)
        self.embeddings = embeddings
        self._recorder = Recorder(loss, log_path, dashboard)
        self._speed = Speed()
        self._last, self._learning_rate = 0, 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self.every_n_steps is not None and trainer.loggers and self.every_n_steps % (trainer.log_every_n_steps or 1):
            warnings.warn(
                f"every_n_steps={self.every_n_steps} is no multiple of the trainer's log_every_n_steps="
                f"{trainer.log_every_n_steps}: loggers do not get the measures of the other steps",
                stacklevel=2,
            )
        self._last = trainer.global_step
        if trainer.is_global_zero:
            self._recorder.start(trainer.global_step)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._speed.go_on()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._speed.go_on()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.optimizers:  # before the step: its scheduler changes it before the end of the batch
            self._learning_rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._speed.note(1)
        every, step = self.every_n_steps or trainer.log_every_n_steps or 1, trainer.global_step
        # batches whose gradients are accumulated share a step; several optimizers take several steps in one batch
        if not trainer.is_global_zero or step // every == self._last // every or not outputs or outputs == NO_STEP:
            return
        self._last = step
        arguments = arguments_of(self._found(pl_module, outputs))
        row = self._recorder.measured(arguments, pl_module)
        pl_module.log_dict(scalars(row), on_step=True, on_epoch=False, rank_zero_only=True)
        if isinstance(loss := outputs.get("loss"), Tensor):
            row["loss"] = float(loss) * (trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1)
        row |= {"step": step, "epoch": trainer.current_epoch, "learning_rate": self._learning_rate}
        row["images_per_second"] = len(arguments["embeddings"][0]) * self._speed.rate()
        self._recorder.append(row)
        self._speed.go_on()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self._recorder.finish()

    def _found(self, pl_module: Any, outputs: Mapping[str, Any]) -> Any:
        if callable(self.embeddings):
            return self.embeddings(pl_module, outputs)
        if self.embeddings not in outputs:
            raise ValueError(
                f"training_step must return a dict with its views under {self.embeddings!r}, got "
                f"{', '.join(outputs)}; or give embeddings=, a function of the module and of what the step returned"
            )
        return outputs[self.embeddings]
