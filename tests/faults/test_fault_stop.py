"""A stop always ends, whatever hangs: a point, a worker, the factory, a rank. What is finished is in the file."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fault_table
import pytest
from programs import (
    PROBLEMS,
    PROGRAM,
    TINY,
    Finished,
    Job,
    assert_same_landscape,
    log_lines,
    mpirun,
    parallel_h5py,
    read,
    run_program,
    slow_disk,
)

pytestmark = [pytest.mark.slow, pytest.mark.mpi_stack]

GRID = ("--x=-1:1:20", "--y=-1:1:10", "--plot", "false")
STUCK = PROBLEMS / "stuck_problem_for_tests.py"
PATIENCE, END = 20, 45  # seconds that a stop waits; within which all has ended, on a slow machine


def _tiny(folder: Path, *more: object) -> list[object]:
    return [*PROGRAM, "--problem", TINY, *GRID, "--problem.log", folder / "log", "--problem.delay", 0.1, *more]


def _ended(job: Job, folder: Path, start: float, least: int = 0) -> float:
    """Seconds since; the job has left with 75, and what had been finished 2 s before is in the file."""
    finished = job.wait(END)
    seconds = time.monotonic() - start
    assert finished.code == 75 and "Traceback" not in finished.err, finished
    assert read(folder / "landscape.h5", "done").sum() >= least
    return seconds


def _point(folder: Path) -> float:
    """A point that does not end; the one process is told by SIGTERM."""
    with Job(_tiny(folder, "--problem.hold", "never", "--problem.hold_at", 3), None, folder) as job:
        job.until(lambda: log_lines(folder / "log", "holding"))
        start = time.monotonic()
        job.process.terminate()
        seconds = _ended(job, folder, start, least=2)
        assert "abandoned    points in hand, 20 s after the stop" in job.finished().out
    assert seconds > PATIENCE - 1
    return seconds


def _again(folder: Path) -> float:
    """The same on two ranks; the second signal does not wait."""
    options = ("--problem.hold", "never", "--problem.hold_at", 3, "--problem.hold_rank", -1)
    with Job(_tiny(folder, *options), 2, folder) as job:
        job.until(lambda: len(log_lines(folder / "log", "holding")) == 2)
        pids = {line.rank: line.pid for line in log_lines(folder / "log", "begin")}
        os.kill(pids[1], signal.SIGTERM)
        time.sleep(1.5)
        start = time.monotonic()
        os.kill(pids[1], signal.SIGTERM)
        return _ended(job, folder, start, least=4)


def _worker(folder: Path) -> float:
    """A data-loading worker gives nothing more."""
    options = ["--problem.when", folder / "now", "--problem.log", folder / "log", "--resident", 0]
    with Job([*PROGRAM, "--problem", f"{STUCK}:worker", *GRID, *options], None, folder) as job:
        job.until(lambda: (folder / "landscape.h5").exists() and read(folder / "landscape.h5", "done").sum())
        (folder / "now").touch()
        job.until(lambda: log_lines(folder / "log", "stuck"))
        start = time.monotonic()
        job.process.send_signal(signal.SIGUSR1)
        return _ended(job, folder, start, least=1)


def _factory(folder: Path) -> float:
    """Before there are points: the user's code swallows what would end it."""
    command = [*PROGRAM, "--problem", f"{STUCK}:factory", *GRID, "--problem.log", folder / "log"]
    hangup = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)}  # the tests may run under nohup
    with Job(command, None, folder, **hangup) as job:
        job.until(lambda: log_lines(folder / "log", "stuck"))
        start = time.monotonic()
        job.process.send_signal(signal.SIGHUP)
        assert job.wait(END).code == 75
    assert not (folder / "landscape.h5").exists()
    return time.monotonic() - start


def _disk(folder: Path) -> float:
    """The thread that writes is stuck in it."""
    with Job(_tiny(folder), None, folder, slow_disk(folder, 1e-3, when=folder / "now")) as job:
        job.until(lambda: len(log_lines(folder / "log", "point")) > 10)
        (folder / "now").touch()
        seen = len(log_lines(folder / "log", "point"))
        job.until(lambda: len(log_lines(folder / "log", "point")) > seen + 10)  # one has been begun to be written
        start = time.monotonic()
        job.process.terminate()
        return _ended(job, folder, start)


def _rank(stopped: int, writer: str) -> Callable[[Path], float]:
    """One of two ranks is stopped by SIGSTOP; the other one is told to stop."""

    def try_it(folder: Path) -> float:
        log = folder / "log"
        with Job(_tiny(folder, "--writer", writer), 2, folder) as job:
            job.until(lambda: len(log_lines(log, "point")) > 10)
            pids = {line.rank: line.pid for line in log_lines(log, "begin")}
            os.kill(pids[stopped], signal.SIGSTOP)
            when, start = time.time(), time.monotonic()
            time.sleep(3)
            os.kill(pids[1 - stopped], signal.SIGTERM)
            lines = log_lines(log, "point")
            safe = [line for line in lines if line.rank != stopped or line.time < when - 2]
            seconds = _ended(job, folder, start + 3, least=len(safe))
            assert ("rank 0 does not answer" in job.finished().err) == (stopped == 0)
        return seconds

    return try_it


FAULTS = {
    "a point that does not end, and SIGTERM": ("gather", _point),
    "points that do not end, and SIGTERM twice": ("gather", _again),
    "a data-loading worker that hangs, and SIGUSR1": ("gather", _worker),
    "a factory that does not end, and SIGHUP": ("any", _factory),
    "a disk that hangs, and SIGTERM": ("gather", _disk),
    "rank 0 is stopped, and SIGTERM to rank 1": ("gather", _rank(0, "gather")),
    "rank 1 is stopped, and SIGTERM to rank 0": ("gather", _rank(1, "gather")),
}
if parallel_h5py():
    FAULTS["rank 0 is stopped, and SIGTERM to rank 1 "] = ("parallel", _rank(0, "parallel"))


def test_a_stop_always_ends(tmp_path: Path) -> None:
    """All at once: each waits for 20 s. What is left is computed by the same command."""
    mpirun(), slow_disk(tmp_path, 1)  # these skip here, not in a thread
    folders = {fault: tmp_path / str(number) for number, fault in enumerate(FAULTS)}
    with ThreadPoolExecutor(len(FAULTS)) as pool:
        for folder in folders.values():
            folder.mkdir()
        ends = {fault: pool.submit(FAULTS[fault][1], folder) for fault, folder in folders.items()}
    for fault, end in ends.items():
        fault_table.record(fault.strip(), FAULTS[fault][0], seconds=end.result(), then="exit 75; resumed")
    undisturbed = run_program("--problem", TINY, *GRID, folder=tmp_path)
    assert undisturbed.code == 0, undisturbed
    for fault, folder in folders.items():
        if FAULTS[fault][1] not in (_worker, _factory):
            finished: Finished = run_program("--problem", TINY, *GRID, folder=folder)
            assert finished.code == 0 and "still to do" in finished.out, finished
            assert_same_landscape(folder / "landscape.h5", tmp_path / "landscape.h5")


def test_nohup(tmp_path: Path) -> None:
    """A hangup that is ignored is no stop."""
    hold = tmp_path / "hold"
    command = [
        *PROGRAM,
        "--problem",
        TINY,
        "--x=-1:1:5",
        "--y=none",
        "--plot",
        "false",
        "--problem.log",
        tmp_path / "log",
    ]
    ignore = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    with Job([*command, "--problem.hold", hold, "--problem.hold_at", 3], None, tmp_path, **ignore) as job:
        job.until(lambda: log_lines(tmp_path / "log", "holding"))
        job.process.send_signal(signal.SIGHUP)
        hold.touch()
        assert job.wait().code == 0


def test_limit_on_cpu_time(tmp_path: Path) -> None:
    """The kernel's SIGXCPU comes every second: a stop, and no second one."""
    log = tmp_path / "log"
    hold = ("--problem.hold", tmp_path / "hold", "--problem.hold_at", 3)
    with Job(_tiny(tmp_path, *hold), None, tmp_path) as job:
        job.until(lambda: log_lines(log, "holding"))
        for _ in range(2):
            job.process.send_signal(signal.SIGXCPU)
            time.sleep(0.5)
        seen = len(log_lines(log, "still"))
        job.until(lambda: len(log_lines(log, "still")) > seen + 2)
        (tmp_path / "hold").touch()
        finished = job.wait()
    assert finished.code == 75 and read(tmp_path / "landscape.h5", "done").sum() == 3, finished
    fault_table.record("limit on processor time (SIGXCPU)", "gather", finished=3, then="exit 75")


@pytest.mark.parametrize("name", ["SIGINT", "SIGUSR1", "SIGTERM"])
def test_a_signal_to_all_processes(tmp_path: Path, name: str) -> None:
    """As from a terminal, or Slurm: data-loading workers are there for the point in hand; but SIGTERM ends them."""
    family = f"{PROBLEMS / 'family_problem_for_tests.py'}:family"
    (tmp_path / "numbers").mkdir()
    options = ("--problem.folder", tmp_path / "numbers", "--problem.methods=forkserver", "--problem.others=false")
    with Job([*PROGRAM, "--problem", family, *GRID, "--resident=0", "--block=1", *options], None, tmp_path) as job:
        job.until(lambda: (tmp_path / "landscape.h5").exists() and read(tmp_path / "landscape.h5", "done").sum())
        os.killpg(job.process.pid, getattr(signal, name))
        finished = job.wait(END)
    assert finished.code == (130 if name == "SIGINT" else 75) and finished.err == "", finished
    told = "every process gets it: no error, the point in hand is " + ("given up" if name == "SIGTERM" else "finished")
    fault_table.record(f"{name} to a run and its data-loading workers", then=told)


def test_a_signal_after_the_last_point_changes_nothing(tmp_path: Path) -> None:
    """The end of an allocation, while the process is on its way out: the landscape is complete, and so is the run."""
    (tmp_path / "late.py").write_text(
        f"import atexit, os, signal, sys\nsys.path.insert(0, {str(PROBLEMS)!r})\n"
        "from tiny_problem_for_tests import tiny as late\n"
        "for name in ('SIGUSR1', 'SIGHUP', 'SIGXCPU'):\n"
        "    atexit.register(os.kill, os.getpid(), getattr(signal, name))\n"
    )
    words = ("--problem", "late.py:late", "--x=-1:1:3", "--y=none", "--plot", "false")
    finished = run_program(*words, folder=tmp_path)
    assert finished.code == 0 and read(tmp_path / "landscape.h5", "done").all(), finished
