# SPDX-License-Identifier: Apache-2.0
"""Importing it puts a null GPU into this process and into those that multiprocessing starts from it."""

from __future__ import annotations

from multiprocessing import spawn
from typing import Any

from . import cache, device, stand_in

cache.watch()
device.use()
stand_in.use()

_prepare = spawn.get_preparation_data


def _with_a_null_gpu(name: str) -> dict[str, Any]:
    data = {key: value for key, value in _prepare(name).items() if not key.startswith("init_main")}
    return data | {"init_main_from_name": __name__}


spawn.get_preparation_data = _with_a_null_gpu
