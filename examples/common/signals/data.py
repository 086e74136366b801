# SPDX-License-Identifier: Apache-2.0
"""Generated signals: channels with rhythms, as an EEG has them, and joints of a figure that moves. Nothing is recorded.

What tells the classes apart is in no single number of a signal. Every signal has a phase of its own, so the means of
all classes are about the same, and a linear classifier of the raw numbers finds little.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor


class Split(NamedTuple):
    """Signals ``[N, C, T]`` with their class numbers ``[N]``; C are channels, or the coordinates of all joints."""

    x: Tensor
    y: Tensor

    def to(self, device: torch.device) -> Split:
        return Split(self.x.to(device), self.y.to(device))


class Dataset(NamedTuple):
    """Three splits that differ by the seed of the generator. Settings are chosen on ``dev``, ``test`` is reported."""

    train: Split
    dev: Split
    test: Split
    classes: int

    def splits(self) -> dict[str, Split]:
        return {"train": self.train, "dev": self.dev, "test": self.test}

    def to(self, device: torch.device) -> Dataset:
        return Dataset(self.train.to(device), self.dev.to(device), self.test.to(device), self.classes)


def uniform(shape: tuple[int, ...], low: float, high: float, generator: Generator | None = None) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


# ---- rhythms

RATE, SAMPLES, CHANNELS = 64, 128, 8  # two seconds; the first half of the channels is left, the second right
BANDS = (6.0, 10.0, 16.0)  # Hz
LAGS = (0.0, math.pi / 2)  # of the right channels, or of the left ones


def eeg(n: int, seed: int) -> Split:
    """``n`` trials ``[n, 8, 128]`` of six classes: a rhythm in one of three bands, with or without a lag.

    A trial is a burst of its class's rhythm, another rhythm of any frequency and any lag that is as strong, and noise
    whose power falls with the frequency. Frequency within the band, phase, time and length of the burst, the strength
    of a channel, and which side is behind are drawn for each trial. Each channel has variance 1.
    """
    g = Generator().manual_seed(seed)
    y = torch.arange(n) % (len(BANDS) * len(LAGS))
    band, lag = torch.tensor(BANDS)[y // len(LAGS)], torch.tensor(LAGS)[y % len(LAGS)]
    behind = torch.randint(2, (n,), generator=g) * 2 - 1
    x = _rhythm(band + uniform((n,), -1, 1, g), lag * behind, g)
    x = x + _rhythm(uniform((n,), 3, 24, g), uniform((n,), -math.pi, math.pi, g), g)
    x = x + _pink(n, g)
    order = torch.randperm(n, generator=g)
    return Split((x / x.std(-1, keepdim=True))[order], y[order])


def _rhythm(frequency: Tensor, lag: Tensor, g: Generator) -> Tensor:
    """A burst of a sine [n, C, T]; the right channels are half the lag behind, the left ones half of it ahead."""
    n = len(frequency)
    time = torch.arange(SAMPLES) / RATE
    side = torch.tensor([0.5, -0.5]).repeat_interleave(CHANNELS // 2)
    phase = uniform((n, 1), 0, 2 * math.pi, g) + lag[:, None] * side
    wave = (2 * math.pi * frequency[:, None, None] * time + phase[:, :, None]).sin()
    middle, width = uniform((n, 1, 1), 0.3, 1.7, g), uniform((n, 1, 1), 0.3, 0.6, g)
    burst = (-(((time - middle) / width) ** 2)).exp()
    return uniform((n, CHANNELS, 1), 0.5, 1.5, g) * burst * wave


def _pink(n: int, g: Generator) -> Tensor:
    """Noise of variance 1 whose power is that of white noise divided by the frequency."""
    spectrum = torch.fft.rfft(torch.randn(n, CHANNELS, SAMPLES, generator=g))
    spectrum[..., 0] = 0
    spectrum[..., 1:] /= torch.arange(1, spectrum.shape[-1]).sqrt()
    noise = torch.fft.irfft(spectrum, n=SAMPLES)
    return noise / noise.std(-1, keepdim=True)


# ---- a figure that moves

FRAMES, JOINTS = 48, 14
LEFT, RIGHT = (2, 3, 4, 8, 9, 10), (5, 6, 7, 11, 12, 13)  # joints of either side; 0 and 1 are pelvis and head
SIDEWAYS, ALTERNATING, STEPPING = 4, 2, 1  # the bits of a class


def skeleton(n: int, seed: int) -> Split:
    """``n`` clips ``[n, 3 * 14, 48]`` of eight actions: arms swing forward or sideways, both together or in turn, and
    legs step in turn or bend together.

    Pace and phase of arms and of legs, size of each limb's swing, size of the figure and direction of the view are
    drawn for each clip, and every coordinate is noisy. The pelvis is at 0.
    """
    g = Generator().manual_seed(seed)
    y = torch.arange(n) % 8
    of_arms, of_legs = (_angle(n, g) for _ in range(2))
    alternating, stepping, sideways = ((y & bit > 0).float()[:, None] for bit in (ALTERNATING, STEPPING, SIDEWAYS))
    limbs = []
    for side in (-1, 1):
        turn = of_arms + (side > 0) * math.pi * alternating
        swing = uniform((n, 1), 0.3, 0.9, g) * turn.sin()
        limbs.append(_limb((0.2 * side, 0.5), swing, swing + 0.4 * swing.abs(), sideways * side, 0.3))
    for side in (-1, 1):
        turn = of_legs + (side > 0) * math.pi * stepping
        swing = uniform((n, 1), 0.2, 0.6, g) * turn.sin()
        limbs.append(_limb((0.1 * side, 0.0), swing, swing - 0.6 * swing.abs(), torch.zeros(n, 1), 0.45))
    trunk = torch.zeros(n, 2, 3, FRAMES)
    trunk[:, 1, 1] = 0.8
    left_arm, right_arm, left_leg, right_leg = limbs
    x = torch.cat([trunk, left_arm, right_arm, left_leg, right_leg], 1) * uniform((n, 1, 1, 1), 0.8, 1.2, g)
    x = turned(x, uniform((n,), -math.pi / 4, math.pi / 4, g)) + 0.15 * torch.randn(x.shape, generator=g)
    order = torch.randperm(n, generator=g)
    return Split(x.transpose(1, 2).flatten(1, 2)[order], y[order])  # coordinates-major: all x, all y, all z


def _angle(n: int, g: Generator) -> Tensor:
    """Of a swing, [n, T]: one cycle to four from any phase."""
    cycles, phase = uniform((n, 1), 1, 4, g), uniform((n, 1), 0, 2 * math.pi, g)
    return 2 * math.pi * cycles * torch.linspace(0, 1, FRAMES) + phase


def _limb(base: tuple[float, float], upper: Tensor, lower: Tensor, sideways: Tensor, length: float) -> Tensor:
    """Three joints [n, 3, 3, T] of a limb that hangs from ``base``, by the angles [n, T] of its two parts."""
    n = len(upper)
    start = torch.tensor([*base, 0.0])[None, :, None].expand(n, 3, FRAMES)
    joints = [start]
    for bend in (upper, lower):
        out = bend.sin()
        way = torch.stack([out * sideways, -bend.cos(), out * (1 - sideways.abs())], 1)
        joints.append(joints[-1] + length * way)
    return torch.stack(joints, 1)


def turned(x: Tensor, angle: Tensor) -> Tensor:
    """Clips ``[N, J, 3, T]`` seen from angles ``[N]`` around the upright axis."""
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    across, up, ahead = x.unbind(2)
    return torch.stack([cos * across + sin * ahead, up, cos * ahead - sin * across], 2)


PAIRS = {  # a channel of the left and one of the right, to be shown
    "eeg": (0, CHANNELS - 1),
    "skeleton": (2 * JOINTS + LEFT[-1], 2 * JOINTS + RIGHT[-1]),
}
GENERATORS = {"eeg": eeg, "skeleton": skeleton}
CLASSES = {"eeg": len(BANDS) * len(LAGS), "skeleton": 8}


def generate(kind: str, train: int, test: int) -> Dataset:
    """The splits of a kind of signals; ``dev`` has as many as ``test``. They are the same for every run."""
    splits = [GENERATORS[kind](n, seed) for seed, n in enumerate((train, test, test))]
    return Dataset(*splits, CLASSES[kind])
