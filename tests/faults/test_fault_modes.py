"""A rank is killed in the middle of each mode; the same landscape comes of it, on other ranks and in another mode."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from programs import PROBLEMS, PROGRAM, TINY, Finished, Job, assert_same_landscape, log_lines, read, run_program

pytestmark = pytest.mark.slow
JOB = ("--problem", TINY, "--x=-1:1:9", "--y=-1:1:5", "--batch_size", "8", "--plot", "false")
HOLD = ("--problem.log", "log", "--problem.hold", "never", "--problem.hold_rank", "1", "--problem.hold_at", "6")
SHARED = ("--problem", f"{PROBLEMS / 'shard_problem_for_tests.py'}:problem", "--problem.kind", "holds")
SHARED += ("--x=-1:1:9", "--y=-1:1:5", "--batch_size", "16", "--plot", "false")


def _killed(folder: Path, options: tuple[object, ...], holding: Callable[[], int]) -> int:
    """Run on two ranks until one holds its point; kill that one; returns how many points are in the file then.

    holding: the process that holds, 0 before.
    """
    file = folder / "landscape.h5"
    with Job([*PROGRAM, *options], 2, folder) as job:
        pid = job.until(holding)
        job.until(lambda: file.exists() and read(file, "done").sum() > 3)
        os.kill(pid, signal.SIGKILL)
        assert job.wait(60).code != 0
    done = int(read(file, "done").sum())
    assert 3 < done < 45
    return done


@pytest.mark.parametrize(
    "first, then",
    [
        (("--extend", "old.h5", "--directions_memory", "host"), ("--directions_memory", "seed")),
        (("--directions_memory", "seed", "--ranks_per_point", "2"), ("--schedule", "strided")),
    ],
)
def test_killed_and_gone_on_with(
    tmp_path: Path, program: Callable[..., Finished], first: tuple[str, ...], then: tuple[str, ...]
) -> None:
    if "--extend" in first:
        assert program(*JOB[:2], "--x=-1:1:5", "--y=0:1:3", *JOB[4:], "--output", "old.h5").code == 0
    log = tmp_path / "log"
    done = _killed(tmp_path, (*JOB, *first, *HOLD), lambda: next((line.pid for line in log_lines(log, "holding")), 0))
    finished = run_program(*JOB, *then, folder=tmp_path, ranks=3)
    assert finished.code == 0 and f"{45 - done} still to do" in finished.out, finished
    assert program(*JOB, "--output", "undisturbed.h5").code == 0
    assert_same_landscape(tmp_path / "landscape.h5", tmp_path / "undisturbed.h5")


def test_killed_while_the_model_is_shared_out(
    tmp_path: Path, program: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gone on with by two teams of as many ranks."""
    monkeypatch.setenv("HOLD_THE_SHARED", str(tmp_path / "held"))
    held = tmp_path / "held"
    options = (*SHARED, "--shard", "fsdp")
    done = _killed(tmp_path, options, lambda: int(held.read_text() or 0) if held.exists() else 0)
    monkeypatch.delenv("HOLD_THE_SHARED")
    finished = run_program(*options, "--ranks_per_point", "2", folder=tmp_path, ranks=4)
    assert finished.code == 0 and f"{45 - done} still to do" in finished.out, finished
    assert "teams        2 of 2 ranks" in finished.out
    assert program(*SHARED, "--output", "undisturbed.h5").code == 0
    found, right = (read(tmp_path / name, "loss") for name in ("landscape.h5", "undisturbed.h5"))
    np.testing.assert_allclose(found, right, rtol=1e-6)
