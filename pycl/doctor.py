# SPDX-License-Identifier: Apache-2.0
"""What pycl finds on this machine, for bug reports and for records of measurements: ``python -m pycl.doctor [--json]``.

It says which backend serves the tensors of each device and why not a faster one, and it runs without a compiled part,
without Triton and without a GPU.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import pycl
from pycl.backends import compiled, gpu, registry
from pycl.core import precision
from pycl.tools import assembler

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
NAMESAKE = "pycl"  # on the package index: another project's wrapper of OpenCL, of one file pycl.py
AHEAD = (80, 90, 100)  # architectures whose assembler is named where there is no GPU
EMULATED = "amx-emulated"  # runs everywhere, for tests: says nothing about the machine


def report() -> dict[str, Any]:
    """Everything the doctor knows, as plain values: the content of ``--json``."""
    compiled, assemblers = _compiled(), _assemblers()
    return {
        "pycl": {"version": pycl.__version__, "path": str(Path(pycl.__file__).parent)},
        "python": platform.python_version(),
        "torch": {"version": torch.__version__, "build": torch_build()},
        "triton": _version("triton"),
        "ptxas": assemblers,
        "numpy": _version("numpy"),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "compiled": compiled,
        "cuda_library": _cuda_library(),
        "threads": _threads(),
        "float32_matmul_precision": {"cpu": precision.of_cpu(), "cuda": precision.of_cuda()},
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith("PYCL_")},
        "gpus": _gpus(),
        "warnings": _warnings(assemblers["takes"]),
        "backends": {device: _backend(device) for device in ("cpu", "cuda")},
        "sinkhorn": {device: _backend(device, registry.SINKHORN) for device in ("cpu", "cuda")},
    }


def torch_build() -> str:
    """What torch was built for: ``"CUDA 13.0"``, ``"ROCm 7.1"`` or ``"CPU only"``."""
    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    return f"ROCm {torch.version.hip}" if torch.version.hip else "CPU only"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # another system, or a sandbox that hides it
        return ""


def _cpu() -> dict[str, Any]:
    """The processor and the instruction set the CPU backend took; ``isas`` are all that can run here, best first."""
    info = _read("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    try:
        isas = [isa for isa in compiled.extension().supported_isas() if isa != EMULATED]
    except ImportError:
        isas = []
    has_cpu = _why_not("cpu", "cpu") is None
    return {
        "model": model[1] if model else platform.processor() or platform.machine(),
        "isa": registry.load("cpu").ISA if has_cpu else None,
        "isas": isas,
        "amx": _amx(info, isas),
    }


def _amx(cpu_info: str, isas: Sequence[str]) -> str:
    if "amx" in isas:
        return "available"
    flags = re.search(r"^flags\s*:(.*)$", cpu_info, re.MULTILINE)
    if flags is None:
        return "not available"
    if "amx_bf16" not in flags[1].split():
        return "the CPU has none"
    return "the CPU has it; " + ("the system refused it" if isas else "not used, pycl._C is not built")


def _compiled() -> dict[str, Any]:
    try:
        module = compiled.extension()
    except ImportError as error:
        return {"built": False, "path": None, "why_not": str(error)}
    return {"built": True, "path": module.__file__, "why_not": None}


def _cuda_library() -> dict[str, Any]:
    try:
        return {"built": True, "path": compiled.library("libpycl_cuda.so"), "why_not": None}
    except ImportError as error:
        return {"built": False, "path": None, "why_not": str(error)}


def _threads() -> dict[str, Any]:
    """How many threads a call uses, what set that number and whose pool they come from."""
    count = torch.get_num_threads()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    variables = [f"{name}={count}" for name in THREAD_VARIABLES if os.environ.get(name) == str(count)]
    return {
        "count": count,
        "from": variables[0] if variables else "torch.get_num_threads()",
        "pool": _pool(),
        "usable_cores": usable,
        "cores": os.cpu_count(),
        "cgroup_cores": _cgroup_cores(),
    }


def _pool() -> str | None:
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        module = compiled.extension()
    except ImportError:
        return None
    return "torch's" if library.exists() and module.use_thread_pool_of(str(library)) else "std::thread"


def _cgroup_cores() -> float | None:
    """The share of processors a container grants: more threads than that slow each other down."""
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    return int(quota[0]) / int(quota[1]) if len(quota) == 2 and quota[0] != "max" else None


def _gpus() -> list[str]:
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _architectures() -> list[int]:
    """Of the GPUs here: 90 for compute capability 9.0."""
    capabilities = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return [10 * major + minor for major, minor in sorted(capabilities)]


def _assemblers() -> dict[str, Any]:
    """The ptxas that Triton takes for each architecture, by its own choice."""
    if _version("triton") is None:
        return {"takes": {}, "why_not": "Triton is not installed"}
    try:
        takes = {str(arch): assembler.assembler_of(arch)._asdict() for arch in _architectures() or AHEAD}
    except Exception as error:  # a Triton that cannot be imported, or that finds no ptxas
        return {"takes": {}, "why_not": f"{type(error).__name__}: {error}"}
    return {"takes": takes, "why_not": None}


def _warnings(assemblers: dict[str, dict[str, str]]) -> list[str]:
    """What runs and may be wrong nevertheless."""
    found: list[str | None] = [_namesake()]
    for architecture, values in assemblers.items():
        tool = assembler.Assembler(**values)
        named = os.environ.get(tool.variable)
        if named is not None and named != tool.path:
            found.append(f"{tool.variable}={named} does not run: Triton takes {tool.path}")
        if int(architecture) in _architectures():
            found.append(assembler.doubt(int(architecture), tool))
    return [warning for warning in dict.fromkeys(found) if warning]


def _namesake() -> str | None:
    """``pip install pycl`` is another project: where both are found first decides which one ``import pycl`` takes."""
    version = _version(NAMESAKE)
    return version and (
        f"the distribution pycl {version} is another project, whose pycl.py may be imported in place of this package: "
        "pip uninstall pycl. Ours is pycl-kernels"
    )


def _backend(device_type: str, operator: str = registry.PAIRS) -> dict[str, Any]:
    """The backend that tensors of this device get, or the error they get, and why not the others."""
    dtype = torch.float32
    asked = os.environ.get("PYCL_BACKEND")
    try:
        # not choose(None): it would log its one message here, and not where a user's loss runs
        able = [registry.choose(asked, device_type, dtype, operator)] if asked else None
        takes, error = (able or registry.installed(device_type, dtype, operator))[0], None
    except Exception as refusal:  # whatever is wrong with a backend is what this report is for
        takes, error = None, str(refusal)
    others = {name: _why_not(name, device_type, operator) for name in registry.BACKENDS if name != takes}
    return {"takes": takes, "error": error, "why_not": {name: reason for name, reason in others.items() if reason}}


def _why_not(name: str, device_type: str, operator: str = registry.PAIRS) -> str | None:
    try:
        return registry.why_not(name, device_type, torch.float32, operator)
    except Exception as error:
        return f"backend={name!r} fails to load: {type(error).__name__}: {error}"


def _ptxas(found: dict[str, Any]) -> str:
    """The tools, each with the compute capabilities it is for."""
    if found["why_not"]:
        return f"none: {found['why_not']}"
    tools: dict[str, list[str]] = {}
    for architecture, tool in found["takes"].items():
        capability = gpu.dotted(divmod(int(architecture), 10))
        tools.setdefault(f"{tool['version']} in {tool['path']}", []).append(capability)
    return "; ".join(f"{tool} for {', '.join(capabilities)}" for tool, capabilities in tools.items())


def text(found: dict[str, Any]) -> str:
    """The report for people, one aligned line a fact."""
    cpu, threads, compiled, library = found["cpu"], found["threads"], found["compiled"], found["cuda_library"]
    limits = [f"{threads['usable_cores']} of {threads['cores']} cores usable"]
    if threads["cgroup_cores"] is not None:
        limits.append(f"the container grants {threads['cgroup_cores']:g}")
    if threads["pool"]:
        limits.append(f"{threads['pool']} pool")
    lines = [
        ("pycl", f"{found['pycl']['version']} in {found['pycl']['path']}"),
        ("compiled part", compiled["path"] if compiled["built"] else f"none: {compiled['why_not']}"),
        ("CUDA library", library["path"] if library["built"] else f"none: {library['why_not']}"),
        ("torch", f"{found['torch']['version']} ({found['torch']['build']})"),
        ("python", found["python"]),
        ("triton", found["triton"] or "not installed"),
        ("ptxas", _ptxas(found["ptxas"])),
        ("numpy", found["numpy"] or "not installed"),
        ("platform", found["platform"]),
        ("CPU", cpu["model"]),
        ("instruction set", f"{cpu['isa'] or 'none'} (can run: {', '.join(cpu['isas']) or 'none'})"),
        ("AMX", cpu["amx"]),
        ("threads", f"{threads['count']} from {threads['from']}; {', '.join(limits)}"),
        ("matmul precision", ", ".join(f"{name} on {of}" for of, name in found["float32_matmul_precision"].items())),
        ("GPU", ", ".join(found["gpus"]) or "none that torch can use"),
        ("environment", " ".join(f"{k}={v}" for k, v in found["environment"].items()) or "no PYCL_ variable"),
    ]
    for device in found["backends"]:
        said: set[str] = set()
        for what, backend in (("tensors", found["backends"][device]), ("sinkhorn", found["sinkhorn"][device])):
            lines.append((f"{device} {what}", backend["takes"] or f"error: {backend['error']}"))
            reasons = {name: reason for name, reason in backend["why_not"].items() if reason not in said}
            lines += [("", f"not {name}: {reason}") for name, reason in reasons.items()]
            said |= set(reasons.values())
    lines += [("warning", warning) for warning in found["warnings"]]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:{width}}  {value}" for name, value in lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pycl.doctor", description="What pycl finds on this machine.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    found = report()
    print(json.dumps(found, indent=2) if options.json else text(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
