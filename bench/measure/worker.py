# SPDX-License-Identifier: Apache-2.0
"""Where cases are measured: in this process, or in one of its own for what may take a process down.

After an illegal access a process can use its GPU no more.
"""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .correctness import reason_of

PATIENCE = 10.0  # seconds for a process that has ended to say how
FAREWELL = 2.0  # seconds for one to go by itself
START_SECONDS = 300.0  # for one to import pycl, on a machine that is busy
BENCH = Path(__file__).parent.parent  # these benchmarks

Progress = Callable[[str], None]


def unheard(_: str) -> None:
    """Progress that nobody follows."""


class Died(RuntimeError):
    """The process ended before it answered; ``at`` says what it was at."""

    def __init__(self, reason: str, at: str | None) -> None:
        super().__init__(reason)
        self.at = at


class Worker:
    """This process: what a call raises goes on, and nobody ends it."""

    def call(self, function: Callable[..., Any], *arguments: Any, limit: float) -> Any:
        """``function(*arguments, at=...)``, which tells ``at`` what it is at.

        Raises:
            Died: in a process of its own the function raised, the process ended, or it took more than ``limit``
                seconds; no other call follows.
        """
        return function(*arguments, at=unheard)

    def close(self) -> None:
        """End the process, whatever it is doing."""


def prepare() -> None:
    """What every process does first."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")  # inductor's own


class Process(Worker):
    """Another process, which has imported nothing of this one and shares no GPU context with it."""

    _pipe: Connection
    _process: Any  # of multiprocessing, or of subprocess

    def __init__(self, first: Callable[[], None] = prepare) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process could not use CUDA
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, first))
        self._process.start()
        theirs.close()

    def call(self, function: Callable[..., Any], *arguments: Any, limit: float) -> Any:
        try:
            self._pipe.send((function, arguments))
        except OSError:
            raise Died(self._how_it_ended(), None) from None
        return self._answer(limit)

    def _answer(self, limit: float) -> Any:
        at, stop = None, time.monotonic() + limit
        try:
            while self._pipe.poll(max(0.0, stop - time.monotonic())):
                kind, value = self._pipe.recv()
                if kind == "answer":
                    return value
                if kind == "raised":
                    raise Died(value, at)
                at = value
        except (EOFError, OSError):
            raise Died(self._how_it_ended(), at) from None
        raise Died(f"no answer in {limit:.0f} s", at)

    def close(self) -> None:
        self._pipe.close()
        if self._status(FAREWELL) is None:
            self._process.kill()
            self._status(PATIENCE)

    def _status(self, seconds: float) -> int | None:
        """The exit status once it has ended, minus the signal that ended it; ``None`` if it still runs by then."""
        self._process.join(seconds)
        status: int | None = self._process.exitcode
        return status

    def _how_it_ended(self) -> str:
        status = self._status(PATIENCE)
        if status is None:
            return "it answers no more"
        return f"exit status {status}" if status >= 0 else f"ended by {signal.Signals(-status).name}"


class Hosted(Process):
    """A process that has imported the pycl of another folder, under the benchmarks of this one.

    ``own`` says why the workloads are those of that folder; ``None`` where they are those of this one. Raises ``Died``
    where it cannot be imported.
    """

    def __init__(self, folder: Path, bench: Path = BENCH) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        file = theirs.fileno()
        command = [sys.executable, str(bench / "measure" / "start.py"), str(folder), str(bench), str(file)]
        self._process = subprocess.Popen(command, pass_fds=[file], stdin=subprocess.DEVNULL)
        theirs.close()
        try:
            self.own: str | None = self._answer(START_SECONDS)
        except Died:
            self.close()
            raise

    def _status(self, seconds: float) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        status: int | None = self._process.returncode
        return status


def serve(pipe: Connection, first: Callable[[], None]) -> None:
    """Answer calls until the other end is closed or a call raises."""
    first()
    try:
        while True:
            function, arguments = pipe.recv()
            try:
                answer = function(*arguments, at=partial(_tell, pipe, "at"))
            except Exception as error:
                _tell(pipe, "raised", reason_of(error))
                return
            _tell(pipe, "answer", answer)
    except (EOFError, KeyboardInterrupt):
        return


def _tell(pipe: Connection, kind: str, value: Any) -> None:
    pipe.send((kind, value))
