"""--refine: the same points and values from any number of ranks, killed or not; and what the file and the words say."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from programs import PROBLEMS, PROGRAM, TINY, Finished, Job, read, run_program

from hpc_landscape.store import layout

GRID = ("--x=-1:1:31", "--y=-1:1:31")
JOB = ("--problem", TINY, *GRID, "--refine", "0.01", "--plot", "false")
SAME = ("done", "loss", "accuracy", "loss_estimate", "loss_error", "accuracy_estimate", "runs/refinement")
CLIFF = f"{PROBLEMS / 'cliff_problem_for_tests.py'}:cliff"


def bits(path: Path) -> list[bytes]:
    return [array.tobytes() for array in read(path, *SAME)]


@pytest.mark.slow
@pytest.mark.mpi_stack
def test_killed_and_stopped_in_any_round_on_any_number_of_ranks(tmp_path: Path) -> None:
    """Each time on other ranks, at last in teams: the same file in the end."""
    job = (*JOB, "--batch_size", "24")
    assert run_program(*job, "--output", "whole.h5", folder=tmp_path).code == 0
    whole = int(read(tmp_path / "whole.h5", "done").sum())
    path, slow = tmp_path / "landscape.h5", (*job, "--problem.delay", "0.01")

    def done(count: int) -> bool:
        return path.exists() and read(path, "done").sum() >= count

    assert 25 < 60 < 110 < whole < 400  # in the first rounds, and later
    with Job([*PROGRAM, *slow], 3, tmp_path) as running:
        running.until(lambda: done(60))
        running.kill()
    with Job([*PROGRAM, *slow], 2, tmp_path) as running:
        running.until(lambda: done(110))
        running.process.send_signal(signal.SIGUSR1)  # which each mpirun passes on
        stopped = running.wait()
    assert stopped.code == 75 and "the same command goes on from there" in stopped.out, stopped
    there = int(read(path, "done").sum())
    assert there < whole and not layout.read(str(path)).complete
    finished = run_program(*job, "--ranks_per_point", "2", folder=tmp_path, ranks=4)
    assert finished.code == 0 and f"finished     {whole} of 961 points" in finished.out, finished
    assert f"961 points, at most {961 - there} still to do" in finished.out
    assert bits(path) == bits(tmp_path / "whole.h5")


def test_a_refined_file_and_what_is_said_of_it(tmp_path: Path, program: Callable[..., Finished]) -> None:
    dry = program(*JOB, "--dry_run")
    assert dry.code == 0 and "for these 25 points; how many follow, their values tell" in dry.out
    finished = program(*JOB)
    assert finished.code == 0, finished
    assert "refinement   loss to 0.01 of its range; now 25 points" in finished.out
    assert "others       loss estimated to" in finished.out and "points held out" in finished.out
    done, loss, guess, error = read("landscape.h5", "done", "loss", "loss_estimate", "loss_error")
    there = done.astype(bool)
    assert np.isnan(loss[~there]).all() and (guess[there] == loss[there]).all() and (error[there] == 0).all()
    stored = layout.read("landscape.h5")
    assert stored.complete and set(stored.refined) == {"loss", "accuracy"}
    assert [quantity.name for quantity in stored.quantities] == ["accuracy", "loss"]
    assert stored.refined["loss"].held_out == 9 and stored.refined["loss"].estimated_error <= 0.01
    told = program("info", "landscape.h5").out
    assert f"points     {done.sum()} of 961 done" in told and "all that the refinement has wanted" in told
    assert "refinement loss estimated to" in told and "next       python -m hpc_landscape plot" in told
    before = bits(tmp_path / "landscape.h5")
    again = program(*JOB)
    assert again.code == 0 and "is complete" in again.out and bits(tmp_path / "landscape.h5") == before

    # The same command without --refine computes the others: then the true error is known everywhere
    plain = program(*[word for word in JOB if word not in ("--refine", "0.01")])
    assert plain.code == 0, plain
    done, loss = read("landscape.h5", "done", "loss")
    assert done.all() and np.abs(loss - guess).max() <= 2 * 0.01 * np.ptp(loss)
    again = program(*JOB)
    assert again.code == 0 and "is complete" in again.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--refine", "0"), "--refine 0: must be more than 0"),
        (("--refine", "1"), "--refine 1: must be more than 0 and less than 1"),
        (("--refine=-0.1",), "--refine -0.1: must be more than 0"),
        (("--refine", "nan"), "--refine nan"),
        (("--refine", "fine"), "--refine fine"),
        (("--refine", "0.1", "--x=-1:1:5", "--y", "none"), "a grid of 5 points is too small"),
        (("--refine", "0.1", "--metrics", "loss_perturbations,loss"), "has several values a point"),
    ],
)
def test_what_makes_no_sense(program: Callable[..., Finished], words: tuple[str, ...], said: str) -> None:
    finished = program("--problem", TINY, *GRID, *words)
    assert finished.code == 2 and said in finished.err and finished.err.count("\n") == 1, finished
    assert not Path("landscape.h5").exists()


def test_a_file_goes_on_with_its_own_tolerance_alone(program: Callable[..., Finished], tmp_path: Path) -> None:
    small = ("--problem", TINY, "--x=-1:1:11", "--y", "none", "--plot", "false")
    assert program(*small, "--output", "plain.h5").code == 0
    assert program(*small, "--refine", "0.3", "--output", "refined.h5").code == 0
    for output, tolerance, there in (("plain.h5", "0.3", "not recorded"), ("refined.h5", "0.2", "0.3")):
        before = Path(output).read_bytes()
        finished = program(*small, "--refine", tolerance, "--output", output)
        assert finished.code == 2 and f"--refine ({there} there, {tolerance} here) differs" in finished.err, finished
        assert Path(output).read_bytes() == before


def test_points_that_have_failed_are_gaps_and_done_again_when_asked(program: Callable[..., Any]) -> None:
    job = (
        "--problem",
        CLIFF,
        *GRID,
        "--refine",
        "0.05",
        "--plot",
        "false",
        "--metrics",
        "loss",
        "--on_error",
        "record",
    )
    finished = program(*job, "--problem.raises", "error")
    assert finished.code == 0, finished
    failed, done = read("landscape.h5", "failed", "done")
    assert 0 < failed.sum() < done.sum() < 961
    again = program(*job, "--problem.raises", "error", "--retry_failed")
    assert again.code == 0, again
    assert (read("landscape.h5", "failed") == failed).all()
