# SPDX-License-Identifier: Apache-2.0
"""How a panel of the dashboard looks. Objects of matplotlib alone: no state of the program changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from pycl.viz.series import Heat, Series, envelope, running_median

LINE, RAW = "#0072B2", "#8fbfdd"  # blue, and it lighter: seen alike by all eyes
MAPS = {"positives": "Blues", "negatives": "Oranges"}
MARKED = 20  # points of a line that are few enough to mark each
SMOOTHED = 30  # points from which a running median says more than the points
ACROSS = 3
WIDTH, HEIGHT = 4.1, 2.35  # of a panel, in inches
TITLE = 44  # letters that fit above a panel


class Style(NamedTuple):
    """How the line of a name is drawn; names that are not known are smoothed under their own name."""

    title: str
    smooth: bool = False
    from_zero: bool = False
    percent: bool = False
    whole: bool = False


STYLES = {  # in the order of the panels
    "loss": Style("loss", smooth=True),
    "temperature": Style("temperature"),
    "learning_rate": Style("learning rate", from_zero=True),
    "alignment": Style("alignment: 0 is perfect"),
    "uniformity": Style("uniformity: lower is more even"),
    "effective_rank": Style("effective rank"),
    "positives": Style("similarity of positives"),
    "negatives": Style("similarity of negatives"),
    "overlap": Style("overlap of positives and negatives", from_zero=True, percent=True),
    "assignment_entropy": Style("entropy of an assignment (nats)", from_zero=True),
    "perplexity": Style("prototypes in use (perplexity)", from_zero=True),
    "dead": Style("dead prototypes", from_zero=True, whole=True),
    "images_per_second": Style("images per second", smooth=True, from_zero=True),
    "loss_share": Style("the loss's share of a step", smooth=True, from_zero=True, percent=True),
}


def draw(panels: dict[str, Series | Heat], title: str) -> Figure:
    """All panels on one page, three in a row, all from the first step to the last."""
    across = min(ACROSS, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(WIDTH * across, HEIGHT * down + 0.7), layout="constrained")
    every = figure.subplots(down, across, squeeze=False).ravel()
    for axes, (name, panel) in zip(every, panels.items(), strict=False):
        if isinstance(panel, Heat):
            _heat_map(axes, panel, MAPS[name])
        else:
            _line(axes, panel, STYLES.get(name) or Style(name.replace("_", " "), smooth=True))
        _title(axes, name, panel)
        _steps(axes, list(panels.values()))
    for axes in every[len(panels) :]:
        figure.delaxes(axes)
    figure.suptitle(title, fontsize=10, parse_math=False)
    figure.supxlabel(_legend(panels), fontsize=8.5)
    return figure


def _legend(panels: dict[str, Series | Heat]) -> str:
    """What the marks mean that are there."""
    said = ["step"]
    if any(name not in STYLES or STYLES[name].smooth for name, panel in panels.items() if _many(panel)):
        said.append("dark line over a light one: running median")
    if any(isinstance(panel, Heat) for panel in panels.values()):
        said.append("dark area: where the pairs are, line: their median")
    return said[0] if len(said) == 1 else f"{said[0]}   ({'; '.join(said[1:])})"


def _many(panel: Series | Heat) -> bool:
    return isinstance(panel, Series) and len(panel.steps) >= SMOOTHED


def _title(axes: Axes, name: str, panel: Series | Heat) -> None:
    title = STYLES[name].title if name in STYLES else name.replace("_", " ")
    if isinstance(panel, Series) and panel.missing:
        title += f" ({panel.missing} not finite)"
    shown = title if len(title) <= TITLE else title[: TITLE - 1] + "…"
    axes.set_title(shown, fontsize=9.5, loc="left", parse_math=False)


def _line(axes: Axes, series: Series, style: Style) -> None:
    few = len(series.steps) <= MARKED
    smooth = style.smooth and _many(series)
    (line,) = axes.plot(*envelope(series), color=RAW if smooth else LINE, linewidth=0.7 if smooth else 1.2)
    if few:
        line.set(marker="o", markersize=3, clip_on=False)  # a mark on the edge of the panel is whole
    if smooth:
        axes.plot(*running_median(series), color=LINE, linewidth=1.5)
    low, high = series.values.min(), series.values.max()
    if high - low < 1e-3 * max(abs(low), abs(high), 1e-30):  # a constant: its rounding errors are no news
        around = 0.05 * abs(high) or 1.0
        axes.set_ylim(low - around, high + around)
    if style.from_zero and low >= 0:
        axes.set_ylim(0, 1.08 * high or 1.0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=style.whole))
    axes.yaxis.set_major_formatter(FuncFormatter(_percent if style.percent else _number))


def _heat_map(axes: Axes, heat: Heat, colours: str) -> None:
    """Each column against its own mode, the square root of it, so that tails show."""
    dark = np.sqrt(heat.shares / heat.shares.max(0))
    axes.pcolormesh(heat.step_edges, heat.bin_edges, dark, cmap=colours, vmin=0, vmax=1)
    seen = [Stroke(linewidth=2.4, foreground="white"), Normal()]  # on any colour
    few = len(heat.steps) <= MARKED
    axes.plot(
        *(heat.steps, heat.medians()),
        color="black",
        linewidth=1.0,
        marker="o" if few else None,
        markersize=2.5,
        path_effects=seen,
    )
    axes.set_ylim(heat.bin_edges[0], heat.bin_edges[-1])
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.yaxis.set_major_formatter(FuncFormatter(_number))


def _steps(axes: Axes, panels: Sequence[Series | Heat]) -> None:
    ends = [panel.step_edges if isinstance(panel, Heat) else panel.steps for panel in panels]
    first, last = min(steps[0] for steps in ends), max(steps[-1] for steps in ends)
    margin = 0.01 * (last - first) or 0.5
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)


def _number(value: float, _: int | None = None) -> str:
    return f"{value:g}"


def _percent(value: float, _: int | None = None) -> str:
    return f"{100 * value:.3g} %"
