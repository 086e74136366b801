# SPDX-License-Identifier: Apache-2.0
"""Kernels compiled for GPUs that are not here, and what the compiler says of them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from pycl.backends.triton.launch import Launch
from pycl.tools.sass import Loop, loop_of

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
SWEEPS = {f"{tile}_kernel": tile for tile in ("forward", "backward_dx", "write_weights")}  # those with products: tiles
SINKHORN = {"column_lse_kernel", "sample_step_kernel", "sample_stream_kernel", "combine_columns_kernel"}
# State that moves between loops may be spilled, what a loop works with may not. MOST_SPILLED is bytes of a thread, of
# which backward_dx_kernel with 256 features has 104 under Triton 3.6.0, and sample_step_kernel with 100 prototypes, of
# the others, 28; MOST_LOCAL is the share of a sweep's loop that loads or stores them.
MOST_SPILLED, MOST_SPILLED_ELSEWHERE, MOST_LOCAL = 512, 32, 0.05


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
    loop: Loop | None = None  # of a sweep

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
        most = MOST_SPILLED if self.kernel in SWEEPS else MOST_SPILLED_ELSEWHERE
        found = [f"spills {self.spills} bytes"] if self.spills > most else []
        if self.shared > self.limit:
            found.append(f"needs {self.shared} of {self.limit} bytes of shared memory")
        if not self.programs:
            found.append("fits on no multiprocessor")
        if self.kernel not in SWEEPS:
            return found
        if self.spills and self.loop is None:
            found.append(f"spills {self.spills} bytes, perhaps in its loop, which was not found")
        if self.loop is not None and self.loop.local > MOST_LOCAL * self.loop.slots:
            found.append(f"spills in its loop: {self.loop.local / self.loop.slots:.0%} of the instructions")
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


def compile_for(launch: Launch, architecture: int) -> Compiled:
    """Compile a launch for sm_``architecture``; needs no GPU, but not the interpreter."""
    signature = signature_of(launch)
    source = ASTSource(launch.kernel, signature.types, signature.constants, signature.attributes)
    options = {name: value for name, value in launch.options.items() if name not in launch.kernel.arg_names}
    kernel, said, seconds = _compiled(source, GPUTarget("cuda", architecture, 32), options)
    registers, spills = (re.search(p, said) for p in (r"Used (\d+) registers", r"(\d+) bytes spill stores"))
    assert registers is not None
    assert spills is not None
    ptx, name = kernel.asm["ptx"], launch.kernel.__name__
    tensor = next(_tensors(launch.arguments))
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
        loop_of(kernel.asm["cubin"], pairs_of(launch.options)) if name in SWEEPS else None,
    )


def _tensors(arguments: Iterable[Any]) -> Iterator[torch.Tensor]:
    for argument in arguments:
        if isinstance(argument, TensorDescriptor):
            yield argument.base
        elif isinstance(argument, torch.Tensor):
            yield argument
        elif isinstance(argument, tuple):
            yield from _tensors(argument)


def _compiled(source: ASTSource, target: GPUTarget, options: dict[str, Any]) -> tuple[Any, str, float]:
    """The kernel, what the assembler said of it and the seconds it took: from Triton's cache, where all of it is there.

    The assembler's own words count: with other flags than Triton's it allocates other registers.
    """
    knobs, said, start = triton.knobs, io.StringIO(), time.perf_counter()
    with knobs.compilation.scope(), knobs.nvidia.scope(), contextlib.redirect_stdout(said):
        knobs.nvidia.dump_ptxas_log = True
        kernel = triton.compile(source, target=target, options=options)
        words = Path(knobs.cache.dir) / "pycl" / f"{kernel.hash}.json"
        if not said.getvalue() and not words.exists():  # someone else compiled it
            start, knobs.compilation.always_compile = time.perf_counter(), True
            kernel = triton.compile(source, target=target, options=options)
    if not said.getvalue():
        return kernel, *json.loads(words.read_text())
    found = said.getvalue(), time.perf_counter() - start
    words.parent.mkdir(exist_ok=True)
    part = words.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(found))
    part.replace(words)  # another process may be reading
    return kernel, *found


def pairs_of(options: dict[str, Any]) -> int:
    """Of a tile, for each thread."""
    return int(options["BM"] * options["BN"] // (32 * options["num_warps"]))
