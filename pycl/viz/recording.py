# SPDX-License-Identifier: Apache-2.0
"""What the callbacks for training libraries share: the temperature, the speed, the rows and the picture."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pycl.modules.base import Loss
from pycl.viz.drawing import dashboard, need_matplotlib
from pycl.viz.measures import measure
from pycl.viz.run_log import Row, RunLog, read

PREFIX = "contrastive/"


class Recorder:
    """Measures a batch, and keeps the rows of a run where it has a log.

    Args:
        loss: what has a ``temperature`` or a loss of pycl in it, or None to look for one in the model.
        log_path: of the :class:`pycl.viz.RunLog`, or None.
        picture: path of the dashboard, or None.
    """

    def __init__(
        self, loss: Any, log_path: str | os.PathLike[str] | None, picture: str | os.PathLike[str] | None
    ) -> None:
        if loss is not None and temperature_of(loss) is None:
            raise TypeError(f"loss must have a temperature, got {type(loss).__name__} without one")
        if picture is not None and log_path is None:
            raise ValueError("dashboard needs log_path: it is drawn from the log")
        if picture is not None:
            need_matplotlib()
        self.loss, self.picture = loss, picture
        self.log = None if log_path is None else RunLog(log_path)

    def start(self, step: int) -> None:
        """Go on after a step: later rows are those of a run that was cut off. At step 0 the log must be new."""
        if self.log is None:
            return
        if step == 0 and self.log.path.exists() and read(self.log.path):
            raise FileExistsError(f"log_path: {self.log.path} has the rows of another run: move it, or name another")
        self.log.truncate_after(step)

    def measured(self, arguments: dict[str, Any], model: nn.Module) -> Row:
        """:func:`pycl.viz.measure`, with the temperature of the loss unless there is one among the arguments."""
        temperature = temperature_of(model if self.loss is None else self.loss)
        return measure(**{"temperature": temperature, **arguments})

    def append(self, row: Row) -> None:
        if self.log is not None:
            self.log.append(row)

    def finish(self) -> None:
        """Draw the run; a warning where there is nothing to draw."""
        if self.log is None or self.picture is None:
            return
        if self.log.path.exists() and read(self.log.path):
            dashboard(self.log, self.picture)
        else:
            warnings.warn(f"no dashboard: the run ended before its first row in {Path(self.log.path)}", stacklevel=2)


class Speed:
    """Things a second since the last question, without what happens between a pause and :meth:`go_on`."""

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0
        self.go_on()

    def go_on(self) -> None:
        self.since = time.perf_counter()

    def note(self, count: int) -> None:
        """So many more are done."""
        now = time.perf_counter()
        self.count += count
        self.seconds += now - self.since
        self.since = now

    def rate(self) -> float:
        rate = self.count / max(self.seconds, 1e-9)
        self.count, self.seconds = 0, 0.0
        return rate


def arguments_of(found: Any) -> dict[str, Any]:
    """Of ``measure``, from what a user's function returned: views, or these arguments by name."""
    arguments = dict(found) if isinstance(found, Mapping) else {"embeddings": found}
    if arguments.get("embeddings") is None:
        raise ValueError(f"embeddings must be views, or a dict with views under 'embeddings', got {_kind(found)}")
    return arguments


def _kind(found: Any) -> str:
    return f"a dict of {', '.join(map(str, found))}" if isinstance(found, Mapping) else type(found).__name__


def temperature_of(model: Any) -> Any:
    """Its own; or of the first loss of pycl in it with a learnable temperature; or of the first with any; or None."""
    if isinstance(own := getattr(model, "temperature", None), (int, float, Tensor)):
        return own
    if not isinstance(model, nn.Module):
        return None
    having = [m for m in model.modules() if isinstance(m, Loss) and getattr(m, "temperature", None) is not None]
    learnt = [loss for loss in having if {"log_temperature", "temperature"} & dict(loss.named_parameters()).keys()]
    return next((loss.temperature for loss in (*learnt, *having)), None)


def scalars(row: Row) -> dict[str, float]:
    """The numbers of a row under their prefixed names."""
    return {f"{PREFIX}{name}": value for name, value in row.items() if isinstance(value, (int, float))}
