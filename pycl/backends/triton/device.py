# SPDX-License-Identifier: Apache-2.0
"""What of a GPU decides about tiles, launches and memory."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from pycl.backends.triton.launch import recorded_architecture
from pycl.triton_kernels.interpreter import INTERPRETED


class Device(NamedTuple):
    """What of a GPU decides about tiles, launches and memory."""

    architecture: int  # 90 for compute capability 9.0; 0 in the interpreter
    num_sms: int  # multiprocessors
    memory: int  # bytes


def device_of(device: torch.device) -> Device:
    if (recorded := recorded_architecture()) is not None:
        return Device(recorded, 132, 80 << 30)
    return Device(0, 1, 0) if INTERPRETED else _gpu(device)


@functools.cache
def _gpu(device: torch.device) -> Device:
    found = torch.cuda.get_device_properties(device)
    major, minor = torch.cuda.get_device_capability(device)
    return Device(10 * major + minor, found.multi_processor_count, found.total_memory)
