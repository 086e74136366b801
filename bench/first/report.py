# SPDX-License-Identifier: Apache-2.0
"""What the run found so far, as JSON and as text: written again after every step, so that a cut run leaves it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

JSON, TEXT = "first.json", "first.txt"
FACTS = ("gpu", "smi", "torch", "cuda", "triton", "key", "ptxas", "nvcc", "python", "cores")
TAIL = 60  # lines of what a stage said


class Report:
    def __init__(self, folder: Path, start: float) -> None:
        self.folder, self.start = folder, start  # in time.monotonic()
        self.record: dict[str, Any] = {"facts": {}, "remarks": [], "smoke": [], "stages": [], "seconds": 0.0}
        self._lock = threading.Lock()

    def add(self, key: str, value: Any) -> None:
        with self._lock:
            self.record[key].append(value)
            self._write()

    def put(self, **values: Any) -> None:
        with self._lock:
            self.record |= values
            self._write()

    def _write(self) -> None:
        self.record["seconds"] = round(time.monotonic() - self.start, 1)
        for name, text in ((JSON, json.dumps(self.record, indent=1)), (TEXT, table(self.record))):
            new = self.folder / f".{name}"
            new.write_text(text + "\n")
            new.replace(self.folder / name)


def verdict(attempts: list[Mapping[str, Any]]) -> tuple[list[str], dict[str, list[str]]]:
    """The cases that are wrong in every build that was tried, and those that only another build gets right."""
    builds: dict[str, dict[str, bool]] = {}
    for attempt in attempts:
        builds.setdefault(attempt["case"], {})[attempt["build"]] = attempt["ok"]
    wrong = [case for case, ok in builds.items() if not any(ok.values())]
    cured: dict[str, list[str]] = {}
    for case, ok in builds.items():
        if not ok.get("default", False):
            for build in (build for build, right in ok.items() if right):
                cured.setdefault(build, []).append(case)
    return wrong, cured


def table(record: Mapping[str, Any]) -> str:
    facts = record["facts"]
    lines = [f"{name:8} {facts[name]}" for name in FACTS if facts.get(name) is not None]
    lines += [f"! {remark}" for remark in record["remarks"]]
    if record["smoke"]:
        attempts = record["smoke"]
        right = sum(attempt["ok"] for attempt in attempts)
        lines += ["", f"smoke: {right} of {len(attempts)} attempts right"]
        width = max(len(attempt["case"]) for attempt in attempts)
        for a in attempts:
            mark = "ok  " if a["ok"] else "FAIL"
            lines.append(f"{mark}  {a['case']:{width}}  {a['build']:7}  {a['seconds']:5.1f} s  {a['said']}".rstrip())
        wrong, cured = verdict(attempts)
        lines += [f"wrong in every build: {', '.join(wrong)}"] if wrong else []
        lines += [f"right with build {build!r} only: {', '.join(cases)}" for build, cases in cured.items()]
    for stage in record["stages"]:
        lines += ["", f"{stage['name']}: {stage['says']}, {stage['seconds']:.0f} s", *stage["tail"]]
    lines += ["", f"{record['seconds']:.0f} s in all so far"]
    return "\n".join(lines)
