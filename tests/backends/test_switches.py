# SPDX-License-Identifier: Apache-2.0
"""Global switches of PyTorch and of what runs beside it: a program that sets them gets the same losses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.global_settings import during, matmul_precision

import pycl
import pycl.functional as F
from pycl import doctor
from pycl.core import precision

SWITCHES = {
    "all tf32": (torch.backends, "tf32"),
    "all ieee": (torch.backends, "ieee"),
    "cuda products tf32": (torch.backends.cuda.matmul, "tf32"),
    "cpu products tf32": (torch.backends.mkldnn.matmul, "tf32"),
    "cpu products bf16": (torch.backends.mkldnn.matmul, "bf16"),
}


@pytest.fixture(params=SWITCHES)
def switch(request: pytest.FixtureRequest) -> Iterator[str]:
    place, value = SWITCHES[request.param]
    backends = (torch.backends, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]
    place.fp32_precision = value
    yield request.param
    for backend, earlier in zip(backends, before, strict=True):
        backend.fp32_precision = earlier


def losses() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    z = torch.randn(2, 32, 8)
    prototypes = torch.nn.functional.normalize(torch.randn(5, 8), dim=1)
    return {
        "nt_xent": F.nt_xent(z),
        "siglip": F.siglip(z[0], z[1], 5.0, -5.0),
        "swav": F.swav(z, prototypes, normalize=True),
        "uniformity": pycl.metrics.uniformity(z[0]),
        "sinkhorn": F.sinkhorn(z[0]),
        "triton": F.nt_xent(z[:, :4], backend="triton") if "triton" in pycl.backends.installed("cpu") else z[0, 0],
    }


EXACT = losses()


def test_newer_precision_switches(switch: str) -> None:
    for name, value in losses().items():
        torch.testing.assert_close(value, EXACT[name], rtol=2e-5, atol=2e-6)
    assert doctor.report()["float32_matmul_precision"]["cuda"] in ("highest", "high")


@pytest.mark.parametrize(
    ("name", "cpu", "cuda"), [("highest", "highest", "highest"), ("high", "highest", "high"), ("medium",) * 3]
)
def test_former_precision_switches(name: str, cpu: str, cuda: str) -> None:
    with matmul_precision(name):
        assert (precision.of_cpu(), precision.of_cuda()) == (cpu, cuda)


def test_mixed_former_switches() -> None:
    """PyTorch's own getter raises for this one."""
    with matmul_precision("high"):
        torch.backends.cuda.matmul.allow_tf32 = False
        assert (precision.of_cpu(), precision.of_cuda()) == ("highest", "highest")
        F.nt_xent(torch.randn(2, 8, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_default_dtype(dtype: torch.dtype) -> None:
    with during(torch.get_default_dtype, torch.set_default_dtype)(dtype):
        torch.manual_seed(0)
        z = torch.randn(2, 32, 8, dtype=torch.float32)
        torch.testing.assert_close(F.nt_xent(z), EXACT["nt_xent"])


BROKEN = """
import sys, torch
import pycl, pycl.functional as F
F.nt_xent(torch.randn(2, 8, 4, requires_grad=True)).backward()
F.sinkhorn(torch.randn(8, 4))
assert "triton" not in sys.modules, "a loss on the CPU has imported Triton"
from pycl.backends import registry
reason = registry.why_not("triton", "cpu")
assert "fails to load" in reason and "is not to be had" in reason, reason
try:
    F.nt_xent(torch.randn(2, 8, 4), backend="triton")
except pycl.BackendUnavailable as error:
    assert "is not to be had" in str(error)
else:
    raise AssertionError("a broken Triton ran")
"""


@pytest.mark.parametrize("error", ["RuntimeError", "OSError", "AttributeError"])
def test_a_triton_that_cannot_be_imported(error: str, tmp_path: Path) -> None:
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text(f"raise {error}('is not to be had')\n")
    path = ":".join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", BROKEN],
        env={"PYTHONPATH": path, "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
