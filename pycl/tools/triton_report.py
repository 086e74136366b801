# SPDX-License-Identifier: Apache-2.0
"""What the compiler makes of every kernel, without a GPU: ``python -m pycl.tools.triton_report``.

The launches of representative calls are recorded with tensors that hold nothing, compiled ahead of time, and shown
with their registers, spills, shared memory, matrix instructions and bulk copies. The exit status is 1 where one has a
fault. The second table is a model of the time on one H200: see ``h200_model``. Triton's cache keeps what is compiled.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import triton

from pycl.backends.triton.launch import Launch
from pycl.tools import h200_model
from pycl.tools.ahead_of_time import SWEEPS, Compiled, compile_for, pairs_of
from pycl.tools.assembler import assembler_of
from pycl.tools.recorded_losses import WIDTHS, Call, N, key_of, launches
from pycl.triton_kernels.interpreter import INTERPRETED
from pycl.triton_kernels.modifiers import WIDTH as ENTRIES

WIDTH: int = ENTRIES.value


def _compile(architecture: int, choice: str, key: str) -> Compiled:
    return compile_for(launches(architecture, choice)[key], architecture)


def compile_all(choices: Mapping[int, str], workers: int) -> dict[tuple[int, str], Compiled]:
    """A choice of calls for every architecture; a worker records the launches for itself."""
    jobs = [
        (architecture, choice, key)
        for architecture, choice in choices.items()
        for key in launches(architecture, choice)
    ]
    heavy_first = sorted(jobs, key=lambda job: job[2].split()[0] not in SWEEPS)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:  # a fork would share its threads
        tasks = {job: pool.submit(_compile, *job) for job in heavy_first}
        return {(job[0], job[2]): tasks[job].result() for job in jobs}


HEAD = (
    *("kernel", "operands", "d", "rule", "tile", "warps, stages", "sm", "registers", "spilled bytes", "loop"),
    *("shared KB", "matrix instructions", "bulk copies", "seconds", "fault"),
)


def _cells(c: Compiled) -> tuple[str, ...]:
    o = c.options
    rule = [str(o["RULE"])] if "RULE" in o else []
    rule += [word for name, word in (("SYMMETRIC", "symmetric"), ("NORMALIZE", "normalised")) if o.get(name)]
    rule += [str(kind) for kind in o.get("MODIFIERS", ())[::WIDTH]]
    tile = "x".join(str(o[name]) for name in ("BM", "BN", "BK") if name in o) + (f" by {o['BP']}" if "BP" in o else "")
    tile += f" on {o['num_ctas']}" if o.get("num_ctas", 1) > 1 else ""
    matrix = ", ".join(f"{n} {name.split('.')[0]}" for name, n in c.matrix.items())
    warps = f"{o['num_warps']}, {o['num_stages']}" if "num_stages" in o else str(o["num_warps"])
    in_loop = round(c.loop.local * pairs_of(o)) if c.loop else 0
    return (
        *(c.kernel, c.dtype, str(c.features or ""), ", ".join(rule), tile, warps, str(c.architecture)),
        *(str(c.registers), f"{c.spills}, {in_loop} in its loop" if c.spills and c.loop else str(c.spills)),
        *(f"{c.loop.slots * pairs_of(o):.0f}" if c.loop else "", f"{c.shared / 1024:.0f} of {c.limit >> 10}", matrix),
        *(str(c.bulk_copies or ""), f"{c.seconds:.1f}", "; ".join(c.faults())),
    )


def _plain(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ("  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in (head, *rows))
    return "\n".join(lines)


def _predicted(compiled: Mapping[tuple[int, str], Compiled]) -> list[tuple[str, ...]]:
    rows = []
    for loss, sides in (("CLIP", 2), ("NT-Xent", 1)):
        for d in WIDTHS:
            found = [(key_of(launch), launch) for launch in Call(loss, d=d).record(h200_model.ARCHITECTURE)]
            pairs = [(launch, compiled[h200_model.ARCHITECTURE, key]) for key, launch in found if _has_tiles(launch)]
            sweeps = h200_model.sweeps_of(pairs)
            strips = sum(launch.kernel.__name__ == "write_weights_kernel" for _, launch in found)
            if strips:
                sweeps.append(h200_model.products(strips, N, d, sides))
            total = max(sum(sweep.milliseconds for sweep in sweeps), h200_model.of_host(len(found) + sides * strips))
            share = h200_model.share_of_roof(total, N, d, sides)
            rows += [(loss, str(d), *h200_model.cells(sweep), "", "") for sweep in sweeps]
            rows[-1] = (*rows[-1][:-2], f"{total:.2f}", f"{100 * share:.0f} %")
    return rows


def _has_tiles(launch: Launch) -> bool:
    return launch.kernel.__name__ in SWEEPS


def versions(architectures: list[int]) -> dict[str, Any]:
    """Of whatever the figures depend on."""
    assemblers = {str(architecture): assembler_of(architecture).version for architecture in architectures}
    return {"triton": triton.__version__, "ptxas": assemblers, "torch": torch.__version__}


def _named(found: dict[str, Any]) -> str:
    assemblers = ", ".join(f"{version} for sm_{architecture}" for architecture, version in found["ptxas"].items())
    return f"Triton {found['triton']}, ptxas {assemblers}, torch {found['torch']}"


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pycl.tools.triton_report", description=__doc__)
    parser.add_argument("--arch", type=_numbers, default=[80, 90, 100], help="90 for 9.0 (default: 80,90,100)")
    parser.add_argument("--rare", type=_numbers, help="those to compile rare variants for (default: all of them)")
    parser.add_argument("--headline", action="store_true", help="only CLIP of 128 to 512 features and a SwAV Sinkhorn")
    parser.add_argument("--workers", type=int, default=2, help="processes that compile (default: %(default)s)")
    parser.add_argument("--predict", action="store_true", help="add the predicted times, of sm_90")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows, for pycl.tools.triton_tables")
    asked = parser.parse_args(arguments)
    if INTERPRETED:
        parser.error("TRITON_INTERPRET is set: the interpreter compiles nothing, unset it")
    if asked.predict and (asked.headline or h200_model.ARCHITECTURE not in asked.arch):
        parser.error(
            f"the predicted times need all calls of {h200_model.ARCHITECTURE}, among --arch and without --headline"
        )
    rare = [*(asked.arch if asked.rare is None else asked.rare), *[h200_model.ARCHITECTURE] * asked.predict]
    choices = {a: "headline" if asked.headline else "all" if a in rare else "usual" for a in asked.arch}
    compiled = compile_all(choices, asked.workers)
    found, record = list(compiled.values()), versions(asked.arch)
    print(_named(record), _plain(HEAD, [_cells(c) for c in found]), sep="\n")
    if asked.predict:
        record["predicted"] = [dict(zip(h200_model.HEAD, row, strict=True)) for row in _predicted(compiled)]
        rows = [tuple(row.values()) for row in record["predicted"]]
        print(f"\npredicted, not measured: one H200, N = {N}\n" + _plain(h200_model.HEAD, rows))
    if asked.json:
        record["kernels"] = [
            c._asdict()
            | {"loop": c.loop and c.loop._asdict(), "limit": c.limit, "programs": c.programs, "faults": c.faults()}
            | {"cells": dict(zip(HEAD, _cells(c), strict=True))}
            for c in found
        ]
        asked.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    faulty = sum(bool(c.faults()) for c in found)
    print(f"\n{len(found)} kernels compiled, {faulty} of them with a fault")
    return int(faulty > 0)


if __name__ == "__main__":
    sys.exit(main())
