"""info of a file in progress: how far it is, whether a run is at it, and that looking disturbs nobody."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from programs import PROGRAM, TINY, Finished, Job, assert_same_landscape, listing, read

from hpc_landscape.store.lock import exclusive, holder, lock_of

JOB = ["--problem", TINY, "--x=-1:1:4", "--y=-1:1:3", "--plot", "false"]
pytestmark = [
    pytest.mark.mpi_stack,
    pytest.mark.skipif(not Path("/proc/locks").exists(), reason="this system does not tell who holds a lock"),
]


def row(finished: Finished, name: str) -> str:
    assert finished.code == 0, finished
    return next((line[11:] for line in finished.out.splitlines() if line.startswith(f"{name} ")), "")


def test_a_run_that_is_killed_and_goes_on(tmp_path: Path, program: Callable[..., Finished]) -> None:
    file, go_on = tmp_path / "landscape.h5", tmp_path / "go_on"
    held = ["--problem.hold", go_on, "--problem.hold_at", 3]
    with Job([*PROGRAM, *JOB, *held], None, tmp_path) as job:
        job.until(lambda: file.exists() and read(file, "done").sum() == 2)
        said = program("info", file)
        assert re.fullmatch(
            rf"process {job.process.pid} of this machine is at it; last written .* ago", row(said, "run")
        ), said
        assert row(said, "points").startswith("2 of 12 done (16.7%), "), said
        assert re.search(r", \S+ points/s and .* left on one rank$", row(said, "points")), said
        assert row(said, "next").startswith("wait for the run"), said
        job.kill()
    said = program("info", file)  # the lock's file is still there, and nobody holds it
    assert row(said, "run").startswith("on another machine, or was killed: this machine sees none; last written"), said
    assert row(said, "next").startswith("to go on, give the command that began it again"), said
    assert lock_of(str(file)) in [str(tmp_path / name) for name in listing(tmp_path)]

    go_on.touch()
    assert program(*JOB, *held).code == 0
    said = program("info", file)
    assert row(said, "points").startswith("all done") and row(said, "run") == ""
    assert not Path(lock_of(str(file))).exists()


def test_looking_never_takes_the_lock(tmp_path: Path) -> None:
    """A run that starts while others look, again and again, finds the lock free; one that has it keeps it."""
    file = tmp_path / "landscape.h5"
    look = f"from hpc_landscape.store.lock import holder\nwhile True: print(holder({str(file)!r}), flush=True)"
    with Job([sys.executable, "-c", look], None, tmp_path) as looker:
        looker.until(lambda: looker.finished().out)
        for _ in range(200):
            with exclusive(str(file)):  # waits, and then refuses, where another process has it
                assert holder(str(file)) is not None
            assert holder(str(file)) is None
        assert looker.process.poll() is None


def test_a_lock_file_of_the_same_number_is_not_ours(tmp_path: Path) -> None:
    with exclusive(str(tmp_path / "other.h5")):
        assert holder(str(tmp_path / "landscape.h5")) is None


def test_many_readers_beside_a_run(tmp_path: Path, program: Callable[..., Finished]) -> None:
    """The values are what an undisturbed run makes."""
    file = tmp_path / "landscape.h5"
    with Job([*PROGRAM, *JOB, "--problem.delay", 0.1], None, tmp_path) as job:
        job.until(file.exists)
        looks = 0
        while job.process.poll() is None:
            assert program("info", file).code == 0
            looks += 1
        assert job.wait().code == 0 and looks
    assert program(*JOB, "--output", "undisturbed.h5").code == 0
    assert_same_landscape(file, tmp_path / "undisturbed.h5")
