# SPDX-License-Identifier: Apache-2.0
"""Make what is carried to a GPU machine, on one without a GPU: ``make gpu-cache``.

Kernels are compiled as they are there, by the calls of the smoke, the GPU tests and the bench on a null GPU, under the
Python, torch and Triton of that machine. What has not changed since the last time is not made again.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import pack, parts, processes
from .builds import BUILDS
from .jobs import JOBS, Job, Workshop, entries_of, fill
from .smoke import NAMES
from .suitable import ARCHITECTURE, MACHINE, key_of_triton, remarks, why_not

ROOT = Path(__file__).resolve().parents[2]


def main(argv: Sequence[str] | None = None) -> int:
    """0: all is there; 1: something could not be made, and the rest is there; 2: nothing could."""
    asked = _parser().parse_args(argv)
    start = time.monotonic()
    if reason := why_not():
        print(f"gpu-cache: {reason}", file=sys.stderr)
        return 2
    shop, chosen = Workshop(ROOT, asked.work.resolve()), _chosen(asked.jobs, asked.cases)
    target = asked.pack.resolve()
    target.mkdir(parents=True, exist_ok=True)
    failed = [*remarks()]
    for line in failed:
        print(f"gpu-cache: {line}", file=sys.stderr)
    with ThreadPoolExecutor(asked.workers) as pool:
        # the newer ptxas and the peers are there before the calls that need them
        made = [pool.submit(parts.download, shop, target), pool.submit(parts.package, shop, target)]
        failed += made[0].result()
        filled = list(pool.map(lambda job: fill(shop, job), chosen))
        failed += [line for lines in filled for line in lines] + made[1].result()
        _archives(shop, target, pool)
    manifest = {
        **MACHINE._asdict(),
        "key": key_of_triton(),
        "architecture": ARCHITECTURE,
        "commit": parts.commit(ROOT),
        "entries": {build: len(entries) for build, entries in _by_build(shop).items()},
        "ptxas": parts.PTXAS_VERSION if (target / pack.PTXAS).exists() else None,
        "wheels": sorted(wheel.name for wheel in target.glob("*.whl")),
    }
    (target / pack.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    if asked.prove:
        failed += _prove(shop, target, chosen)
    bytes_ = pack.size_of(target)
    if bytes_ > pack.MOST_BYTES:
        failed.append(f"{target.name} has {bytes_ / 1e6:.1f} MB, allowed are {pack.MOST_BYTES / 1e6:g}")
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = f"{time.monotonic() - start:.0f} s, {spent.ru_utime + spent.ru_stime:.0f} s of the processor"
    print(f"{target}: {bytes_ / 1e6:.1f} MB, entries {manifest['entries']}, {took}")
    for line in failed:
        print(f"gpu-cache: {line}", file=sys.stderr)
    return int(bool(failed))


def _chosen(names: Sequence[str], cases: Sequence[str]) -> list[Job]:
    chosen = [job for job in JOBS if not names or job.name in names]
    return [job.only(cases) if cases and job.name.startswith("smoke-") else job for job in chosen]


def _by_build(shop: Workshop) -> dict[str, set[str]]:
    """The entries of Triton's cache that each archive has: the other builds' are those that the default lacks."""
    found: dict[str, set[str]] = {build: set() for build in BUILDS}
    for job in JOBS:
        found[job.build] |= entries_of(shop, job)
    return {build: found[build] - (found["default"] if build != "default" else set()) for build in BUILDS}


def _archives(shop: Workshop, target: Path, pool: ThreadPoolExecutor) -> None:
    def write(build: str, entries: set[str]) -> None:
        archive, state = target / pack.archive_of(build), pack.digest([], *sorted(entries))
        if parts.changed(shop, archive, state):
            pack.write_cache(shop.cache, entries, archive)
            parts.settle(shop, archive, state)

    found = _by_build(shop)
    list(pool.map(write, found, found.values()))


def _prove(shop: Workshop, target: Path, jobs: Sequence[Job]) -> list[str]:
    """Lines for the jobs that compile something with nothing but what is carried."""
    parts.empty(shop.folder / "proof")
    fresh = Workshop(shop.root, shop.folder / "proof", shop.site, shop.ptxas)
    for build in BUILDS:
        pack.unpack_cache(target / pack.archive_of(build), fresh.cache)
    found = []
    for job in jobs:
        fill(fresh, job)
        made, used = (entries_of(fresh, job, what) for what in ("made", "used"))
        print(f"proof: {job.name} used {len(used)} entries of what is carried and made {len(made)}")
        found += [f"{job.name} had to compile {len(made)} entries that are not carried"] if made or not used else []
    return found


def _names_of(what: str, known: Sequence[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        found = [name for name in text.split(",") if name]
        if unknown := [name for name in found if name not in known]:
            raise argparse.ArgumentTypeError(f"no {what} {unknown[0]!r}; there are {', '.join(known)}")
        return found

    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make gpu-cache", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--pack", type=Path, default=ROOT / pack.FOLDER, help="the folder to carry (default: .gpu)")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu-cache", help="what stays for the next time")
    parser.add_argument("--workers", type=int, default=2, help="processes at once (default: %(default)s)")
    parser.add_argument(
        "--jobs",
        type=_names_of("job", [job.name for job in JOBS]),
        default=[],
        metavar="NAME,...",
        help="of those that compile",
    )
    parser.add_argument(
        "--cases", type=_names_of("case", NAMES), default=[], metavar="NAME,...", help="of the smoke, only these"
    )
    parser.add_argument("--prove", action="store_true", help="show that all jobs then compile nothing")
    return parser


if __name__ == "__main__":
    processes.end_all_with_this()
    sys.exit(main())
