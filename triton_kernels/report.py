# SPDX-License-Identifier: Apache-2.0
"""What the compiler makes of every kernel, without a GPU: ``python -m pycl.triton_kernels.report``.

The launches of representative calls are recorded with tensors that hold nothing, compiled ahead of time, and shown
with their registers, spills, shared memory, matrix instructions and bulk copies. The exit status is 1 where one has a
fault. The second table is a model of the time on one H200: see ``predict``.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import triton as backend
from ..ops import Needs, Problem, Transport
from ..pairs import Pairs, Points
from ..validation import problem_of
from . import predict
from .aot import SINKHORN, SWEEPS, Compiled, compile_for, signature_of
from .launch import INTERPRETED, Launch, recording

N = 32768
WIDTHS = (64, 128, 256, 512, 1024)
BOTH = Needs(rows=True, cols=True, bias=False)


class Call(NamedTuple):
    """A loss whose forward and backward are recorded."""

    loss: str
    dtype: torch.dtype = torch.bfloat16
    d: int = 128
    precision: str = "highest"  # of float32
    rare: bool = False  # its kernels differ in details, not in tiles

    def record(self, architecture: int) -> list[Launch]:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.precision)
        try:
            with recording(architecture) as launches:
                LOSSES[self.loss](self)
        finally:
            torch.set_float32_matmul_precision(before)
        return launches


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _problem(call: Call, two_sides: bool, positives: Pairs, scale: Tensor | None = None, **more: Any) -> Problem:
    x, y = (Points(_empty(N, call.d, dtype=call.dtype)) for _ in range(2))
    arguments = {"row_bias": None, "col_bias": None, "offset": None if two_sides else 0, "normalize": not two_sides}
    sets = {"denominator": Pairs.OTHERS, "positives": positives}
    scale = _empty() if scale is None else scale
    return problem_of(x, y if two_sides else None, scale, sets, **(arguments | more))


def _stats(problem: Problem, *used: bool, needs: Needs = BOTH) -> None:
    """Both passes of statistics of which ``used`` have a gradient: lse, pos_lse, pos_sum."""
    two_sides = problem.cols is not None
    stats = backend.pair_stats(problem, two_sides)
    slopes = [_empty(N) if use else None for use in used]
    backend.pair_stats_backward(problem, *stats, slopes, slopes if two_sides else [None] * 3, needs)


def _clip(call: Call) -> None:
    _stats(_problem(call, True, Pairs.POSITIVE), True, False, True)


def _nt_xent(call: Call) -> None:
    _stats(_problem(call, False, Pairs.POSITIVE), True, False, True)


def _mv_dhel(call: Call) -> None:
    """The sets are no constants, its kernels are those of SupCon with the mean inside of the logarithm."""
    _stats(_problem(call, False, Pairs.POS_OTHER_VIEW), True, True, False)


def _own_scales(call: Call) -> None:
    biases = {"row_bias": _empty(N), "col_bias": _empty(N)}
    problem = _problem(call, True, Pairs.POSITIVE, _empty(N), **biases)
    _stats(problem, True, False, True, needs=Needs(rows=True, cols=True, bias=True))


def _siglip(call: Call) -> None:
    problem = _problem(call, True, Pairs.POSITIVE, col_bias=_empty(N))
    backend.pair_sum(problem)
    backend.pair_sum_backward(problem, _empty(N), _empty(N), Needs(rows=True, cols=True, bias=True))


def _logits(call: Call) -> None:
    backend.pair_logits(_problem(call, True, Pairs.NONE))


def _top(call: Call) -> None:
    backend.pair_top(_problem(call, True, Pairs.NONE), 10)


def _average(call: Call) -> None:
    problem = _problem(call, True, Pairs.NONE, row_bias=_empty(N))
    backend.pair_weighted_sum(problem, _empty(N, call.d, dtype=call.dtype))


def _sinkhorn(call: Call) -> None:
    """Of d prototypes."""
    target = _empty(call.d, dtype=torch.float32)
    backend.sinkhorn(Transport(_empty(4096, call.d, dtype=call.dtype), 0.05, 2, None, target, call.dtype))


LOSSES = {
    "CLIP": _clip,
    "NT-Xent": _nt_xent,
    "MV-DHEL": _mv_dhel,
    "scale a row": _own_scales,
    "SigLIP": _siglip,
    "logits": _logits,
    "top": _top,
    "average": _average,
    "Sinkhorn": _sinkhorn,
}


def calls() -> Iterator[Call]:
    for loss in ("CLIP", "NT-Xent"):
        yield from (Call(loss, d=d, rare=loss == "CLIP" and d < 1024) for d in WIDTHS)
        yield Call(loss, torch.float32, rare=loss == "CLIP")
    yield Call("CLIP", torch.float16, rare=True)
    yield from (Call("NT-Xent", torch.float32, precision=precision, rare=True) for precision in ("high", "medium"))
    yield from (Call("SigLIP", d=d, rare=True) for d in (128, 256))
    yield from (Call("scale a row", d=d, rare=True) for d in (128, 256, 512))
    yield Call("MV-DHEL", rare=True)
    yield from (Call("logits", d=d, rare=True) for d in (64, 512))
    yield Call("logits", torch.float32, rare=True)
    yield Call("top")
    yield from (Call("average", d=d, rare=True) for d in (64, 128))
    yield from (Call("Sinkhorn", d=n) for n in (3000, 8192, 65536, 262144))
    yield from (Call("Sinkhorn", d=n, rare=True) for n in (100, 3001, 16384, 131072))
    yield from (Call("Sinkhorn", torch.float32, d=n) for n in (3000, 16384))
    yield from (Call("Sinkhorn", torch.float32, d=n, rare=True) for n in (3001, 65536, 262144))
    yield Call("Sinkhorn", torch.float16, d=3000, rare=True)


def key_of(launch: Launch) -> str:
    """Launches with the same one are compiled to the same code."""
    return f"{launch.kernel.__name__} {signature_of(launch)} {launch.options}"


@functools.cache
def launches(architecture: int, rare: bool) -> dict[str, Launch]:
    """Of all calls, without repetitions."""
    wanted = (call for call in calls() if rare or not call.rare)
    found: dict[str, Launch] = {}
    for launch in (launch for call in wanted for launch in call.record(architecture)):
        found.setdefault(key_of(launch), launch)
    return found


def _compile(architecture: int, rare: bool, key: str, disassemble: bool) -> Compiled:
    return compile_for(launches(architecture, rare)[key], architecture, disassemble)


def compile_all(
    architectures: list[int], rare: list[int], workers: int, disassemble: bool
) -> dict[tuple[int, str], Compiled]:
    """Everything for every architecture, rare kernels for some; a worker records the launches for itself."""
    jobs = [
        (architecture, architecture in rare, key)
        for architecture in architectures
        for key in launches(architecture, architecture in rare)
    ]
    heavy_first = sorted(jobs, key=lambda job: job[2].split()[0] not in SWEEPS)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:  # a fork would share its threads
        tasks = {job: pool.submit(_compile, *job, disassemble) for job in heavy_first}
        return {(job[0], job[2]): tasks[job].result() for job in jobs}


HEAD = (
    *("kernel", "operands", "d", "rule", "tile", "warps, stages", "sm", "registers", "spilled bytes", "shared KB"),
    *("matrix instructions", "bulk copies", "seconds", "fault"),
)


def _cells(c: Compiled) -> tuple[str, ...]:
    o = c.options
    rule = [str(o["RULE"])] if "RULE" in o else []
    rule += [word for name, word in (("SYMMETRIC", "symmetric"), ("NORMALIZE", "normalised")) if o.get(name)]
    tile = "x".join(str(o[name]) for name in ("BM", "BN", "BK") if name in o) + (f" by {o['BP']}" if "BP" in o else "")
    tile += f" on {o['num_ctas']}" if o.get("num_ctas", 1) > 1 else ""
    matrix = ", ".join(f"{n} {name.split('.')[0]}" for name, n in c.matrix.items())
    warps = f"{o['num_warps']}, {o['num_stages']}" if "num_stages" in o else str(o["num_warps"])
    return (
        *(c.kernel, c.dtype, str(c.features or ""), ", ".join(rule), tile, warps, str(c.architecture)),
        *(str(c.registers), str(c.spills), f"{c.shared / 1024:.0f} of {c.limit >> 10}", matrix),
        *(str(c.bulk_copies or ""), f"{c.seconds:.1f}", "; ".join(c.faults())),
    )


def _plain(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ("  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in (head, *rows))
    return "\n".join(lines)


def _markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def _filled(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Without columns that have nothing in them."""
    kept = [k for k, column in enumerate(zip(*rows, strict=True)) if any(column)]
    return tuple(head[k] for k in kept), [tuple(row[k] for k in kept) for row in rows]


def _predicted(compiled: dict[tuple[int, str], Compiled]) -> list[tuple[str, ...]]:
    rows = []
    for loss, sides in (("CLIP", 2), ("NT-Xent", 1)):
        for d in WIDTHS:
            found = [(key_of(launch), launch) for launch in Call(loss, d=d).record(predict.ARCHITECTURE)]
            pairs = [(launch, compiled[predict.ARCHITECTURE, key]) for key, launch in found if _has_tiles(launch)]
            sweeps = predict.sweeps_of(pairs)
            strips = sum(launch.kernel.__name__ == "store_tiles" for _, launch in found)
            if strips:
                sweeps.append(predict.products(strips, N, d, sides))
            total = max(sum(sweep.milliseconds for sweep in sweeps), predict.of_host(len(found) + sides * strips))
            share = predict.share_of_roof(total, N, d, sides)
            rows += [(loss, str(d), *predict.cells(sweep), "", "") for sweep in sweeps]
            rows[-1] = (*rows[-1][:-2], f"{total:.2f}", f"{100 * share:.0f} %")
    return rows


def _has_tiles(launch: Launch) -> bool:
    return launch.kernel.__name__ in SWEEPS


def _write(file: Path, tables: dict[str, str]) -> None:
    """Put the tables between their markers, ``<!-- NAME -->`` and ``<!-- /NAME -->``."""
    text = file.read_text(encoding="utf-8")
    for name, table in tables.items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if not (begin and end):
            raise SystemExit(f"{file} has no <!-- {name} --> with its <!-- /{name} -->")
        text = f"{before}{begin}{table}\n{end}{after}"
    file.write_text(text, encoding="utf-8")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pycl.triton_kernels.report", description=__doc__)
    parser.add_argument("--arch", type=_numbers, default=[80, 90, 100], help="90 for 9.0 (default: 80,90,100)")
    parser.add_argument("--rare", type=_numbers, help="those to compile rare variants for (default: all of them)")
    parser.add_argument("--workers", type=int, default=2, help="processes that compile (default: %(default)s)")
    parser.add_argument("--predict", action="store_true", help="add the predicted times, of sm_90")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables of sm_90 between its markers")
    asked = parser.parse_args(arguments)
    if INTERPRETED:
        parser.error("TRITON_INTERPRET is set: the interpreter compiles nothing, unset it")
    architectures = asked.arch
    if (asked.predict or asked.markdown) and predict.ARCHITECTURE not in architectures:
        parser.error(f"the tables of sm_{predict.ARCHITECTURE} need it among --arch")
    rare = architectures if asked.rare is None else asked.rare
    disassemble = asked.predict or asked.markdown is not None
    compiled = compile_all(architectures, [*rare, *[predict.ARCHITECTURE] * disassemble], asked.workers, disassemble)
    found = list(compiled.values())
    print(_plain(HEAD, [_cells(c) for c in found]))
    if asked.json:
        rows = [c._asdict() | {"limit": c.limit, "programs": c.programs, "faults": c.faults()} for c in found]
        asked.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if disassemble:
        predicted = _predicted(compiled)
        print("\npredicted, not measured: one H200, N = 32768\n" + _plain(predict.HEAD, predicted))
    if asked.markdown:
        sweeps = [c for c in found if c.architecture == predict.ARCHITECTURE and c.kernel in SWEEPS]
        others = [c for c in found if c.architecture == predict.ARCHITECTURE and c.kernel in SINKHORN]
        tables = {"compiled": _markdown(HEAD, [_cells(c) for c in sweeps])}
        tables["sinkhorn"] = _markdown(*_filled(HEAD, [_cells(c) for c in others]))
        _write(asked.markdown, tables | {"predicted": _markdown(predict.HEAD, predicted)})
    faulty = sum(bool(c.faults()) for c in found)
    print(f"\n{len(found)} kernels compiled, {faulty} of them with a fault")
    return int(faulty > 0)


if __name__ == "__main__":
    sys.exit(main())
