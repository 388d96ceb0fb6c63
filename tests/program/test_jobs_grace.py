"""--grace: a job leaves before its time is over, also from a point that does not end; one that brings nothing fails."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from programs import PROGRAM, TINY, WRITERS, Finished, Job, assert_same_landscape, log_lines, read

from hpc_landscape.ranks.base import SerialComm
from hpc_landscape.ranks.signals import Signals

pytestmark = pytest.mark.mpi_stack

JOB = ("--problem", TINY, "--x=-1:1:20", "--y=-1:1:10", "--plot", "false")
GRACE = ("--grace", 8)  # of which six are for the points in hand


@pytest.mark.slow
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("stuck", [0, 1])
def test_a_rank_is_inside_a_call_of_a_library(
    tmp_path: Path, program: Callable[..., Finished], writer: str, stuck: int
) -> None:
    """No handler of Python runs there. What all ranks have finished is in the file, and the same command goes on."""
    log = tmp_path / "log"
    options = ["--problem.log", log, "--problem.delay", 0.1, "--problem.fault", "kernel", "--problem.fault_rank", stuck]
    with Job([*PROGRAM, *JOB, *GRACE, *options, "--writer", writer], 2, tmp_path) as job:
        job.until(lambda: log_lines(log, "fault"))
        os.kill(job.process.pid, signal.SIGUSR1)
        finished = job.wait()
    assert finished.code == 75, finished
    assert "abandoned    points in hand, 6 s after the stop" in finished.out
    assert finished.out.count("the same command goes on from there") == 1 and "Traceback" not in finished.err
    by_rank = [line.rank for line in log_lines(log, "point")]
    assert by_rank.count(stuck) == 2, "the point that was to be given up has ended"
    done = read(tmp_path / "landscape.h5", "done").sum()
    assert done == len(by_rank) > 2 and f"{done} of 200 points are in landscape.h5" in finished.out
    assert program(*JOB).code == 0
    assert program(*JOB, "--output", "undisturbed.h5").code == 0
    assert_same_landscape(tmp_path / "landscape.h5", tmp_path / "undisturbed.h5")


@pytest.mark.slow
def test_rank_0_does_not_answer(tmp_path: Path) -> None:
    """Then nobody collects what has finished, and another rank ends the job in time."""
    log = tmp_path / "log"
    options = ["--problem.log", log, "--problem.delay", 0.1, "--writer", "gather"]
    with Job([*PROGRAM, *JOB, *GRACE, *options], 2, tmp_path) as job:
        job.until(lambda: len(log_lines(log, "point")) > 20)
        pids = {line.rank: line.pid for line in log_lines(log, "begin")}
        os.kill(pids[0], signal.SIGSTOP)
        os.kill(pids[1], signal.SIGUSR1)
        finished = job.wait()
    assert finished.code == 75, finished
    assert read(tmp_path / "landscape.h5", "done").sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize("fault_at, code", [(1, 1), (2, 75)])
def test_a_job_that_brings_nothing_fails(tmp_path: Path, fault_at: int, code: int) -> None:
    """Where not one point ends in the allocation, another one would bring as little; one is enough to go on."""
    log = tmp_path / "log"
    options = ["--problem.log", log, "--problem.fault", "kernel", "--problem.fault_at", fault_at]
    with Job([*PROGRAM, *JOB, *GRACE, *options], None, tmp_path) as job:
        job.until(lambda: log_lines(log, "fault"))
        job.process.send_signal(signal.SIGUSR1)
        finished = job.wait()
    assert finished.code == code, finished
    assert f"{fault_at - 1} of 200 points are in landscape.h5" in finished.out
    assert len(finished.err.splitlines()) == (code == 1)
    assert ("failed: the stop came before one point was finished" in finished.err) == (code == 1)
    assert read(tmp_path / "landscape.h5", "done").sum() == fault_at - 1


@pytest.mark.parametrize("name, code", [("SIGTERM", 75), ("SIGUSR1", 1)])
def test_before_the_points(tmp_path: Path, program: Callable[..., Finished], name: str, code: int) -> None:
    """SIGTERM may be a preemption, of a job that has hardly begun; SIGUSR1 says that the allocation is over."""
    problem = TINY.replace(":tiny", ":signals_itself")
    finished = program(*JOB, *GRACE, "--problem", problem, "--problem.name", name)
    assert finished.code == code, finished
    assert ("failed: the stop came before one point was finished" in finished.err) == (code == 1)
    assert len(finished.err.splitlines()) == (code == 1) and list(tmp_path.iterdir()) == []


def test_a_long_point_is_warned_of(tmp_path: Path, program: Callable[..., Finished]) -> None:
    few = ("--problem", TINY, "--x=-1:1:2", "--y=none", "--plot", "false", "--overwrite")
    text = "warning: the first point took"
    said = program(*few, "--grace", 1, "--problem.delay", 0.8).out
    assert text in said and "with --grace 1 a stop leaves 0.75 s to finish" in said
    assert text not in program(*few, "--grace", 3600).out
    assert text not in program(*few).out


def test_a_job_that_comes_back_does_not_overwrite_what_it_began(
    program: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A requeued job runs with the same words; another job, or another run in the same one, starts again."""
    few = ("--problem", TINY, "--x=-1:1:2", "--y=none", "--plot", "false", "--overwrite")
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    assert "finished" in program(*few).out and "finished" in program(*few).out
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert "landscape.h5 is complete" in program(*few).out
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    assert "finished" in program(*few).out
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    monkeypatch.setenv("SLURM_JOB_ID", "44")
    monkeypatch.setenv("HPC_LANDSCAPE_JOBS", " 42 43")  # it could not be put back, and has submitted a new one
    assert "landscape.h5 is complete" in program(*few).out
    monkeypatch.setenv("HPC_LANDSCAPE_JOBS", " 43")
    assert "finished" in program(*few).out


@pytest.mark.parametrize("grace", ["0", "-1", "nan", "inf", "soon"])
def test_a_grace_that_is_none(program: Callable[..., Finished], grace: str) -> None:
    finished = program(*JOB, f"--grace={grace}")
    assert finished.code == 2 and len(finished.err.splitlines()) == 1 and f"--grace {grace}" in finished.err, finished


def test_the_signal_of_a_forked_process_is_not_ours() -> None:
    """It inherits the descriptor that handlers write to; with the handlers a pool of the user could not be ended."""
    with Signals(SerialComm()) as signals, signals.stopping(lambda: None):
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        assert signals.code == 0
        os.kill(os.getpid(), signal.SIGTERM)
        end = time.monotonic() + 60
        while not signals.code and time.monotonic() < end:
            time.sleep(0.01)
        assert signals.code == 75
