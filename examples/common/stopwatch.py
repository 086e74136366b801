# SPDX-License-Identifier: Apache-2.0
"""Where the time of a training step goes."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from statistics import median

import torch

PARTS = ("data", "encoder", "loss", "optimizer")
COLD = 2  # steps that load code and fill caches
KEPT = 1000  # of the last steps


class Stopwatch:
    """Laps of a step, added up by part: a part's forward and its backward are one figure."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._steps: deque[dict[str, float]] = deque(maxlen=KEPT)
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []

    def start(self) -> None:
        """A step begins."""
        self._marks = []
        self.lap("")

    def lap(self, part: str) -> None:
        """What was done since the last lap was this part."""
        if self._on_gpu:  # kernels run later than they are launched
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((part, event))
        else:
            self._marks.append((part, time.perf_counter()))

    def stop(self) -> dict[str, float]:
        """The step is over; seconds of its parts."""
        if self._on_gpu:
            torch.cuda.synchronize()
        parts: dict[str, float] = defaultdict(float)
        for (_, before), (part, now) in zip(self._marks, self._marks[1:], strict=False):
            parts[part] += before.elapsed_time(now) / 1e3 if self._on_gpu else now - before
        self._steps.append(dict(parts))
        return self._steps[-1]

    def medians(self) -> dict[str, float]:
        """Median seconds of every part, over the last steps but for the first ``COLD``."""
        steps = list(self._steps)[COLD:] or self._steps
        return {part: median(step.get(part, 0.0) for step in steps) for part in PARTS} if steps else {}
