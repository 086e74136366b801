# SPDX-License-Identifier: Apache-2.0
"""Kernels compiled for GPUs that are not here, and what the compiler says of them."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
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
MATRIX = {90: "wgmma.mma_async", 100: "tcgen05.mma"}  # elsewhere mma.sync
MATRIX_INSTRUCTIONS = (*MATRIX.values(), "mma.sync")
SHARED = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}


TENSOR_MEMORY = 512  # columns of a multiprocessor, from sm_100 on
SWEEPS = {"reduce_tiles": "reduce", "own_gradient": "own", "store_tiles": "store"}  # kernels with products: their tiles
SINKHORN = {"column_lse", "sample_step", "sample_stream", "merge_columns"}


class Loop(NamedTuple):
    """Instructions of a thread for each of its pairs."""

    slots: float  # all
    exponentials: float
    shuffles: float


class Compiled(NamedTuple):
    """What one launch was compiled to."""

    kernel: str
    dtype: str  # of the operands, or of the first tensor
    features: int  # of an operand; 0 for kernels without a product
    options: dict[str, Any]
    architecture: int
    registers: int  # of a thread
    spills: int  # bytes stored to local memory
    shared: int  # bytes
    matrix: dict[str, int]  # instructions on the tensor cores
    bulk_copies: int  # by the tensor memory accelerator
    seconds: float
    loop: Loop | None = None  # where it was looked for

    @property
    def programs(self) -> int:
        """That fit on a multiprocessor together, by registers (65536, given out by 8 a thread) and shared memory."""
        threads = 32 * int(self.options["num_warps"])
        by_memory = (self.limit + 1024) // (self.shared + 1024)  # a kilobyte of each program is the system's
        return min(65536 // (-(-self.registers // 8) * 8 * threads), 2048 // threads, by_memory)

    @property
    def limit(self) -> int:
        return SHARED[max(known for known in SHARED if known <= self.architecture)]

    def faults(self) -> list[str]:
        """What must not be, as phrases."""
        found = [f"spills {self.spills} bytes"] if self.spills else []
        if self.shared > self.limit:
            found.append(f"needs {self.shared} of {self.limit} bytes of shared memory")
        if self.kernel not in SWEEPS:
            return found
        wanted = MATRIX.get(self.architecture, "mma.sync")
        if self.dtype != "float32" and not self.matrix.get(wanted):
            found.append(f"has no {wanted}")
        if self.architecture >= 90 and not self.bulk_copies:
            found.append("copies no operand in bulk")
        return found


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
    if isinstance(value, float):
        return "fp32"
    if special and value % 16 == 0:
        found.attributes[path] = [["tt.divisibility", 16]]
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def compile_for(launch: Launch, architecture: int, disassemble: bool = False) -> Compiled:
    """Compile a launch for sm_``architecture``; needs no GPU, but not the interpreter."""
    signature = signature_of(launch)
    source = ASTSource(launch.kernel, signature.types, signature.constants, signature.attributes)
    options = {name: value for name, value in launch.options.items() if name not in launch.kernel.arg_names}
    knobs, said, start = triton.knobs, io.StringIO(), time.perf_counter()
    # the assembler's own words: with other flags than Triton's it allocates other registers
    with knobs.compilation.scope(), knobs.nvidia.scope(), contextlib.redirect_stdout(said):
        knobs.compilation.always_compile = knobs.nvidia.dump_ptxas_log = True
        kernel = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    seconds = time.perf_counter() - start
    registers, spills = (re.search(p, said.getvalue()) for p in (r"Used (\d+) registers", r"(\d+) bytes spill stores"))
    assert registers is not None
    assert spills is not None
    ptx, name = kernel.asm["ptx"], launch.kernel.__name__
    operand = next(a for a in launch.arguments if isinstance(a, (torch.Tensor, TensorDescriptor)))
    tensor = operand.base if isinstance(operand, TensorDescriptor) else operand
    return Compiled(
        name,
        str(tensor.dtype).removeprefix("torch."),
        tensor.shape[1] if name in SWEEPS else 0,
        {key: getattr(value, "value", value) for key, value in launch.options.items()},
        architecture,
        int(registers[1]),
        int(spills[1]),
        kernel.metadata.shared,
        {of: ptx.count(of) for of in MATRIX_INSTRUCTIONS if of in ptx},
        ptx.count("cp.async.bulk.tensor"),
        round(seconds, 2),
        loop_of(kernel.asm["cubin"], _pairs(launch)) if disassemble and name in SWEEPS else None,
    )


def _pairs(launch: Launch) -> int:
    """Of a tile, for each thread."""
    return int(launch.options["BM"] * launch.options["BN"] // (32 * launch.options["num_warps"]))


def loop_of(cubin: bytes, pairs: int) -> Loop | None:
    """The loop over plain tiles without shifts, of a kernel whose threads have so many pairs of a tile each.

    Of the stretches of code with a matrix instruction and an exponential for each pair it is the shortest; such a
    stretch is a loop, or all there is between two jumps where the kernel takes one tile.
    """
    disassembler = Path(triton.backends.nvidia.__file__).parent / "bin" / "nvdisasm"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        text = subprocess.run([disassembler, "-c", file], capture_output=True, text=True, check=True).stdout
    lines = [line for line in text.splitlines() if re.match(r"\s*(/\*[0-9a-f]{4,}\*/|\.L_x_\d+:)", line)]
    labels = {line.strip().rstrip(":"): at for at, line in enumerate(lines) if line.startswith(".L_x_")}
    jumps = ((at, re.search(r"@!?U?P\d+ +BRA.*`\((\.L_x_\d+)\)", line)) for at, line in enumerate(lines))
    loops = [(labels[jump[1]], at) for at, jump in jumps if jump and labels[jump[1]] < at]
    loops += itertools.pairwise([0, *labels.values(), len(lines) - 1])
    bodies = ([line for line in lines[a : b + 1] if not line.startswith(".L_x_")] for a, b in loops)
    found = []
    for body in bodies:
        exponentials, shuffles = (sum(name in line for line in body) for name in ("MUFU.EX2", "SHFL"))
        if exponentials >= pairs:
            found.append(Loop(len(body) / pairs, exponentials / pairs, shuffles / pairs))
    return min(found, default=None)
