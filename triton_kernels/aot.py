# SPDX-License-Identifier: Apache-2.0
"""Kernels compiled for GPUs that are not here, and what the compiler says of them."""

from __future__ import annotations

import inspect
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from .launch import Launch

POINTERS = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.int64: "i64",
}
MATRIX_INSTRUCTIONS = ("wgmma.mma_async", "tcgen05.mma", "mma.sync")
SHARED = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}


class Compiled(NamedTuple):
    """What one launch was compiled to."""

    kernel: str
    options: dict[str, Any]
    architecture: int
    registers: int  # of a thread
    spills: int  # bytes stored to local memory
    shared: int  # bytes
    matrix: dict[str, int]  # instructions on the tensor cores
    bulk_copies: int  # by the tensor memory accelerator


class Signature(NamedTuple):
    """A launch as the compiler is told of it."""

    types: dict[str, Any]
    constants: dict[Any, Any]
    attributes: dict[tuple[int, ...], list[list[Any]]]


def signature_of(launch: Launch) -> Signature:
    """Types of the arguments, with the assumptions about them that Triton's own launcher would make."""
    names = launch.kernel.arg_names
    unspecialised = set(launch.kernel.do_not_specialize or ())
    found = Signature({}, {}, {})
    for index, (name, value) in enumerate(zip(names, launch.arguments, strict=False)):
        found.types[name] = _type_of(value, (index,), found, name not in unspecialised)
    for name, value in launch.options.items():
        if name in names:
            found.types[name] = "constexpr"
            found.constants[name] = value
    return found


def _type_of(value: Any, path: tuple[int, ...], found: Signature, special: bool) -> Any:
    if isinstance(value, tuple):
        return type(value)(*(_type_of(v, (*path, k), found, special) for k, v in enumerate(value)))
    if value is None or (special and isinstance(value, int) and value == 1):
        found.constants[path] = value
        return "constexpr"
    if isinstance(value, torch.Tensor):
        found.attributes[path] = [["tt.divisibility", 16]]
        return f"*{POINTERS[value.dtype]}"
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{POINTERS[value.base.dtype]}{value.block_shape}>"
    if special and value % 16 == 0:
        found.attributes[path] = [["tt.divisibility", 16]]
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def compile_for(launch: Launch, architecture: int) -> Compiled:
    """Compile a launch for sm_``architecture``; needs no GPU, but not the interpreter."""
    signature = signature_of(launch)
    source = ASTSource(launch.kernel, signature.types, signature.constants, signature.attributes)
    options = {name: value for name, value in launch.options.items() if name not in launch.kernel.arg_names}
    kernel = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    ptx = kernel.asm["ptx"]
    registers, spills = _resources(ptx, architecture)
    return Compiled(
        launch.kernel.__name__,
        launch.options,
        architecture,
        registers,
        spills,
        kernel.metadata.shared,
        {name: ptx.count(name) for name in MATRIX_INSTRUCTIONS if name in ptx},
        ptx.count("cp.async.bulk.tensor"),
    )


def _resources(ptx: str, architecture: int) -> tuple[int, int]:
    """Registers of a thread and bytes spilled, from the assembler that comes with Triton."""
    by_architecture = len(inspect.signature(get_ptxas).parameters) > 0  # since Triton 3.6
    assembler = get_ptxas(architecture) if by_architecture else get_ptxas()
    suffix = "a" if architecture >= 90 else ""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        command = [assembler.path, "-v", f"--gpu-name=sm_{architecture}{suffix}", str(file), "-o", f"{file}.cubin"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, spills = re.search(r"Used (\d+) registers", said), re.search(r"(\d+) bytes spill stores", said)
    assert registers is not None
    assert spills is not None
    return int(registers[1]), int(spills[1])
