# SPDX-License-Identifier: Apache-2.0
"""Representative calls of losses, and the launches that they make, recorded with tensors that hold nothing."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pycl.backends.triton import backend as backend
from pycl.backends.triton import gradients
from pycl.backends.triton.launch import Launch, recording
from pycl.core.modifiers import KINDS
from pycl.core.pairs import Pairs, Points
from pycl.core.problem import Needs, Problem, SinkhornProblem
from pycl.engine.validation import problem_of
from pycl.tools.ahead_of_time import signature_of

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
                LOSSES[self.loss.partition(":")[0]](self)
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
    stats = backend.pair_stats(problem, (), two_sides, True)
    d_stats = [_empty(N) if use else None for use in used]
    backend.pair_stats_backward(problem, (), *stats, d_stats, d_stats if two_sides else [None] * 3, needs)


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
    backend.pair_sum(problem, "softplus", None, False, True)
    backend.pair_sum_backward(problem, "softplus", None, _empty(0), _empty(N), Needs(rows=True, cols=True, bias=True))


def _maps(call: Call) -> None:
    problem = _problem(call, True, Pairs.POSITIVE, row_bias=_empty(N))
    for name in ("square", "relu", "exp"):
        backend.pair_sum(problem, name, None, False, True)
    backend.pair_sum_backward(problem, "relu", None, _empty(0), _empty(N), Needs(rows=True, cols=True, bias=True))


# sizes of a modifier, and its codes, values of a point and shared numbers
MODIFIERS = {
    "label_table": ((10, 12), 1, 0, 120),
    "agreement": ((2, 0), 2, 0, 3),
    "pair_mlp": ((16, 0), 0, 16, 17),
    "limit": ((0, 0), 0, 1, 0),
    "guide": ((128, 0), 0, 129, 0),
}


def _modified(call: Call) -> None:
    """CLIP with the modifiers that its name has behind a colon, without and with the gradients of their data."""
    problem = _problem(call, True, Pairs.POSITIVE)
    modifiers: tuple[int, ...] = ()
    codes, values, shared = 0, 0, 0
    for name in call.loss.partition(": ")[2].split(" and "):
        sizes, *more = MODIFIERS[name]
        modifiers += (KINDS.index("limit" if name == "guide" else name), *sizes)
        codes, values, shared = (a + b for a, b in zip((codes, values, shared), more, strict=True))
    of_points = (_empty(N, codes, dtype=torch.int64) if codes else None, _empty(N, values) if values else None)
    problem = problem._replace(
        modifiers=modifiers,
        row_codes=of_points[0],
        col_codes=of_points[0],
        row_values=of_points[1],
        col_values=of_points[1],
        shared=_empty(shared) if shared else None,
    )
    for needs in (BOTH, BOTH._replace(modifiers=True)) if problem.shared is not None else (BOTH,):
        _stats(problem, True, False, True, needs=needs)


def _logits(call: Call) -> None:
    backend.pair_logits(_problem(call, True, Pairs.NONE))


def _top(call: Call) -> None:
    backend.pair_top(_problem(call, True, Pairs.NONE), 10, False)


def _average(call: Call) -> None:
    problem = _problem(call, True, Pairs.NONE, row_bias=_empty(N))
    gradients.weighted_sum(problem, _empty(N, call.d, dtype=call.dtype))


def _sinkhorn(call: Call) -> None:
    """Of d prototypes."""
    target = _empty(call.d, dtype=torch.float32)
    backend.sinkhorn(SinkhornProblem(_empty(4096, call.d, dtype=call.dtype), 0.05, 2, None, target, call.dtype))


LOSSES = {
    "CLIP": _clip,
    "NT-Xent": _nt_xent,
    "MV-DHEL": _mv_dhel,
    "scale a row": _own_scales,
    "SigLIP": _siglip,
    "maps": _maps,
    "modified": _modified,
    "logits": _logits,
    "top": _top,
    "average": _average,
    "Sinkhorn": _sinkhorn,
}


HEADLINE = (*(Call("CLIP", d=d) for d in (128, 256, 512)), Call("Sinkhorn", d=3000))


def calls() -> Iterator[Call]:
    for loss in ("CLIP", "NT-Xent"):
        yield from (Call(loss, d=d, rare=loss == "CLIP" and d < 1024) for d in WIDTHS)
        yield Call(loss, torch.float32, rare=loss == "CLIP")
    yield Call("CLIP", torch.float16, rare=True)
    yield from (Call("NT-Xent", torch.float32, precision=precision, rare=True) for precision in ("high", "medium"))
    yield from (Call("SigLIP", d=d, rare=True) for d in (128, 256))
    yield from (Call("maps", d=d, rare=True) for d in (128, 512))
    yield from (Call("scale a row", d=d, rare=True) for d in (128, 256, 512))
    yield Call("MV-DHEL", rare=True)
    for name in MODIFIERS:
        yield Call(f"modified: {name}")
        yield from (Call(f"modified: {name}", d=d, rare=True) for d in (256, 512))
        yield Call(f"modified: {name}", torch.float32, rare=True)
    yield Call("modified: pair_mlp and agreement", torch.float16, rare=True)
    yield Call("modified: label_table and agreement and limit")
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
def launches(architecture: int, choice: str) -> dict[str, Launch]:
    """Of a choice of calls, without repetitions: "headline", "usual" without the rare ones, or "all"."""
    wanted = HEADLINE if choice == "headline" else (call for call in calls() if choice == "all" or not call.rare)
    found: dict[str, Launch] = {}
    for launch in (launch for call in wanted for launch in call.record(architecture)):
        found.setdefault(key_of(launch), launch)
    return found
