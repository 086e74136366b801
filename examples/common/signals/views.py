# SPDX-License-Identifier: Apache-2.0
"""Random views of a whole batch of signals. They draw from torch's own generator."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from common.signals.data import LEFT, RATE, RIGHT, turned

# ---- rhythms: the views of MVCNet, each from one domain


def eeg_views(x: Tensor) -> Tensor:
    """Trials ``[N, C, T]`` as they are, and changed in time, in frequency and in space: ``[4, N, C, T]``."""
    return torch.stack([x, time_view(x), frequency_view(x), channel_view(x)])


def time_view(x: Tensor) -> Tensor:
    """Begins elsewhere, and every second one runs backwards."""
    start = torch.randint(x.shape[-1], (len(x), 1), device=x.device)
    forward = torch.where(_coin(x), 1, -1)
    at = (start + forward.view(-1, 1) * torch.arange(x.shape[-1], device=x.device)) % x.shape[-1]
    return x.gather(-1, at[:, None].expand_as(x))


def frequency_view(x: Tensor) -> Tensor:
    """All frequencies moved by the same up to 0.75 Hz, by way of the analytic signal."""
    n = x.shape[-1]
    one_sided = x.new_zeros(n)
    one_sided[1 : n // 2] = 2
    analytic = torch.fft.ifft(torch.fft.fft(x) * one_sided)
    shift = x.new_empty(len(x), 1, 1).uniform_(-0.75, 0.75)
    turn = 2 * math.pi * shift * torch.arange(n, device=x.device) / RATE
    return (analytic * torch.polar(torch.ones_like(turn), turn)).real


def channel_view(x: Tensor) -> Tensor:
    """Left and right exchanged for every second one, and all channels louder or softer, each by itself."""
    mirrored = torch.cat(x.chunk(2, 1)[::-1], 1)
    gain = x.new_empty(*x.shape[:2], 1).uniform_(0.5, 1.5)
    return gain * torch.where(_coin(x), mirrored, x)


# ---- a figure that moves: the growing augmentations of HiCLR


def basic(x: Tensor) -> Tensor:
    """A part of the clip at another pace, sheared a little, seen from elsewhere. ``[N, 3 * J, T]``, as all of these."""
    n = len(x)
    length = x.new_empty(n, 1).uniform_(0.6, 1)
    start = torch.rand_like(length) * (1 - length)
    across = 2 * (start + length * torch.linspace(0, 1, x.shape[-1], dtype=x.dtype, device=x.device)) - 1
    grid = torch.stack([across, torch.zeros_like(across)], -1)[:, None]
    parts = F.grid_sample(x[:, :, None], grid, align_corners=True)[:, :, 0]
    shear = torch.eye(3, dtype=x.dtype, device=x.device) + x.new_empty(n, 3, 3).uniform_(-0.3, 0.3)
    joints = (shear @ parts.unflatten(1, (3, -1)).flatten(2)).view(n, 3, -1, x.shape[-1]).transpose(1, 2)
    direction = x.new_empty(n).uniform_(-math.pi / 4, math.pi / 4)
    return turned(joints, direction).transpose(1, 2).flatten(1, 2)


def normal(x: Tensor) -> Tensor:
    """``basic``, and perhaps in a mirror, perhaps backwards, and noisy."""
    joints = basic(x).unflatten(1, (3, -1)).transpose(1, 2)
    joints = torch.where(_coin(x)[..., None], _mirrored(joints), joints)
    joints = torch.where(_coin(x)[..., None], joints.flip(-1), joints)
    return (joints + 0.05 * torch.randn_like(joints)).transpose(1, 2).flatten(1, 2)


def strong(x: Tensor) -> Tensor:
    """``normal``, and with a third of the joints, and for every second one an axis, set to 0."""
    parts = normal(x).unflatten(1, (3, -1))
    n, _, joints, _ = parts.shape
    kept = torch.rand(n, 1, joints, 1, device=x.device) > 1 / 3
    axis = F.one_hot(torch.randint(3, (n,), device=x.device), 3).view(n, 3, 1, 1) * _coin(x)[..., None]
    return (parts * kept * (1 - axis)).flatten(1, 2)


def _mirrored(joints: Tensor) -> Tensor:
    """[N, J, 3, T] with left and right exchanged."""
    order = torch.arange(joints.shape[1], device=joints.device)
    order[list(LEFT + RIGHT)] = torch.tensor(RIGHT + LEFT, device=joints.device)
    return joints[:, order] * joints.new_tensor([-1.0, 1.0, 1.0])[:, None]


def _coin(x: Tensor) -> Tensor:
    """[N, 1, 1], true for about a half."""
    return torch.rand(len(x), 1, 1, device=x.device) < 0.5


def growing_views(x: Tensor) -> Tensor:
    """Clips under augmentations of growing strength, ``[3, N, 3 * J, T]``."""
    return torch.stack([basic(x), normal(x), strong(x)])


VIEWS = {"eeg": eeg_views, "skeleton": growing_views}
