# SPDX-License-Identifier: Apache-2.0
"""Processes with a time limit, whose own processes end with them."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Done(NamedTuple):
    status: int | None  # None: the time was up
    seconds: float
    out: str
    error: str

    @property
    def ok(self) -> bool:
        return self.status == 0

    @property
    def said(self) -> str:
        """In one line, why it failed."""
        if self.status is None:
            return f"no end after {self.seconds:.0f} s"
        if self.status < 0:
            return f"ended by {signal.Signals(-self.status).name}: {_last(self.error)}"
        return "" if self.ok else _last(self.error) or _last(self.out) or f"exit status {self.status}"


def _last(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1].strip()[:300]


_running: set[subprocess.Popen[str]] = set()
_over = False


def run(command: Sequence[str], *, seconds: float, environment: Mapping[str, str], folder: Path) -> Done:
    if _over:
        raise RuntimeError("no process is started any more")
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    _running.add(process)
    if _over:  # said while it was started
        _kill(process)
    try:
        out, error = process.communicate(timeout=max(0.1, seconds))
        status: int | None = process.returncode
    except subprocess.TimeoutExpired:
        _kill(process)
        out, error = process.communicate()
        status = None
    finally:
        _running.discard(process)
    return Done(status, time.monotonic() - start, out, error)


def _kill(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()


def end_all() -> None:
    """And start no other one."""
    global _over
    _over = True
    for process in list(_running):
        _kill(process)


def end_all_with_this() -> None:
    """Also where this process is told to end."""

    def handle(*_: object) -> None:
        end_all()
        sys.exit("ended from outside")

    def watch() -> None:
        os.read(told, 1)
        end_all()

    atexit.register(end_all)
    signal.signal(signal.SIGTERM, handle)
    # A main thread that a signal meets just before it waits for a lock runs the handler when it has the lock, which may
    # take as long as a process. So another thread ends the processes.
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)
    threading.Thread(target=watch, daemon=True).start()
