"""Killed at any time, started again with any number of ranks: the same file, and nothing finished is done twice.

HPC_LANDSCAPE_KILLS says how many kills, in all; more than the 20 that it is by default find rarer things.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
from programs import PROGRAM, TINY, WRITERS, Job, assert_same_landscape, log_lines, parallel_h5py, read, run_program

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("HPC_LANDSCAPE_KILLS", "20"))
PER_CHAIN = 5  # kills of one file, one after the other
CHAINS = max(1, round(KILLS / PER_CHAIN / (1 + parallel_h5py())))  # for each writer
LOSS = 2.0  # seconds of finished points that a kill may cost
JOB = ("--problem", TINY, "--x=-1:1:12", "--y=-1:1:13", "--plot", "false")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an undisturbed run."""
    folder = tmp_path_factory.mktemp("reference")
    finished = run_program(*JOB, folder=folder)
    assert finished.code == 0, finished
    return folder / "landscape.h5"


@pytest.mark.parametrize("chain", range(CHAINS))
@pytest.mark.parametrize("writer", WRITERS)
def test_killed_again_and_again(tmp_path: Path, reference: Path, writer: str, chain: int) -> None:
    draw = random.Random(f"{writer} {chain}")
    file, log = tmp_path / "landscape.h5", tmp_path / "log"
    expected = read(reference, "loss")
    kills: list[tuple[float, int, int]] = []  # when, and the log's lines of that start
    known = 0  # points done before the start at hand
    while len(kills) < PER_CHAIN:
        ranks = draw.choice([1, 2, 3])
        arguments = [*JOB, "--writer", writer, "--problem.log", log, "--problem.delay", 0.1 * ranks]
        wait = draw.choice([0.0, 0.5, 1.0, 2.0, 3.0, 4.0]) * draw.uniform(0.5, 1.5)
        before = len(log_lines(log))
        with Job([*PROGRAM, *arguments], ranks, tmp_path) as job:
            job.until(lambda before=before: _started(log, before))
            until = time.monotonic() + wait
            while time.monotonic() < until and job.process.poll() is None:
                time.sleep(0.001)
            ended, when = job.process.poll() is not None, time.time()
            job.kill()
        kills.append((when, before, len(log_lines(log))))
        if ended:
            break
        if file.exists():
            done, loss = (array.reshape(-1) for array in read(file, "done", "loss"))
            assert done.sum() >= known, "points were lost"
            known = done.sum()
            assert loss[done == 1].tobytes() == expected.reshape(-1)[done == 1].tobytes()
    left = expected.size - known
    finished = run_program(*JOB, "--writer", writer, "--problem.log", log, folder=tmp_path, ranks=draw.choice([1, 2]))
    assert finished.code == 0, finished
    assert_same_landscape(file, reference)
    lines = log_lines(log)
    assert len([line for line in lines[kills[-1][2] :] if line.kind == "point"]) == left
    assert len({line.what for line in lines if line.kind == "point"}) == expected.size
    for when, begin, end in kills:
        safe = {line.what for line in lines[begin:end] if line.kind == "point" and line.time < when - LOSS}
        again = {line.what for line in lines[end:] if line.kind == "point"}
        assert not safe & again, f"{len(safe & again)} points finished {LOSS} s before the kill were computed again"
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []


def _started(log: Path, before: int) -> bool:
    """Whether a rank has begun since: a kill may come at any time from then on, before the file exists too."""
    return len(log_lines(log)) > before


@pytest.mark.parametrize("writer", WRITERS)
def test_one_rank_killed_ends_all(tmp_path: Path, writer: str) -> None:
    """The others do not compute for a file that nobody completes, nor wait for ever; what is done is kept."""
    log = tmp_path / "log"
    arguments = [*JOB, "--writer", writer, "--problem.log", log, "--problem.delay", 0.2]
    with Job([*PROGRAM, *arguments], 2, tmp_path) as job:
        job.until(lambda: (tmp_path / "landscape.h5").exists() and read(tmp_path / "landscape.h5", "done").sum() > 4)
        os.kill(next(line.pid for line in log_lines(log, "begin") if line.rank == 1), 9)
        finished = job.wait(30)
    assert finished.code != 0
    done, loss = read(tmp_path / "landscape.h5", "done", "loss")
    assert 4 < done.sum() < done.size
    assert np.isfinite(loss[done == 1]).all()
