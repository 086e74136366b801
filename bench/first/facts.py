# SPDX-License-Identifier: Apache-2.0
"""What the GPU machine is, and in one line each what is missing there and what runs without it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

HARMLESS = {"TRITON_CACHE_DIR", "TRITON_LIBCUDA_PATH"}  # of Triton's variables: no kernel's key has them


def collect() -> dict[str, Any]:
    """In a process of its own: it touches the GPU."""
    import torch

    found: dict[str, Any] = {
        "python": ".".join(map(str, sys.version_info[:2])),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nvcc": _last_line("nvcc", "--version"),
        "compiler": os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang"),
        "settings": sorted(k for k in os.environ if k.startswith("TRITON_") and k not in HARMLESS),
        "smi": _last_line("nvidia-smi", "--query-gpu=name,driver_version,power.limit", "--format=csv,noheader"),
        "gpu": None,
    }
    return found | _triton() | _gpu() | {"library": _library()}


def _triton() -> dict[str, Any]:
    try:
        import hashlib

        import triton
        from triton.backends.nvidia.compiler import get_ptxas_version
        from triton.runtime.cache import triton_key
    except ImportError as error:
        return {"triton": None, "key": None, "ptxas": None, "why_no_triton": str(error)}
    key = hashlib.sha256(triton_key().encode()).hexdigest()[:12]
    version = re.search(r"V(\d+\.\d+\.\d+)", get_ptxas_version(90))
    return {"triton": triton.__version__, "key": key, "ptxas": version[1] if version else None}


def _gpu() -> dict[str, Any]:
    import torch

    try:
        if not torch.cuda.is_available():
            torch.cuda.current_device()  # says why
            return {"why_no_gpu": "torch sees none"}
        major, minor = torch.cuda.get_device_capability()
        torch.zeros(1, device="cuda").add_(1)
        return {"gpu": torch.cuda.get_device_name(), "architecture": 10 * major + minor}
    except (RuntimeError, AssertionError) as error:
        return {"why_no_gpu": " ".join(str(error).split())[:300]}


def _library() -> str | None:
    """Why Sinkhorn's kernel in CUDA cannot be used; ``None`` where it can."""
    from pycl.backends.registry import BackendUnavailable, load

    try:
        load("cuda")
    except BackendUnavailable as error:
        return str(error)
    return None


def _last_line(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[-1] if lines else None


def stops(facts: Mapping[str, Any]) -> str | None:
    """The line on which nothing can run."""
    if facts.get("gpu") is None:
        driver = f"; nvidia-smi says {facts['smi']}" if facts.get("smi") else "; there is no nvidia-smi"
        why = str(facts.get("why_no_gpu"))
        what = "the driver is too old" if "driver" in why and "old" in why else "no GPU can be used"
        return f"{what}: torch {facts['torch']} for CUDA {facts['cuda']} says: {why}{driver}; nothing runs without it"
    if facts.get("triton") is None:
        return f"no Triton ({facts.get('why_no_triton')}): no kernel runs; torch's CUDA wheels bring it"
    return None


def misses(facts: Mapping[str, Any], manifest: Mapping[str, Any] | None) -> str | None:
    """Why the carried cache serves nothing here."""
    if manifest is None:
        return "no cache is carried (`make gpu-cache` makes it)"
    if facts["architecture"] != manifest["architecture"]:
        return f"the cache is for sm_{manifest['architecture']}, this GPU is sm_{facts['architecture']}"
    if facts["key"] != manifest["key"]:
        theirs = f"Triton {manifest['triton']} (key {manifest['key']})"
        return f"the cache is of {theirs}, here is Triton {facts['triton']} (key {facts['key']})"
    if facts["settings"]:
        return f"{', '.join(facts['settings'])} is set, which may enter the cache's keys"
    return None


def remarks(facts: Mapping[str, Any], manifest: Mapping[str, Any] | None, at_once: int) -> list[str]:
    """What is missing, and what runs without it."""
    found = []
    if reason := misses(facts, manifest):
        found.append(f"{reason}: kernels are compiled here, {at_once} cases at once")
        if facts["compiler"] is None:
            found.append("no C compiler (cc or $CC): Triton cannot compile its launchers, so nothing of it runs")
    if facts["library"]:
        beside = "" if facts["nvcc"] else "; no nvcc to build it here"
        python = manifest["python"] if manifest else None
        if python not in (None, facts["python"]):
            beside = f"; the carried one is for CPython {python}, this is {facts['python']}{beside}"
        found.append(f"no libpycl_cuda.so{beside}: Sinkhorn in CUDA is left out, Triton's runs ({facts['library']})")
    carried = manifest or {"wheels": [], "ptxas": None}
    if not carried["wheels"]:
        found.append("no wheels of peers are carried: rows have those that are installed, the rest runs")
    if not carried["ptxas"]:
        found.append("no newer ptxas is carried: a case that fails is tried with wider pieces and one stage only")
    return found


if __name__ == "__main__":
    json.dump(collect(), sys.stdout)
