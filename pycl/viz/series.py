# SPDX-License-Identifier: Apache-2.0
"""From rows to what a panel draws: numbers against steps, and histograms over time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pycl.viz.run_log import Row

Numbers = NDArray[np.float64]
HISTOGRAMS = ("positives", "negatives")
POINTS = 1000  # of a line: more than a panel has pixels across
COLUMNS = 300  # of a heat map
WINDOW = 1 / 12  # of the line that a running median looks at


class Series(NamedTuple):
    """A number of each step that has it; ``missing`` counts the steps where it is None, and so was not finite."""

    steps: Numbers
    values: Numbers
    missing: int


class Heat(NamedTuple):
    """Shares [bins, columns] of the pairs: a column is the mean of consecutive histograms."""

    step_edges: Numbers
    bin_edges: Numbers
    shares: Numbers

    @property
    def steps(self) -> Numbers:
        return (self.step_edges[:-1] + self.step_edges[1:]) / 2

    def medians(self) -> Numbers:
        """The similarity that half of the pairs are below, of each column."""
        reached = np.vstack([np.zeros(len(self.steps)), self.shares.cumsum(0)])
        return np.array([np.interp(0.5, column, self.bin_edges) for column in reached.T])


def by_step(rows: Iterable[Row]) -> list[Row]:
    """One row for each step, in order; of a value that was written twice, the later one."""
    merged: dict[int, Row] = {}
    for row in rows:
        merged.setdefault(row["step"], {}).update(row)
    return [merged[step] for step in sorted(merged)]


def numbers(rows: Sequence[Row]) -> dict[str, Series]:
    """Every name with a number somewhere, beside the step; texts and lists are no numbers."""
    found: dict[str, tuple[list[int], list[Any]]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and (value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))):
                steps, values = found.setdefault(name, ([], []))
                steps.append(row["step"])
                values.append(value)
    series = {}
    for name, (steps, values) in found.items():
        all_values = np.array(values, dtype=np.float64)  # None becomes nan
        there = np.isfinite(all_values)
        if there.any():
            kept = np.array(steps, dtype=np.float64)[there]
            series[name] = Series(kept, all_values[there], int((~there).sum()))
    return series


def groups(n: int, most: int) -> NDArray[np.intp]:
    """Where each of at most ``most`` runs of n consecutive things starts."""
    return np.unique(np.linspace(0, n, min(n, most), endpoint=False).astype(np.intp))


def envelope(series: Series) -> tuple[Numbers, Numbers]:
    """The line itself, or where it has too many points the smallest and the largest value of each group of them."""
    if len(series.steps) <= 2 * POINTS:
        return series.steps, series.values
    starts = groups(len(series.steps), POINTS)
    steps = np.repeat(series.steps[starts], 2)
    extremes = (part.reduceat(series.values, starts) for part in (np.minimum, np.maximum))
    return steps, np.stack(list(extremes), 1).reshape(-1)


def running_median(series: Series) -> tuple[Numbers, Numbers]:
    """The median of the values around each point, as many on either side: fewer of them near the ends of the line."""
    starts = groups(len(series.steps), POINTS)
    values = np.array([np.median(part) for part in np.split(series.values, starts[1:])])
    most = max(1, int(WINDOW / 2 * len(values)))
    halves = [min(most, i, len(values) - 1 - i) for i in range(len(values))]
    around = [np.median(values[i - half : i + half + 1]) for i, half in enumerate(halves)]
    return series.steps[starts], np.array(around)


def histograms(rows: Sequence[Row]) -> tuple[dict[str, Heat], Series | None]:
    """The heat map of each kind of pairs, and the overlap of both where rows have both."""
    having = [row for row in rows if any(name in row for name in HISTOGRAMS)]
    if not having:
        return {}, None
    last = next(name for name in HISTOGRAMS if name in having[-1])
    edges = _edges(having[-1], last)
    shares: dict[str, dict[int, Numbers]] = {name: {} for name in HISTOGRAMS}
    for row in having:
        for name in shares.keys() & row.keys():
            if (share := _share(row, name, edges)) is not None:
                shares[name][row["step"]] = share
    heats = {name: _heat(found, edges) for name, found in shares.items() if found}
    both = [step for step in shares["positives"] if step in shares["negatives"]]
    overlap = [np.minimum(*(shares[name][step] for name in HISTOGRAMS)).sum() for step in both]
    return heats, Series(np.array(both, dtype=np.float64), np.array(overlap), 0) if both else None


def _edges(row: Row, name: str) -> Numbers:
    """Of the row's bins: it names all of them or the two ends, or they are of equal width on [-1, 1]."""
    bins = len(row[name]) if isinstance(row[name], list) else 0
    given = np.array(row.get("edges", (-1.0, 1.0)), dtype=np.float64)
    if given.shape == (2,):
        given = np.linspace(given[0], given[1], bins + 1)
    if given.shape != (bins + 1,) or not (np.diff(given) > 0).all():
        raise ValueError(
            f"edges of step {row['step']} must be two ends or {bins + 1} edges of {bins} bins, in ascending order, "
            f"got {row['edges']}"
        )
    return given


def _share(row: Row, name: str, edges: Numbers) -> Numbers | None:
    """The shares of the pairs in the bins of the last row, or None where there are no pairs."""
    counts = row[name]
    fine = isinstance(counts, list) and all(isinstance(n, (int, float)) and n >= 0 for n in counts)
    if not fine or not counts:
        raise ValueError(f"{name} of step {row['step']} must be a list of counts, got {str(counts)[:60]}")
    below = np.concatenate([[0.0], np.cumsum(counts, dtype=np.float64)])
    if below[-1] == 0:
        return None
    own = _edges(row, name)
    # another run of the program may have had other bins: its pairs are spread evenly within each
    share: Numbers = np.diff(np.interp(edges, own, below / below[-1]))
    return share


def _heat(shares: dict[int, Numbers], edges: Numbers) -> Heat:
    steps = np.array(list(shares), dtype=np.float64)
    between = (steps[:-1] + steps[1:]) / 2
    first, last = ((steps[1] - steps[0]) / 2, (steps[-1] - steps[-2]) / 2) if len(steps) > 1 else (0.5, 0.5)
    starts = groups(len(steps), COLUMNS)
    limits = np.concatenate([[steps[0] - first], between, [steps[-1] + last]])
    summed = np.add.reduceat(np.stack(list(shares.values())), starts, axis=0)
    columns = summed / np.diff([*starts, len(steps)])[:, None]
    return Heat(limits[[*starts, len(steps)]], edges, columns.T)
