# SPDX-License-Identifier: Apache-2.0
"""The dashboard of a run: one call, from its rows to a picture."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pycl.viz.run_log import Row, RunLog, plain_row, read
from pycl.viz.series import Heat, Series, by_step, histograms, numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150


def dashboard(
    log: str | os.PathLike[str] | RunLog | Iterable[Mapping[str, Any]], path: str | os.PathLike[str] | None = None
) -> Figure:
    """Draw a run: its loss, temperature, representation, similarities and speed against the step.

    A panel is drawn where some row has its number: :func:`pycl.viz.measure` names most of them, and ``loss``,
    ``learning_rate``, ``images_per_second`` and ``loss_share`` are the others that are known; see ``docs/viz.md``. Any
    other number gets a panel under its own name, but for ``epoch``, which is in the title. Rows of one step are one;
    of a value that was written twice the later one counts. Long runs are thinned out: lines keep their extremes, and
    heat maps have the mean of consecutive histograms.

    The run may still be going on: what is in the log is drawn.

    Args:
        log: the path of a :class:`RunLog`, itself, or its rows.
        path: of a PNG to write, or None.

    Returns:
        The figure, of matplotlib; ``pyplot`` does not know it.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the log cannot be read, or the picture not be written.
        TypeError, ValueError: a log as :func:`read` refuses it, a row as :class:`RunLog` refuses it, histograms that
            are no counts, no row, or no number to draw.
    """
    need_matplotlib()
    from pycl.viz.panels import STYLES, draw

    rows, name = _rows(log)
    found: dict[str, Series | Heat] = {**numbers(rows)}
    epochs = found.pop("epoch", None)
    heats, overlap = histograms(rows)
    found |= heats
    if overlap is not None:
        found["overlap"] = overlap
    if not found:
        raise ValueError(f"{name or 'log'} has no number to draw, beside the step")
    panels = {key: found[key] for key in (*STYLES, *sorted(found.keys() - STYLES.keys())) if key in found}
    title = f"steps {rows[0]['step']} to {rows[-1]['step']}" if len(rows) > 1 else f"step {rows[0]['step']}"
    if isinstance(epochs, Series):
        title += f", epoch {epochs.values[-1]:.4g}"
    figure = draw(panels, f"{name}: {title}" if name else title)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", dpi=DPI)
    return figure


def need_matplotlib() -> None:
    """Raise where there is none: a run should know before it starts, not when it has ended."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("pycl.viz.dashboard needs matplotlib: pip install 'pycl-kernels[train]'")


def _rows(log: str | os.PathLike[str] | RunLog | Iterable[Mapping[str, Any]]) -> tuple[list[Row], str]:
    """The rows by step, and the name of their file, where they have one."""
    if isinstance(log, RunLog):
        log = log.path
    name = Path(log).name if isinstance(log, (str, os.PathLike)) else ""
    given = read(log) if isinstance(log, (str, os.PathLike)) else log
    if not isinstance(given, Iterable) or isinstance(given, Mapping):
        raise TypeError(f"log must be a path, a RunLog or a list of rows, got {type(given).__name__}")
    rows = [plain_row(row) for row in given]
    if not rows:
        raise ValueError(f"{log if name else 'log'} has no rows")
    return by_step(rows), name
