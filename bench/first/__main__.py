# SPDX-License-Identifier: Apache-2.0
"""What a quarter of an hour on a GPU is for, in the order of its worth: ``python -m pycl.bench.first [OUT]``.

Facts, small cases against float64, headline figures, ``torch.compile``, peers, the GPU tests. What is known so far is
in OUT (default $OUT, else build/gpu-first/out) after every step. ``make gpu-cache`` makes what is carried there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from . import facts, pack, processes
from .place import ROOT, Place
from .report import Report, table, verdict
from .smoke import COLD, IN_CUDA, NAMES, WARM, Limits, smoke
from .stages import SMOKE_UNTIL, STAGES, Run, follow, new_folder

AT_ONCE = 6  # cases, with their kernels in the cache: they share one GPU
FACTS_SECONDS = 60.0
STAGE_NAMES = ("smoke", *(stage.name for stage in STAGES))


def main(argv: Sequence[str] | None = None) -> int:
    """0: nothing is wrong; 1: something is; 2: nothing could run."""
    asked = _parser().parse_args(argv)
    processes.end_all_with_this()
    start = time.monotonic()
    if not (ROOT / "tests" / "helpers" / "dense.py").exists():
        print(f"gpu-first: {ROOT} is no checkout of the project: its tests have the references", file=sys.stderr)
        return 2
    place = Place(asked.pack.resolve(), asked.work.resolve(), asked.dry_run)
    report = Report(new_folder(asked.out.resolve()), start)
    manifest = pack.read_manifest(place.pack)
    try:
        return _everything(asked, place, report, manifest, start)
    finally:
        report.put()


def _everything(
    asked: argparse.Namespace, place: Place, report: Report, manifest: dict[str, Any] | None, start: float
) -> int:
    trouble = pack.unpack(place.pack, place.cache, place.site, place.ptxas)
    found, reason = _facts(place)
    reason = reason or facts.stops(found)
    if reason:
        report.put(facts=found, remarks=[*trouble, reason])
        print(f"gpu-first: {reason}", file=sys.stderr)
        return 2
    cores = found["cores"]
    cold = facts.misses(found, manifest) is not None
    at_once = max(1, cores - 2) if cold else AT_ONCE
    report.put(facts=found, remarks=[*trouble, *facts.remarks(found, manifest, at_once)])
    print(table(report.record), flush=True)
    commit = asked.commit or (manifest or {}).get("commit")
    run = Run(place, report, start, asked.seconds, commit, max(1, min(10, cores - 2)))
    names = [name for name in NAMES if any(fnmatch(name, pattern) for pattern in asked.cases)]
    if found["library"] or place.dry:
        names = [name for name in names if not name.startswith(IN_CUDA)]
    failed, why = False, None
    if "smoke" in asked.stages:
        failed, why = _smoke(run, names, Limits(at_once, COLD if cold else WARM, start + SMOKE_UNTIL * asked.seconds))
        run = run._replace(place=_cured(place, report))
    for stage in STAGES:
        if stage.name in asked.stages:
            failed |= not follow(run, stage, why)
    report.put()
    print(table(report.record))
    return int(failed)


def _facts(place: Place) -> tuple[dict[str, Any], str | None]:
    command, environment = place.python("pycl.bench.first.facts"), place.environment
    done = processes.run(command, seconds=FACTS_SECONDS, environment=environment, folder=place.root)
    try:
        return json.loads(done.out), None
    except ValueError:
        return {}, f"the machine cannot be asked what it is: {done.said}; nothing runs without that"


def _smoke(run: Run, names: list[str], limits: Limits) -> tuple[bool, str | None]:
    """Whether something failed, and why no figure is worth measuring."""
    before = run.place.entries()
    missed = smoke(run.place, names, limits, run.report)
    remarks = [f"the smoke made {made} entries of the cache here"] if (made := run.place.entries() - before) else []
    remarks += [f"no time for {', '.join(missed)}"] if missed else []
    run.report.put(remarks=[*run.report.record["remarks"], *remarks])
    wrong, cured = verdict(run.report.record["smoke"])
    print(table(run.report.record), flush=True)
    return bool(wrong or cured), f"wrong in every build: {', '.join(wrong)}" if wrong else None


def _cured(place: Place, report: Report) -> Place:
    """With the newer ptxas where it mends all that fails; the other builds are not what anyone would use."""
    wrong, cured = verdict(report.record["smoke"])
    failing = {case for cases in cured.values() for case in cases}
    if wrong or not failing or failing - set(cured.get("ptxas", ())):
        return place
    report.put(remarks=[*report.record["remarks"], f"from here on with the newer ptxas, {place.ptxas}"])
    return replace(place, build="ptxas")


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _stages(text: str) -> tuple[str, ...]:
    if unknown := set(_names(text)) - set(STAGE_NAMES):
        raise argparse.ArgumentTypeError(f"no stage {sorted(unknown)[0]!r}; there are {', '.join(STAGE_NAMES)}")
    return _names(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pycl.bench.first", description=(__doc__ or "").split("\n")[0])
    out = os.environ.get("OUT") or ROOT / "build" / "gpu-first" / "out"
    parser.add_argument("out", type=Path, nargs="?", default=Path(out), help="folder of the results")
    parser.add_argument("--pack", type=Path, default=ROOT / pack.FOLDER, help="what was carried (default: .gpu)")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu-first", help="where it is laid out")
    parser.add_argument("--seconds", type=float, default=600.0, help="of everything (default: %(default)s)")
    parser.add_argument("--cases", type=_names, default=("*",), metavar="NAME,...", help="of the smoke")
    parser.add_argument("--stages", type=_stages, default=STAGE_NAMES, metavar="NAME,...", help=", ".join(STAGE_NAMES))
    parser.add_argument("--commit", metavar="HASH", help="what is measured (default: what the cache was made of)")
    parser.add_argument("--dry-run", action="store_true", help="on a GPU that is not there: shows that all starts")
    return parser


if __name__ == "__main__":
    sys.exit(main())
