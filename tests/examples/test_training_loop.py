# SPDX-License-Identifier: Apache-2.0
"""The examples' training loop: resumed it is the uninterrupted run, on ranks that of one, and it fails well."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_training
from helpers.example_runner import imported, one_thread

PROGRAM = Path(tiny_training.__file__)
CLOCKS = ("images_per_second", "loss_share")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    with one_thread():
        yield


def train(out: Path, *arguments: str) -> tiny_training.Trainer:
    return tiny_training.main(["--out", str(out), "--quiet", "--evaluate-every", "1", *arguments])


def rows(out: Path) -> list[dict[str, Any]]:
    """The log without what a clock says."""
    lines = (out / "log.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in CLOCKS} for line in lines]


def state(out: Path) -> dict[str, Any]:
    return torch.load(out / "checkpoint.pt", weights_only=True)


def assert_same_end(one: Path, other: Path) -> None:
    """Two runs wrote the same rows, and ended with the same bits."""
    assert rows(one) == rows(other)
    a, b = state(one), state(other)
    assert a.keys() == b.keys()
    for name in a:
        assert same(a[name], b[name]), name


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, whatever is in what."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


class Killed(Exception):
    pass


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, when: str) -> None:
    """The task raises in that step."""
    usual = getattr(tiny_training.Line, when)

    def stopping(self: tiny_training.Line, at: int) -> None:
        if at == step:
            raise Killed
        usual(self, at)

    monkeypatch.setattr(tiny_training.Line, when, stopping)


@pytest.mark.parametrize("when", ["before_step", "before_update"])
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_resumed_run_is_the_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, amp: str
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = ["--epochs", "4", "--checkpoint-every", "3", "--amp", amp]  # 20 steps, 5 an epoch
    train(whole, *arguments)
    with monkeypatch.context() as patch:
        stop_at(patch, 11, when)
        with pytest.raises(Killed):
            train(parts, *arguments)
    assert state(parts)["step"] == 9
    assert rows(parts)[-1]["step"] == 11  # two more than the checkpoint has
    train(parts, *arguments, "--resume", "auto")
    assert_same_end(whole, parts)
    assert [row["step"] for row in rows(whole) if "draw" in row] == [0, 5, 10, 15, 20]
    assert [row["thorough"] for row in rows(whole) if "draw" in row] == [True, False, False, False, True]


def test_measuring_does_not_change_the_run(tmp_path: Path) -> None:
    train(tmp_path / "often")
    train(tmp_path / "seldom", "--evaluate-every", "2")
    losses = [[row["loss"] for row in rows(tmp_path / name) if "loss" in row] for name in ("often", "seldom")]
    assert losses[0] == losses[1]
    assert len(rows(tmp_path / "often")) > len(rows(tmp_path / "seldom"))


def test_a_finished_run_is_measured_no_second_time(tmp_path: Path) -> None:
    train(tmp_path)
    before = (tmp_path / "log.jsonl").read_bytes()
    train(tmp_path, "--resume", "auto")
    assert (tmp_path / "log.jsonl").read_bytes() == before
    train(tmp_path)  # nothing is unfinished, so it starts over
    assert len(rows(tmp_path)) == len(before.splitlines())


def program(out: Path, *arguments: str, ranks: int = 1) -> list[str]:
    command = [sys.executable, str(PROGRAM)]
    if ranks > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        command = [*launcher, str(PROGRAM)]
    return [*command, "--out", str(out), "--quiet", "--threads", "1", "--evaluate-every", "1", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}


def finish(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment(), timeout=300, **options
    )


def kill_after(command: list[str], log: Path, step: int) -> None:
    """Kills a program, without a chance to say a word, once its log has that step."""
    process = subprocess.Popen(command, env=environment(), start_new_session=True)
    try:
        deadline = time.monotonic() + 240
        while not (log.exists() and f'"step": {step},' in log.read_text()):
            assert process.poll() is None, "the program ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="kills a process group, which Windows has none of")
def test_a_killed_process_loses_at_most_one_interval(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = ["--epochs", "80", "--checkpoint-every", "7"]  # 400 steps
    train(whole, *arguments)
    kill_after(program(parts, *arguments), parts / "log.jsonl", 40)
    reached = (parts / "log.jsonl").read_text().count("learning_rate")
    assert reached - 7 <= state(parts)["step"] < 400
    resumed = finish(program(parts, *arguments, "--resume", "auto"))
    assert resumed.returncode == 0, resumed.stderr
    assert_same_end(whole, parts)


def test_two_ranks_are_one(tmp_path: Path) -> None:
    """Without noise both see the batches of one process, and its losses, parameters and temperature."""
    arguments = ["--noise", "0", "--epochs", "4"]
    train(tmp_path / "one", *arguments)
    two = finish(program(tmp_path / "two", *arguments, ranks=2))
    assert two.returncode == 0, two.stderr
    one, other = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [row["step"] for row in one] == [row["step"] for row in other]
    for key in ("loss", "temperature", "length"):
        values = [torch.tensor([row[key] for row in run if key in row]) for run in (one, other)]
        torch.testing.assert_close(*values, rtol=1e-4, atol=1e-5)
    parameters = [state(tmp_path / name)["task"]["encoder.weight"] for name in ("one", "two")]
    torch.testing.assert_close(*parameters, rtol=1e-3, atol=1e-4)
    seen = [rank["buffers"]["seen"] for rank in state(tmp_path / "two")["ranks"]]
    torch.testing.assert_close(seen[0] + seen[1], state(tmp_path / "one")["task"]["seen"], rtol=1e-4, atol=1e-4)
    assert not torch.equal(*seen)


@pytest.mark.skipif(sys.platform == "win32", reason="kills a process group, which Windows has none of")
def test_two_ranks_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each with its own random numbers and buffers."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = ["--epochs", "20", "--checkpoint-every", "10"]
    assert finish(program(whole, *arguments, ranks=2)).returncode == 0
    kill_after(program(parts, *arguments, ranks=2), parts / "log.jsonl", 25)
    resumed = finish(program(parts, *arguments, "--resume", "auto", ranks=2))
    assert resumed.returncode == 0, resumed.stderr
    assert_same_end(whole, parts)
    assert "is of 2 ranks, not 1" in refuse(capsys, parts, *arguments, "--resume", "auto")


def refuse(capsys: pytest.CaptureFixture[str], out: Path, *arguments: str) -> str:
    """The line with which a run ends."""
    with pytest.raises(SystemExit) as stop:
        train(out, *arguments)
    assert stop.value.code not in (0, None)
    return (str(stop.value.code) + capsys.readouterr().err).splitlines()[-1]


def test_an_unfinished_run_is_not_started_over_by_oversight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 7, "before_step")
        with pytest.raises(Killed):
            train(tmp_path, "--checkpoint-every", "3")
    assert "stopped at step 6 of 10" in refuse(capsys, tmp_path)
    assert "was made with --lr 0.01, not 0.02" in refuse(capsys, tmp_path, "--resume", "auto", "--lr", "0.02")
    assert "there is no checkpoint" in refuse(capsys, tmp_path, "--resume", str(tmp_path / "nowhere.pt"))
    elsewhere = train(tmp_path / "elsewhere", "--resume", str(tmp_path / "checkpoint.pt"))
    assert elsewhere.step == 10
    assert train(tmp_path, "--resume", "never").step == 10


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no archive", "half"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: bytes | str) -> None:
    train(tmp_path)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    path.write_bytes(damage if isinstance(damage, bytes) else whole[: len(whole) // 2])
    line = refuse(capsys, tmp_path, "--resume", "auto")
    assert str(path) in line
    assert "damaged" in line
    torch.save({"weights": torch.zeros(2)}, path)
    assert "no checkpoint of these examples" in refuse(capsys, tmp_path, "--resume", "auto")


def test_a_damaged_log_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path)
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text().replace('{"step": 3', '{"stop": 3'))
    line = refuse(capsys, tmp_path, "--resume", "auto")
    assert str(log) in line
    assert "is damaged" in line


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files, which Windows does not")
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    train(tmp_path, "--max-steps", "2", "--epochs", "4", "--checkpoint-every", "1")
    before = (tmp_path / "checkpoint.pt").read_bytes()
    limited = (
        f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) // 2},) * 2); "
        f"sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = program(tmp_path, "--max-steps", "2", "--epochs", "4", "--checkpoint-every", "1", "--resume", "never")
    done = finish([command[0], "-c", limited, *command[1:]])
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert "the checkpoint could not be written" in line
    assert "File too large" in line
    assert str(tmp_path / "checkpoint.pt") in line
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "1"], "--batch-size must be at least 2"),
        (["--temperature", "0"], "--temperature must be positive"),
        (["--lr", "nan"], "--lr must be positive"),
        (["--weight-decay", "-1"], "--weight-decay must not be negative"),
        (["--device", "abacus"], "--device abacus is no device"),
        (["--device", "meta"], "the examples run on cpu and cuda"),
        (["--max-steps", "0"], "--max-steps must be at least 1"),
        (["--noise", "inf"], "the loss is nan at step 1"),
    ],
)
def test_bad_options_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in refuse(capsys, tmp_path, *arguments)


def test_batches_are_every_instance_once_an_epoch(tmp_path: Path) -> None:
    trainer = train(tmp_path, "--epochs", "1", "--checkpoint-every", "0")
    assert not (tmp_path / "checkpoint.pt").exists()
    epochs = [torch.cat([trainer.rows(step) for step in range(first, first + 5)]) for first in (0, 5)]
    for order in epochs:
        assert sorted(order.tolist()) == list(range(tiny_training.POINTS))
    assert not torch.equal(*epochs)
    assert not torch.equal(epochs[0].sort().values, epochs[0])


def test_learning_rate_warms_up_and_ends_near_zero(tmp_path: Path) -> None:
    train(tmp_path, "--epochs", "8")  # 40 steps
    rates = [row["learning_rate"] for row in rows(tmp_path) if "loss" in row]
    assert rates[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert max(rates) == pytest.approx(0.01)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] < 1e-4


def test_the_profile_tells_the_loss_from_its_dense_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dense loss that sleeps is slow, and the rest of the step is not."""
    with imported("multiview_images"):
        from common import step_profile
    trainer = train(tmp_path)
    dense = tiny_training.Line.dense_loss

    def slow(self: tiny_training.Line, *arguments: Any) -> torch.Tensor:
        time.sleep(0.05)
        return dense(self, *arguments)

    monkeypatch.setattr(tiny_training.Line, "dense_loss", slow)
    before = torch.get_rng_state()
    found = step_profile.profile(trainer)
    assert torch.equal(torch.get_rng_state(), before)
    assert found["dense_loss"] > 50
    assert all(0 < found["ms"][part] < 50 for part in ("data", "encoder", "loss", "optimizer"))
    assert "the loss in plain torch" in step_profile.table(found)
    again = step_profile.profile(train(tmp_path, "--resume", "auto"))  # which trains no step
    assert 0 < again["ms"]["loss"] < 0.9 * sum(again["ms"].values())


def test_tensorboard_has_the_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path, "--tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shown = {event.step: event.value for event in events.Scalars("loss")}
    assert shown == pytest.approx({row["step"]: row["loss"] for row in rows(tmp_path) if "loss" in row})


def test_compiled_encoder_learns_the_same(tmp_path: Path) -> None:
    train(tmp_path / "eager", "--noise", "0")
    train(tmp_path / "compiled", "--noise", "0", "--compile")
    losses = [[row["loss"] for row in rows(tmp_path / name) if "loss" in row] for name in ("eager", "compiled")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
