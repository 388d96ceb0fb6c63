"""Killed at any time, started again with any number of ranks: the same file, and nothing finished is done twice.

HPC_LANDSCAPE_KILLS says how many kills, in all: by default 50. With an h5py that has MPI half of them are of the
parallel writer. Every fifth file holds 160 kB a point, and its disk takes 8 MB a second.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import fault_table
import numpy as np
import pytest
from programs import (
    PARALLEL,
    PROBLEMS,
    PROGRAM,
    TINY,
    WRITERS,
    Job,
    Line,
    assert_same_landscape,
    environment,
    living,
    log_lines,
    mpirun,
    parallel_h5py,
    read,
    run_program,
    slow_disk,
)

pytestmark = [pytest.mark.slow, pytest.mark.mpi_stack]

KILLS = int(os.environ.get("HPC_LANDSCAPE_KILLS", "50"))
PER_CHAIN = 5  # kills of one file, one after the other
CHAINS = max(1, round(KILLS / PER_CHAIN / (1 + parallel_h5py())))  # for each writer
AT_ONCE = 3  # chains: they sleep half of the time
LOSS = 2.0  # seconds of finished points that a kill may cost
END = 30.0  # seconds within which all that was started has ended
SHAPE = (20, 18)
JOB = (
    "--problem",
    TINY,
    f"--x=-1:1:{SHAPE[0]}",
    f"--y=-1:1:{SHAPE[1]}",
    "--plot",
    "false",
)  # more points than five starts finish
WIDE = ("--problem", f"{PROBLEMS / 'wide_problem_for_tests.py'}:wide", "--metrics", "loss,wide")
SLOW = 5  # of so many chains one has large values and a slow disk
KINDS = {"all": "SIGKILL of all at once", "rank": "SIGKILL of one rank", "mpirun": "SIGKILL of mpirun"}


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """The files of undisturbed runs, of small values and of large ones."""
    found = {}
    for large in (False, True):
        folder = tmp_path_factory.mktemp("reference")
        finished = run_program(*_job(large), folder=folder)
        assert finished.code == 0, finished
        found[large] = folder / "landscape.h5"
    return found


def _job(large: bool) -> tuple[str, ...]:
    return (*JOB, *(WIDE if large else ()))


@pytest.mark.parametrize("writer", ["gather", pytest.param("parallel", marks=PARALLEL)])
def test_killed_again_and_again(tmp_path: Path, references: dict[bool, Path], writer: str) -> None:
    mpirun()  # skips here, not in a thread
    env = {False: environment(), True: slow_disk(tmp_path, 8e6)}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        chains = []
        for chain in range(CHAINS):
            large = chain % SLOW == SLOW - 1
            arguments = (tmp_path / str(chain), references[large], writer, chain, large, env[large])
            chains.append(pool.submit(_chain, *arguments))
    for chain in chains:
        chain.result()


def _chain(folder: Path, reference: Path, writer: str, number: int, large: bool, env: dict[str, str]) -> None:
    """One file: computed, killed, gone on with, killed, ..., completed."""
    draw = random.Random(f"{writer} {number}")
    folder.mkdir()
    file, log, job_of = folder / "landscape.h5", folder / "log", _job(large)
    names = ["loss", "wide"] if large else ["loss"]
    expected = [array.reshape(SHAPE[0] * SHAPE[1], -1) for array in read(reference, "done", *names)[1:]]
    points = len(expected[0])
    kills: list[tuple[str, float, float, int, int]] = []  # kind, when, seconds to end, log lines before, after
    known = 0  # points done before the start at hand
    while len(kills) < PER_CHAIN and known < points:  # a kill may come after the last point
        ranks = draw.choice([1, 1, 2, 2, 3])
        arguments = [*job_of, "--writer", writer, "--problem.log", log, "--problem.delay", 0.1 * ranks]
        before = len(log_lines(log))
        with Job([*PROGRAM, *arguments], ranks, folder, env) as job:
            first = draw.choice(["", "begin", "point", "point", "point"])  # from when on: "", before a rank has begun
            job.until(lambda before=before, first=first: not first or _started(log, before, first))
            until = time.monotonic() + draw.choice([0.0, 0.5, 1.0, 2.0, 3.0, 5.0]) * draw.uniform(0.5, 1.5)
            while time.monotonic() < until and job.process.poll() is None:
                time.sleep(0.001)
            if job.process.poll() is not None:
                break
            kind, when, seconds = _kill(job, draw, log, before)
        kills.append((kind, when, seconds, before, len(log_lines(log))))
        if file.exists():
            done, *found = (array.reshape(points, -1) for array in read(file, "done", *names))
            done = done[:, 0] == 1
            assert done.sum() >= known, "points were lost"
            known = done.sum()
            for values, right in zip(found, expected, strict=True):
                assert values[done].tobytes() == right[done].tobytes()
    begin = len(log_lines(log))
    left = points - (read(file, "done").sum() if file.exists() else 0)
    finished = run_program(*job_of, "--writer", writer, "--problem.log", log, folder=folder, ranks=draw.choice([1, 2]))
    assert finished.code == 0, finished
    assert_same_landscape(file, reference, names if large else ("loss", "accuracy"))
    lines = log_lines(log)
    compared = 0 < left < points  # a finished point is computed once more, first of all
    assert len([line for line in lines[begin:] if line.kind == "point"]) == left + compared
    assert len({line.what for line in lines if line.kind == "point"}) == points
    assert [path.name for path in folder.iterdir() if "tmp" in path.name] == []
    for kind, when, seconds, begin, end in kills:
        safe = {line.what for line in lines[begin:end] if line.kind == "point" and line.time < when - LOSS}
        again = {line.what for line in lines[end:] if line.kind == "point"} - _compared(lines)
        assert not safe & again, f"{len(safe & again)} points finished {LOSS} s before the kill were computed again"
        then = "resumed on 1 or 2 ranks: the same bits, nothing computed twice"
        lost, fault = len(safe & again), KINDS[kind] + ", large values on a slow disk" * large
        fault_table.record(fault, writer, finished=len(safe), lost=lost, seconds=seconds, then=then)


def _compared(lines: list[Line]) -> set[str]:
    """What rank 0 has computed first in a later start, though it was there: one finished point, to be compared."""
    seen: set[str] = set()
    found, at_first = set(), False
    for line in lines:
        if line.kind == "begin" and line.rank == 0:
            at_first = True
        elif line.kind == "point":
            if line.rank == 0 and at_first:
                found |= {line.what} & seen
                at_first = False
            seen.add(line.what)
    return found


def _kill(job: Job, draw: random.Random, log: Path, before: int) -> tuple[str, float, float]:
    """SIGKILL all, one rank or the launcher; gives which, when, and how long it took until nothing was left running."""
    kind, start, when = draw.choice([*KINDS]), time.monotonic(), time.time()
    ranks = [line.pid for line in log_lines(log)[before:] if line.kind == "begin"]
    if kind == "all" or not ranks:
        job.kill()
        return "all", when, time.monotonic() - start
    with suppress(ProcessLookupError):
        os.kill(draw.choice(ranks) if kind == "rank" else job.process.pid, signal.SIGKILL)
    _wait_until(lambda: job.process.poll() is not None and not living(job.process.pid), start + END)
    return kind, when, time.monotonic() - start


def _wait_until(condition: Callable[[], bool], end: float) -> None:
    while not condition():
        assert time.monotonic() < end, "something is still running"
        time.sleep(0.02)


def _started(log: Path, before: int, first: str) -> bool:
    """Whether a rank has begun since, or has finished a point: a kill may come before the file exists too."""
    return any(line.kind == first for line in log_lines(log)[before:])


@pytest.mark.parametrize("writer", WRITERS)
def test_one_rank_killed_ends_all(tmp_path: Path, writer: str) -> None:
    """The others do not compute for a file that nobody completes, nor wait for ever; what is done is kept."""
    log = tmp_path / "log"
    arguments = [*JOB, "--writer", writer, "--problem.log", log, "--problem.delay", 0.2]
    with Job([*PROGRAM, *arguments], 2, tmp_path) as job:
        job.until(lambda: (tmp_path / "landscape.h5").exists() and read(tmp_path / "landscape.h5", "done").sum() > 4)
        os.kill(next(line.pid for line in log_lines(log, "begin") if line.rank == 1), 9)
        finished = job.wait(30)
    assert finished.code != 0, finished
    done, loss = read(tmp_path / "landscape.h5", "done", "loss")
    assert 4 < done.sum() < done.size
    assert np.isfinite(loss[done == 1]).all()


@pytest.mark.parametrize("hold_at", [0, 3])
def test_mpirun_killed_ends_a_single_rank(tmp_path: Path, hold_at: int) -> None:
    """It has not started MPI, so that no MPI ends it; in a point that does not end, too. The output is free again."""
    file, log = tmp_path / "landscape.h5", tmp_path / "log"
    options = ["--problem.log", log, "--problem.delay", 0.2]
    options += ["--problem.hold", tmp_path / "never", "--problem.hold_at", hold_at]
    with Job([*PROGRAM, *JOB, *options], 1, tmp_path) as job:
        job.until(lambda: len(log_lines(log, "point")) >= 2 and (not hold_at or log_lines(log, "holding")))
        safe = len(log_lines(log, "point"))
        time.sleep(LOSS)
        start = time.monotonic()
        os.kill(job.process.pid, signal.SIGKILL)
        _wait_until(lambda: job.process.poll() is not None and not living(job.process.pid), start + END)
        seconds = time.monotonic() - start
    assert read(file, "done").sum() >= safe
    finished = run_program(*JOB, folder=tmp_path)
    assert finished.code == 0 and "still to do" in finished.out, finished
    then = "ends by itself; resumed"
    fault_table.record("SIGKILL of mpirun with a single rank", "gather", finished=safe, seconds=seconds, then=then)
