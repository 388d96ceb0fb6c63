"""The log is not the run: full, closed, missing or narrow streams; and what launchers have left in the environment."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import fault_table
import h5py
import pytest
from programs import LIMIT, PROGRAM, TINY, Finished, Job, environment, mpirun, read

pytestmark = pytest.mark.slow

JOB = ("--problem", TINY, "--x=-1:1:4", "--y=none", "--plot", "false")
TALKS = """
import warnings
from torch import nn
from hpc_landscape import Problem
from tiny_problem_for_tests import tiny as quiet

def loss(output, target):
    print("words of the user's own, \\N{SNOWMAN}" * 200, flush=True)
    warnings.warn("and a warning")
    return nn.functional.cross_entropy(output, target)

def tiny():
    problem = quiet()
    return Problem(problem.model, loss, problem.data)
"""


def _shell(command: str, folder: Path, **changes: str | None) -> subprocess.CompletedProcess[str]:
    """A command line of bash; the exit code is that of the first in a pipe."""
    env = environment(PYTHONPATH=os.pathsep.join([str(Path(TINY).parent), environment()["PYTHONPATH"]]), **changes)
    line = f"set -o pipefail; {command}"
    return subprocess.run(["bash", "-c", line], cwd=folder, env=env, capture_output=True, text=True, timeout=LIMIT)


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run whose loss prints a lot, as words of a shell."""
    (tmp_path / "talks.py").write_text(TALKS)
    (tmp_path / "grün").mkdir()
    job = ("--problem", "talks.py:tiny", *JOB[2:], "--output", "grün/landscape.h5")
    return shlex.join([*PROGRAM, *job])


STREAMS = {
    "full": ">/dev/full 2>/dev/full",
    "closed": ">&- 2>&- <&-",
    "a pipe that is closed": "2>&1 | head -n 2",
}


@pytest.mark.parametrize("how", STREAMS)
def test_a_run_whose_log_fails(tmp_path: Path, run: str, how: str) -> None:
    """It ends, whole, with 0; nothing is printed into the file."""
    ended = _shell(f"{run} {STREAMS[how]}", tmp_path)
    assert ended.returncode == 0, ended
    file = tmp_path / "grün" / "landscape.h5"
    assert h5py.is_hdf5(file) and read(file, "done").all()
    fault_table.record(f"the log: {how}", then="exit 0 and complete")


def test_a_stream_that_is_not_utf_8(tmp_path: Path, run: str) -> None:
    ended = _shell(run, tmp_path, PYTHONIOENCODING="ascii")
    assert ended.returncode == 0 and "gr\\xfcn/landscape.h5" in ended.stdout and "\\u2603" in ended.stdout, ended
    fault_table.record("the log: not UTF-8", then="exit 0 and complete; the odd characters escaped")


@pytest.mark.parametrize("fault, code", [("error", 1), ("mistake", 2)])
def test_two_ranks_that_cannot_speak(tmp_path: Path, fault: str, code: int) -> None:
    """Neither waits for the other to have spoken."""
    options = ("--problem.fault", fault, "--problem.fault_rank", 1, "--problem.fault_at", 1)
    ranks = shlex.join(
        ["bash", "-c", f"exec {shlex.join(map(str, [*PROGRAM, *JOB, *options]))} >/dev/full 2>/dev/full"]
    )
    ended = _shell(f"{mpirun()} -n 2 {ranks}", tmp_path)
    assert ended.returncode == code, ended
    fault_table.record("two ranks that cannot speak, and one fails", then="exit 1 or 2, as if they could")


def test_where_the_output_is_the_result(tmp_path: Path, run: str) -> None:
    """Then it is a mistake that it cannot be written; a reader that has seen enough is none."""
    assert _shell(run, tmp_path).returncode == 0
    program = shlex.join(PROGRAM)
    for words in ("info grün/landscape.h5", "--print_config", "--help"):
        ended = _shell(f"{program} {words} >/dev/full", tmp_path)
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and "No space left" in ended.stderr, ended
    assert _shell(f"{program} info grün/landscape.h5 | head -n 1", tmp_path).returncode == 0
    assert _shell(f"{program} --no_such_option >/dev/full 2>&1", tmp_path).returncode == 2


# What a launcher has left, around two real ranks
LEFT = {
    "another launcher's size of one": {"OMPI_COMM_WORLD_SIZE": "1", "PMI_SIZE": "1", "SLURM_STEP_NUM_TASKS": "1"},
    "another launcher's greater size": {"MV2_COMM_WORLD_SIZE": "7", "MV2_COMM_WORLD_RANK": "0"},
}


@pytest.mark.parametrize("left", LEFT)
def test_launchers_in_launchers(tmp_path: Path, left: str) -> None:
    others = {name: value for name, value in LEFT[left].items()}
    others |= {name.replace("SIZE", "RANK"): "0" for name in others if name.endswith("SIZE")}
    others |= {"SLURM_PROCID": "0"} if "SLURM_STEP_NUM_TASKS" in others else {}
    with Job([*PROGRAM, *JOB], 2, tmp_path, environment() | others) as job:
        finished = job.wait()
    assert finished.code == 0 and "ranks        2 on" in finished.out, finished
    assert finished.out.count("ranks    ") == 1
    assert finished.err.count("is of another launcher") == ("greater" in left)
    fault_table.record(left, then="the ranks that MPI sees; exit 0")


@pytest.mark.parametrize("size, rank", [("2", "abc"), ("two", "0"), ("2", "2"), ("2", "-1"), ("2", "")])
def test_a_number_that_is_none(
    tmp_path: Path, program: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch, size: str, rank: str
) -> None:
    monkeypatch.setenv("PMI_SIZE", size)
    monkeypatch.setenv("PMI_RANK", rank)
    finished = program(*JOB)
    assert finished.code == 2 and finished.err.count("\n") == 1, finished
    assert f"PMI_SIZE={size} and PMI_RANK={rank} are no number" in finished.err


def test_a_task_farm_draws_each_its_own(
    tmp_path: Path, program: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert program(*JOB).code == 0
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert program("plot", "landscape.h5", "-o", "3.png").code == 0 and (tmp_path / "3.png").exists()
    assert "loss" in program("info", "landscape.h5").out
    assert program("export", "landscape.h5", "-o", "3.csv").code == 0 and (tmp_path / "3.csv").exists()
    assert program("plot", "--help").out == ""
