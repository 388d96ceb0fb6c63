"""Signals: the point in hand is finished, the file closed, the exit code says why, and the same command goes on."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fault_table
import pytest
from programs import PROGRAM, TINY, Finished, Job, assert_same_landscape, each_writer, log_lines, read

pytestmark = [pytest.mark.slow, pytest.mark.mpi_stack]

JOB = ("--problem", TINY, "--x=-1:1:20", "--y=-1:1:10", "--plot", "false")
CODES = {"SIGTERM": 75, "SIGUSR1": 75, "SIGINT": 130}


@pytest.fixture
def complete(tmp_path: Path, program: Callable[..., Finished]) -> Callable[[], None]:
    """Goes on with landscape.h5 to its end, and compares it with an undisturbed run."""

    def check() -> None:
        finished = program(*JOB)
        assert finished.code == 0 and "still to do" in finished.out, finished
        assert program(*JOB, "--output", "undisturbed.h5").code == 0
        assert_same_landscape(tmp_path / "landscape.h5", tmp_path / "undisturbed.h5")

    return check


@pytest.mark.parametrize("name", CODES)
def test_one_process(tmp_path: Path, complete: Callable[[], None], name: str) -> None:
    """Held at its third point when the signal comes: that point is finished, and no other is begun."""
    log, hold = tmp_path / "log", tmp_path / "hold"
    options = ["--problem.log", log, "--problem.hold", hold, "--problem.hold_at", 3]
    with Job([*PROGRAM, *JOB, *options], None, tmp_path) as job:
        job.until(lambda: log_lines(log, "holding"))
        os.kill(job.process.pid, getattr(signal, name))
        _taken(job, log)
        hold.touch()
        finished = job.wait()
    assert finished.code == CODES[name], finished
    assert "3 of 200 points are in landscape.h5; the same command goes on from there" in finished.out
    assert finished.err == ""
    assert read(tmp_path / "landscape.h5", "done").sum() == len(log_lines(log, "point")) == 3
    complete()


# To whom, of how many; to mpirun: None.
SENT = {
    "SIGTERM to rank 1 of 3": ("SIGTERM", 1, 3),
    "SIGINT to rank 1 of 2": ("SIGINT", 1, 2),
    "SIGUSR1 to rank 0 of 2": ("SIGUSR1", 0, 2),
    "SIGTERM to mpirun": ("SIGTERM", None, 2),
    "SIGINT to mpirun": ("SIGINT", None, 2),
    "SIGUSR1 to mpirun": ("SIGUSR1", None, 2),
}
PARALLEL = ["SIGTERM to rank 1 of 3", "SIGINT to mpirun", "SIGUSR1 to mpirun"]


@pytest.mark.parametrize(("writer", "sent"), each_writer(list(SENT), PARALLEL))
def test_ranks(tmp_path: Path, complete: Callable[[], None], writer: str, sent: str) -> None:
    """To one rank, or to mpirun, which passes it on: all stop. Open MPI's kills all 1 s after SIGTERM or SIGINT."""
    name, rank, ranks = SENT[sent]
    gives_time = rank is not None or name == "SIGUSR1" or not fault_table.mpi().startswith("Open MPI")
    log, hold = tmp_path / "log", tmp_path / "hold"
    options = ["--problem.log", log, "--problem.hold", hold, "--problem.hold_at", 2, "--problem.hold_rank", -1]
    with Job([*PROGRAM, *JOB, *options, "--problem.delay", 0.2, "--writer", writer], ranks, tmp_path) as job:
        job.until(lambda: len(log_lines(log, "holding")) == ranks)
        hold.touch()
        job.until(lambda: len(log_lines(log, "point")) > 12 * ranks)
        pids = {line.rank: line.pid for line in log_lines(log, "begin")}
        when, start = time.time(), time.monotonic()
        os.kill(job.process.pid if rank is None else pids[rank], getattr(signal, name))
        finished = job.wait(30)
        seconds = time.monotonic() - start
    assert "Traceback" not in finished.err + finished.out
    done = read(tmp_path / "landscape.h5", "done").sum()
    safe = len([line for line in log_lines(log, "point") if line.time < when - 2])
    assert 2 * ranks <= safe <= done < 200
    if gives_time:
        assert finished.code == CODES[name], finished
        assert finished.out.count("the same command goes on from there") == 1
        assert done == len(log_lines(log, "point"))
    else:
        assert finished.code != 0, finished
    complete()
    then = f"exit {CODES[name]}" if gives_time else f"exit {finished.code}: mpirun's, which kills after 1 s"
    whom = "mpirun" if rank is None else "one rank"
    fault_table.record(
        f"{name} to {whom}", writer, finished=safe, seconds=seconds, then=f"{then}; resumed: the same bits"
    )


def test_a_second_interrupt_does_not_wait_for_the_point(tmp_path: Path, complete: Callable[[], None]) -> None:
    log = tmp_path / "log"
    options = ["--problem.log", log, "--problem.hold", tmp_path / "never", "--problem.hold_at", 3]
    with Job([*PROGRAM, *JOB, *options], None, tmp_path) as job:
        job.until(lambda: log_lines(log, "holding"))
        job.process.send_signal(signal.SIGINT)
        _taken(job, log)
        job.process.send_signal(signal.SIGINT)
        finished = job.wait(30)
    assert finished.code == 130, finished
    assert read(tmp_path / "landscape.h5", "done").sum() == 2
    complete()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_before_the_points(tmp_path: Path, program: Callable[..., Finished], name: str) -> None:
    """While the problem is made there is nothing to save: the exit code is the same, and there is no file."""
    finished = program(*JOB, "--problem", TINY.replace(":tiny", ":signals_itself"), "--problem.name", name)
    assert finished.code == 75, finished
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(getattr(signal, name)) == signal.SIG_DFL


def test_what_a_stop_has_broken_off(tmp_path: Path, program: Callable[..., Finished]) -> None:
    """An import, say: what is raised then, on the way out, is no fault, but the stop."""
    broken = """
import os, signal
def problem():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        raise AttributeError("module 'half' has no attribute 'whole'")
"""
    (tmp_path / "broken.py").write_text(broken)
    finished = program(*JOB, "--problem", "broken.py:problem")
    assert finished.code == 75 and finished.err == "", finished


LONG_CALL = """
import hashlib
import threading
from hpc_landscape.errors import UserError
from hpc_landscape.ranks import signals
from hpc_landscape.ranks.base import SerialComm

signals.PATIENCE = 0.5

def check():
    raise error

error = UserError("the disk is full")
with signals.Signals(SerialComm()) as stops, stops.stopping(check):
    threading.Timer(0.2, stops.fail, [error]).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


def test_a_failing_writer_beside_a_long_call(tmp_path: Path) -> None:
    """The main thread, which is in it, cannot say so: no stop, after which the same command would go on."""
    with Job([sys.executable, "-c", LONG_CALL], None, tmp_path) as job:
        finished = job.wait()
    assert finished.code == 2 and finished.err == "hpc_landscape: error: the disk is full\n", finished


def test_handlers_are_as_before(tmp_path: Path, program: Callable[..., Finished]) -> None:
    before = {name: signal.getsignal(getattr(signal, name)) for name in CODES}
    assert program("--problem", TINY, "--x=-1:1:2", "--y=none", "--plot", "false").code == 0
    assert {name: signal.getsignal(getattr(signal, name)) for name in CODES} == before


def _taken(job: Job, log: Path) -> None:
    """Wait until the held process has taken its signal: the kernel has none for it, and it has run Python since."""

    def pending() -> int:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{job.process.pid}/status").read_text().splitlines())
        return int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)

    job.until(lambda: not pending())
    seen = len(log_lines(log, "still"))
    job.until(lambda: len(log_lines(log, "still")) >= seen + 2)
