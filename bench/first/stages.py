# SPDX-License-Identifier: Apache-2.0
"""What follows the smoke: headline figures, ``torch.compile``, peers, the GPU tests, each with a share of the time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .place import Place
from .processes import run
from .report import TAIL, Report

SIZE = 32768
HEADLINE = tuple(f"{loss}-{SIZE}-d{d}-bf16" for d in (256, 128, 512, 768) for loss in ("clip", "nt_xent", "siglip"))
SINKHORN = ("sinkhorn-*",)
COMPILED = tuple(f"{loss}-{SIZE}-d256-bf16*" for loss in ("clip", "nt_xent", "siglip"))
PEERS = ("clip-65536-d512-*", "siglip-65536-d768-*", *HEADLINE[:3], f"siglip-{SIZE}-d768-bf16", *SINKHORN)
LEAVE = 15.0  # seconds a bench needs beyond its budget: it starts, and ends the row it is at
SHORTEST = 20.0  # seconds below which a stage is not begun


class Stage(NamedTuple):
    name: str
    until: float  # of the whole time
    right: bool  # only where no kernel is wrong
    module: str
    arguments: tuple[str, ...]
    on_null: bool = True  # whether it shows anything in a dry run


def _bench(name: str, until: float, rows: Sequence[str], baselines: str, on_null: bool = True) -> Stage:
    arguments = ("--suite", "gpu", "--rows", ",".join(rows), "--baselines", baselines, "--seconds", "0.3")
    return Stage(name, until, True, "pycl.bench", arguments, on_null)


SMOKE_UNTIL = 0.25
STAGES = (
    _bench("headline", 0.40, (*HEADLINE, *SINKHORN), "eager"),
    _bench("compile", 0.54, COMPILED, "compile", on_null=False),
    _bench("peers", 0.74, PEERS, "peers"),
    Stage("gpu-tests", 0.85, False, "pytest", ("tests/backends/test_triton_gpu.py",)),
    Stage("cuda-tests", 0.88, False, "pytest", ("tests/backends/test_cuda_gpu.py",), on_null=False),
    Stage("loss-tests", 0.98, False, "pytest", ("tests/losses/test_losses.py", "-k", "triton"), on_null=False),
)


class Run(NamedTuple):
    place: Place
    report: Report
    start: float  # in time.monotonic()
    seconds: float  # of everything
    commit: str | None
    at_once: int  # of tests

    def left(self, until: float = 1.0) -> float:
        return self.start + until * self.seconds - time.monotonic()


def follow(run_: Run, stage: Stage, not_because: str | None) -> bool:
    """Run the stage, or say why not; whether it found nothing wrong."""
    left = run_.left(stage.until)
    if stage.right and not_because:
        return _say(run_, stage, f"left out: {not_because}")
    if run_.place.dry and not stage.on_null:
        return _say(run_, stage, "left out: it shows nothing without a GPU")
    if left < SHORTEST:
        return _say(run_, stage, "left out: the time is up")
    before = run_.place.entries()
    command = run_.place.python(stage.module, *stage.arguments, *_more(run_, stage, left))
    environment = run_.place.environment | ({"PYCL_TEST_DEVICE": "cuda"} if stage.name == "loss-tests" else {})
    done = run(command, seconds=left, environment=environment, folder=run_.place.root)
    made = run_.place.entries() - before
    says = "done" if done.ok else done.said
    lines = [*done.out.splitlines()[-TAIL:], *([] if done.ok else done.error.splitlines()[-10:])]
    _say(run_, stage, f"{says}; {made} entries of the cache were made here", done.seconds, lines)
    return done.ok


def _more(run_: Run, stage: Stage, left: float) -> list[str]:
    if stage.module == "pycl.bench":
        record = run_.report.folder / f"{stage.name}.json"
        more = ["--budget", f"{max(1.0, left - LEAVE):.0f}", "--json", str(record)]
        return more + (["--commit", run_.commit] if run_.commit else [])
    together = [] if run_.place.dry else ["-n", str(run_.at_once)]
    return [*together, "-p", "no:cacheprovider", "--no-header", "--tb=line"]


def _say(run_: Run, stage: Stage, says: str, seconds: float = 0.0, tail: Sequence[str] = ()) -> bool:
    run_.report.add("stages", {"name": stage.name, "says": says, "seconds": round(seconds, 1), "tail": list(tail)})
    print(f"{stage.name}: {says}", flush=True)
    return True


def new_folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path
