# SPDX-License-Identifier: Apache-2.0
"""How a kernel is started on a device: through Triton the first time, then at once; no kernel runs here."""

from __future__ import annotations

import logging
import types
from typing import Any

import pytest
import torch

from pycl.backends.registry import why_not

if reason := why_not("triton", "cpu"):
    pytest.skip(reason, allow_module_level=True)

import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from pycl.backends.triton import launch


class Kernel:
    """Takes down how it was launched: through Triton, or at once what that had compiled."""

    __name__ = "kernel"
    arg_names = ("x", "n", "B")

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: Any) -> Any:
        def compiled(*arguments: Any, **options: Any) -> Any:
            self.calls.append(("triton", grid, *arguments, options))
            return Compiled()

        class Compiled:
            def __getitem__(_, grid: Any) -> Any:
                return lambda *arguments: self.calls.append(("compiled", grid, *arguments))

        return compiled


def on_a_device(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(triton.runtime.driver, "_active", types.SimpleNamespace(get_current_device=lambda: 0))
    return Kernel()


def test_a_slow_first_launch_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(launch, "SLOW", -1.0)
    kernel = on_a_device(monkeypatch)
    with caplog.at_level(logging.INFO, logger="pycl"):
        for n in (5, 6):
            launch.launch(kernel, (1,), None, n, B=32)
    assert len(caplog.records) == 1
    assert "compiled kernel" in caplog.text


def test_a_form_that_was_seen_goes_to_what_it_was_compiled_to(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, z = on_a_device(monkeypatch), torch.zeros(64)
    for n in (5, 6):
        launch.launch(kernel, (2,), z, n, B=32)
    assert kernel.calls == [
        ("triton", (2,), z, 5, {"B": 32, "enable_fp_fusion": True}),
        ("compiled", (2, 1, 1), z, 6, 32),
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda z, n, B: (z[1:], n, B),  # its address is no multiple of 16 bytes
        lambda z, n, B: (z.double(), n, B),
        lambda z, n, B: (None, n, B),
        lambda z, n, B: (z, 1, B),
        lambda z, n, B: (z, 16, B),
        lambda z, n, B: (z, 2**31 + 1, B),
        lambda z, n, B: (z, n, 64),
        lambda z, n, B: ((z, None), n, B),
        lambda z, n, B: (TensorDescriptor(z.view(8, 8), [8, 8], [8, 1], [4, 8]), n, B),
    ],
)
def test_what_triton_may_specialise_for_is_another_form(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = on_a_device(monkeypatch)
    z = torch.zeros(64)
    for x, n, B in ((z, 5, 32), change(z, 5, 32)):
        launch.launch(kernel, (1,), x, n, B=B)
    assert [call[0] for call in kernel.calls] == ["triton", "triton"]
