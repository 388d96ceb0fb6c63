"""Faults of points and of devices: NaN, infinity, metrics that raise, memory that is out, a GPU that is not there."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fault_table
import numpy as np
import pytest
from programs import PROBLEMS, Finished, Job, each_writer, listing, read, run_program

pytestmark = [pytest.mark.slow, pytest.mark.mpi_stack]

MODULE = PROBLEMS / "cliff_problem_for_tests.py"
CLIFF = ("--problem", f"{MODULE}:cliff", "--x=-1:1:12", "--y=-1:1:10", "--plot", "false")
RAISES = ("--problem.raises", "error")
OURS = "hpc_landscape: error: "


@pytest.fixture
def whole(tmp_path: Path, program: Callable[..., Finished]) -> np.ndarray:
    """The landscape's values where nothing raises."""
    finished = program(*CLIFF, "--output", "undisturbed.h5")
    assert finished.code == 0, finished
    return read(tmp_path / "undisturbed.h5", "loss")


def _assert_recorded(file: Path, whole: np.ndarray, least: int = 10) -> int:
    """All done; NaN and marked where it was raised, the same bits elsewhere. Gives how many points were marked."""
    done, failed, loss = read(file, "done", "failed", "loss")
    marked = failed == 1
    assert done.all() and least <= marked.sum() < 50
    assert np.isnan(loss[marked]).all()
    assert loss[~marked].tobytes() == whole[~marked].tobytes()
    return int(marked.sum())


@pytest.mark.parametrize(("writer", "ranks"), each_writer([1, 2, 3], [2]))
def test_errors_are_recorded(
    tmp_path: Path, program: Callable[..., Finished], whole: np.ndarray, writer: str, ranks: int
) -> None:
    options = [*CLIFF, *RAISES, "--on_error", "record"]
    finished = run_program(*options, "--writer", writer, folder=tmp_path, ranks=ranks)
    assert finished.code == 0, finished
    marked = _assert_recorded(tmp_path / "landscape.h5", whole)
    assert 1 <= finished.err.count("Traceback") <= 1 and len(finished.err.splitlines()) < 25, finished
    assert re.search(r"an error at \(\S+, \S+\) on rank \d", finished.err)
    assert f"{marked} points have raised an error: NaN, and 1 in 'failed'" in finished.out
    before = (tmp_path / "landscape.h5").read_bytes()
    again = program(*options)
    assert again.code == 0 and "is complete" in again.out, again
    assert (tmp_path / "landscape.h5").read_bytes() == before
    assert f"{marked} raised an error and are NaN" in program("info", "landscape.h5").out
    then = "--on_error record: marked, NaN there, the same bits elsewhere; one traceback in all"
    fault_table.record("a metric raises at a point", writer, tries=marked, then=then)


def test_by_default_an_error_ends_the_run(tmp_path: Path, program: Callable[..., Finished], whole: np.ndarray) -> None:
    """And the same file can be gone on with, recording them: what was done is not done again."""
    finished = program(*CLIFF, *RAISES)
    assert finished.code == 1 and finished.err.count("Traceback") == 1, finished
    done, times = read(tmp_path / "landscape.h5", "done", "wall_time")
    assert 0 < done.sum() < 120 and not read(tmp_path / "landscape.h5", "failed").any()
    finished = program(*CLIFF, *RAISES, "--on_error", "record")
    assert finished.code == 0 and "still to do" in finished.out, finished
    _assert_recorded(tmp_path / "landscape.h5", whole)
    assert (read(tmp_path / "landscape.h5", "wall_time")[done == 1] == times[done == 1]).all()
    fault_table.record("a metric raises at a point, and the run is to fail", then="exit 1, one traceback; resumed")


def test_of_points_at_a_time_only_those_that_raise_are_marked(tmp_path: Path, program: Callable[..., Finished]) -> None:
    """The block that raised is done again point by point."""
    job = ["--problem", f"{MODULE}:breaks", "--x=-1:1:12", "--y=-1:1:10", "--plot", "false", "--block", 4]
    assert program(*job, "--output", "undisturbed.h5").code == 0
    finished = program(*job, "--problem.first", 45, "--problem.last", 47, "--on_error", "record")
    assert finished.code == 0, finished
    assert _assert_recorded(tmp_path / "landscape.h5", read(tmp_path / "undisturbed.h5", "loss"), least=1) == 2
    assert finished.err.count("Traceback") == 1 and "the server has gone away" in finished.err


@pytest.mark.parametrize(("writer", "ranks"), each_writer([1, 2], [2]))
def test_nan_and_infinity_are_results(
    tmp_path: Path, program: Callable[..., Finished], writer: str, ranks: int
) -> None:
    job = [*CLIFF, "--problem.steep", 1000.0]
    assert program(*job, "--output", "undisturbed.h5").code == 0
    finished = run_program(*job, "--writer", writer, folder=tmp_path, ranks=ranks)
    assert finished.code == 0 and finished.err == "", finished
    done, failed, loss = read(tmp_path / "landscape.h5", "done", "failed", "loss")
    assert done.all() and not failed.any()
    assert np.isnan(loss).sum() > 10 and np.isposinf(loss).sum() > 10
    assert loss.tobytes() == read(tmp_path / "undisturbed.h5", "loss").tobytes()
    again = program(*job)
    assert again.code == 0 and "is complete" in again.out, again
    assert program("plot", "landscape.h5").code == 0
    tries = int((~np.isfinite(loss)).sum())
    fault_table.record("NaN and infinite losses", writer, tries=tries, then="stored as they are, exit 0: the same bits")


# Memory


@pytest.mark.parametrize("where", ["cliff", "at_once"])
@pytest.mark.parametrize("ranks", [None, 2])
def test_memory_is_out(tmp_path: Path, ranks: int | None, where: str) -> None:
    """For real: 4 GiB where the process may take 1 more. With --on_error record too: it is not the point's fault."""
    job = ["--problem", f"{MODULE}:{where}", "--x=-1:1:12", "--y=-1:1:10", "--plot", "false", "--on_error", "record"]
    job += ["--problem.raises", "memory"] if where == "cliff" else []
    finished = run_program(*job, folder=tmp_path, ranks=ranks)
    words = ["out of memory", "asked for 4.0 GiB", "free", "--batch_size (512 now"]
    _one_line(finished, *words, *([] if ranks is None else ["of 2"]))
    assert (tmp_path / "landscape.h5").exists() == (where == "cliff")
    fault_table.record("memory of a CPU is out", seconds=finished.seconds, then="exit 2, one line")


def test_memory_of_a_gpu_is_out(tmp_path: Path, program: Callable[..., Finished]) -> None:
    """With the words of PyTorch, on any machine."""
    finished = program(*CLIFF, "--problem.raises", "gpu memory")
    words = ["out of GPU memory: asked for 20.0 GiB, 17.9 GiB free", "--batch_size (512 now"]
    _one_line(finished, *words)
    fault_table.record("memory of a GPU is out (PyTorch's words)", then="exit 2, one line")


def _one_line(finished: Finished, *words: str) -> None:
    assert finished.code == 2, finished
    assert finished.err.count(OURS) == 1 and "Traceback" not in finished.err, finished
    assert [word for word in words if word not in finished.err] == [], finished


# Devices


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_rank_that_sees_no_gpu(tmp_path: Path, device: str) -> None:
    """The last of three; the others see one, or what they take for one."""
    program = [sys.executable, PROBLEMS / "fake_gpu_for_tests.py", *CLIFF, "--device", device]
    start = time.monotonic()
    with Job(program, 3, tmp_path) as job:
        finished = job.wait()
    _one_line(finished, "rank 2 of 3", "CUDA_VISIBLE_DEVICES=", "--device cpu", "--gpus-per-task=1")
    assert listing(tmp_path) == {}
    seconds = time.monotonic() - start
    fault_table.record("a rank that cannot see its GPU", seconds=seconds, then="exit 2, one line that names the rank")
