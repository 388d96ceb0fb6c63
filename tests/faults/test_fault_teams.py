"""Faults of ranks that evaluate points together: one of them is killed, stopped, raises, or its machine fails."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
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
    each_writer,
    log_lines,
    read,
    run_program,
)

pytestmark = [pytest.mark.slow, pytest.mark.mpi_stack]

JOB = ("--problem", TINY, "--x=-1:1:12", "--y=-1:1:10", "--batch_size", "8", "--plot", "false")
TEAM = ("--ranks_per_point", "3")
RAISES = ("--problem", f"{PROBLEMS / 'team_problem_for_tests.py'}:problem", "--x=-1:1:9", "--y=-1:1:3", "--plot=false")


@pytest.mark.parametrize(("writer", "ends"), each_writer(["SIGKILL", "SIGTERM"], ["SIGKILL", "SIGTERM"]))
def test_one_rank_of_a_team_ends(tmp_path: Path, program: Callable[..., Finished], writer: str, ends: str) -> None:
    """What is done is kept; other ranks, in other teams, go on with it to the same bits."""
    log, file = tmp_path / "log", tmp_path / "landscape.h5"
    arguments = [*JOB, *TEAM, "--writer", writer, "--problem.log", log, "--problem.delay", 0.1]
    with Job([*PROGRAM, *arguments], 3, tmp_path) as job:
        job.until(lambda: file.exists() and read(file, "done").sum() > 4)
        start = time.monotonic()
        os.kill(next(line.pid for line in log_lines(log, "begin") if line.rank == 1), getattr(signal, ends))
        finished = job.wait(30)
        seconds = time.monotonic() - start
    assert finished.code == 75 if ends == "SIGTERM" else finished.code != 0, finished
    assert "Traceback" not in finished.err + finished.out
    assert 4 < read(file, "done").sum() < 120
    finished = run_program(*JOB, "--ranks_per_point", 2, "--writer", writer, folder=tmp_path, ranks=2)
    assert finished.code == 0 and "still to do" in finished.out, finished
    assert program(*JOB, "--output", "undisturbed.h5").code == 0
    assert_same_landscape(file, tmp_path / "undisturbed.h5")
    fault_table.record(
        f"{ends} of one rank of a team", writer, seconds=seconds, then="resumed by another: the same bits"
    )


@pytest.mark.parametrize("fault", ["mistake", "error"])
def test_what_one_rank_of_a_team_finds_is_said_once(tmp_path: Path, fault: str) -> None:
    options = [*JOB, *TEAM, "--problem.fault", fault, "--problem.fault_rank", 2]
    finished = run_program(*options, folder=tmp_path, ranks=3)
    assert finished.code == (2 if fault == "mistake" else 1), finished
    assert (finished.err + finished.out).count("ArithmeticError: the user's own fault") == (fault == "error")
    assert finished.err.count("a mistake that one rank alone has found") == (fault == "mistake")


def test_errors_are_recorded(tmp_path: Path, program: Callable[..., Finished]) -> None:
    """A metric raises at some points, on batches that one rank has."""
    metric = f"loss,{PROBLEMS / 'team_problem_for_tests.py'}:OnlyOfClass(least=0.2)"
    options = (*RAISES, "--batch_size", "16", "--metrics", metric, "--on_error", "record")
    assert program(*options, "--output", "alone.h5").code == 0
    finished = run_program(*options, *TEAM, folder=tmp_path, ranks=3)
    assert finished.code == 0 and finished.err.count("Traceback") == 1, finished
    names = "done", "failed", "loss", "only_of_class"
    together, alone = (read(tmp_path / name, *names) for name in ("landscape.h5", "alone.h5"))
    assert together[0].all() and 0 < together[1].sum() < together[1].size
    for mine, right in zip(together, alone, strict=True):
        assert mine.tobytes() == right.tobytes()


def test_a_worker_of_one_rank_is_killed(tmp_path: Path, program: Callable[..., Finished]) -> None:
    """And the model draws random numbers, so that each rank has all of the batches."""
    (tmp_path / "faults").mkdir()
    job = ["--problem", f"{PROBLEMS / 'machine_faults_for_tests.py'}:problem", "--problem.folder", tmp_path / "faults"]
    job += ["--x=-1:1:12", "--y", "none", "--plot", "false", "--resident", "0", "--block", "1"]
    assert program(*job, "--problem.workers", 0, "--output", "undisturbed.h5").code == 0
    (tmp_path / "faults" / "fault").write_text("data kill 1 45")
    finished = run_program(*job, "--ranks_per_point", 2, folder=tmp_path, ranks=2)
    assert finished.code == 0 and len(list((tmp_path / "faults").glob("happened.*"))) == 1, finished
    assert finished.err.count("a data-loading worker died") == 1 and "batches are not shared" in finished.out, finished
    assert_same_landscape(tmp_path / "landscape.h5", tmp_path / "undisturbed.h5")


def test_one_rank_that_shares_a_model_fails_before_the_first_point(tmp_path: Path) -> None:
    """The others wait for its rows."""
    problem = f"{PROBLEMS / 'shard_problem_for_tests.py'}:problem"
    options = ["--problem", problem, "--problem.kind", "fails", "--shard", "fsdp", "--batch_size", "8", "--y", "none"]
    finished = run_program(*options, folder=tmp_path, ranks=2)
    assert finished.code == 2 and "the problem fails on its first batch" in finished.err, finished
    assert "on one rank" in finished.err and not list(tmp_path.glob("*.h5"))
