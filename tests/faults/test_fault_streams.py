"""The log is not the run: full, closed, missing or narrow streams; and what launchers have left in the environment."""

from __future__ import annotations

import fcntl
import os
import pty
import shlex
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import fault_table
import h5py
import pytest
from programs import LIMIT, PROGRAM, TINY, Finished, Job, environment, mpirun, read

from hpc_landscape.console import Sturdy, notice, say
from hpc_landscape.progress import Progress
from hpc_landscape.ranks.comm import launched

pytestmark = pytest.mark.slow

JOB = ("--problem", TINY, "--x=-1:1:4", "--y=none", "--plot", "false")
TALKS = """
import atexit
import warnings
from torch import nn
from hpc_landscape import Problem
from tiny_problem_for_tests import tiny as quiet

def loss(output, target):
    print("words of the user's own, \\N{SNOWMAN}" * 200, flush=True)
    warnings.warn("and a warning")
    return nn.functional.cross_entropy(output, target)

atexit.register(print, "last words")  # which Python flushes after all: exit code 120 where it cannot

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


def _full_pipe() -> tuple[int, int]:
    """Its ends, to read from and to write to; a write waits."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with suppress(BlockingIOError):
        while True:
            os.write(write_end, b"x" * 4096)
    os.set_blocking(write_end, True)
    return read_end, write_end


def test_a_pipe_that_nobody_reads(tmp_path: Path, run: str) -> None:
    """It is full: words are lost after a second, and later ones without waiting."""
    read_end, write_end = _full_pipe()
    ended = subprocess.run(
        shlex.split(run),
        cwd=tmp_path,
        env=environment(PYTHONPATH=os.pathsep.join([str(Path(TINY).parent), environment()["PYTHONPATH"]])),
        stdin=subprocess.DEVNULL,
        stdout=write_end,
        stderr=write_end,
        timeout=LIMIT,
    )
    os.close(write_end)
    os.close(read_end)
    assert ended.returncode == 0 and read(tmp_path / "grün" / "landscape.h5", "done").all()
    fault_table.record("the log: a pipe that nobody reads", then="exit 0 and complete")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_pipe_with_little_room(encoding: str) -> None:
    """What is written is never more than what such a pipe takes at once: a write would wait for its reader."""
    read_end, write_end = _full_pipe()
    os.read(read_end, 4096)
    with os.fdopen(write_end, "w", encoding=encoding) as pipe:
        stream = Sturdy(pipe)
        stream.patience = 0.1
        thread = threading.Thread(target=stream.write, args=("\N{GRINNING FACE}" * 1000,), daemon=True)
        thread.start()
        thread.join(10)
        waits = thread.is_alive()
        os.set_blocking(read_end, False)
        with suppress(BlockingIOError):  # let it end
            while True:
                os.read(read_end, 2**16)
    os.close(read_end)
    assert not waits and isinstance(stream.lost, BlockingIOError)


# What a problem may do with the streams that everybody prints to
OWN = """
import sys
from tiny_problem_for_tests import tiny as quiet

class Odd:
    def __init__(self, **found):
        vars(self).update(found)

def refuses(*words):
    raise RuntimeError("no")

def tiny(streams):
    if streams == "none":
        sys.stdout = sys.stderr = None
    elif streams == "closed":
        with open("closed", "w") as sys.stdout:
            sys.stderr = sys.stdout
    elif streams == "only write":
        sys.stdout = sys.stderr = Odd(write=len)
    elif streams == "raise":
        sys.stdout = sys.stderr = Odd(write=refuses, flush=refuses, isatty=refuses)
    return quiet()
"""


@pytest.mark.parametrize("streams", ["none", "closed", "only write", "raise"])
def test_a_problem_with_streams_of_its_own(tmp_path: Path, program: Callable[..., Finished], streams: str) -> None:
    (tmp_path / "own.py").write_text(f"import sys; sys.path.insert(0, {str(Path(TINY).parent)!r})\n{OWN}")
    before = sys.stdout, sys.stderr
    assert program("--problem", "own.py:tiny", "--problem.streams", streams, *JOB[2:]).code == 0
    assert (sys.stdout, sys.stderr) == before
    fault_table.record(f"a problem puts other streams in place: {streams}", then="exit 0 and complete")


def test_a_terminal_that_goes(tmp_path: Path) -> None:
    """Without its SIGHUP, as after setsid: the bar is lost, and no point."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    hold = tmp_path / "hold"
    options = ("--problem.log", tmp_path / "log", "--problem.hold", hold, "--problem.hold_at", 2)
    process = subprocess.Popen(
        list(map(str, [*PROGRAM, *JOB, *options])),
        cwd=tmp_path,
        env=environment(),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    with suppress(OSError):
        while b"0/4 " not in shown:
            shown += os.read(ours, 4096)
    os.close(ours)
    hold.touch()
    assert b"0/4 " in shown and process.wait(LIMIT) == 0, shown
    assert read(tmp_path / "landscape.h5", "done").all()
    fault_table.record("the terminal is gone", then="exit 0 and complete")


def test_full_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said when there is room again comes through, by whoever it is said; nothing raises before."""

    class Log:
        room, text = False, ""

        def write(self, text: str) -> None:
            if not self.room:
                raise OSError(28, "No space left on device")
            self.text += text

    log = Log()
    monkeypatch.setattr(sys, "stdout", log)
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(sys, "__stdout__", None)
    monkeypatch.setattr(sys, "__stderr__", None)
    now = [0.0]
    progress = Progress(10, 0, lambda: now[0])
    for log.room in (False, True):
        say("words")
        notice("a notice")
        now[0] += 100
        progress.update(2)
    progress.close()
    assert log.text.startswith("words\nhpc_landscape: a notice\n2/10 points"), log.text


@pytest.mark.mpi_stack
def test_two_ranks_that_cannot_speak(tmp_path: Path) -> None:
    """Neither waits for the other to have spoken."""
    options = ("--problem.fault", "mistake", "--problem.fault_rank", 1, "--problem.fault_at", 1)
    ranks = shlex.join(
        ["bash", "-c", f"exec {shlex.join(map(str, [*PROGRAM, *JOB, *options]))} >/dev/full 2>/dev/full"]
    )
    ended = _shell(f"{mpirun()} -n 2 {ranks}", tmp_path)
    assert ended.returncode == 2, ended
    fault_table.record("two ranks that cannot speak, and one fails", then="exit 2, as if they could")


def test_where_the_output_is_the_result(tmp_path: Path, run: str) -> None:
    """Then it is a mistake that it cannot be written; a reader that has seen enough is none."""
    assert _shell(run, tmp_path).returncode == 0
    program = shlex.join(PROGRAM)
    for words in ("info grün/landscape.h5", "--print_config", "--help"):
        ended = _shell(f"{program} {words} >/dev/full", tmp_path)
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and "No space left" in ended.stderr, ended
    assert _shell(f"{program} info grün/landscape.h5 | head -n 1", tmp_path).returncode == 0
    assert _shell(f"{program} --no_such_option >/dev/full 2>&1", tmp_path).returncode == 2


@pytest.mark.mpi_stack
def test_launchers_in_launchers(tmp_path: Path) -> None:
    """Sizes that others have left, smaller and greater, around two real ranks."""
    left = dict.fromkeys(["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"], "1")
    left |= dict.fromkeys(["OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID", "FLUX_TASK_RANK"], "0")
    with Job([*PROGRAM, *JOB], 2, tmp_path, environment() | left | {"FLUX_JOB_SIZE": "7"}) as job:
        finished = job.wait()
    assert finished.code == 0 and finished.out.count("ranks    ") == 1 and "ranks        2 on" in finished.out, finished
    assert finished.err.count("FLUX_JOB_SIZE=7 is of another launcher: MPI sees 2 processes") == 1, finished
    fault_table.record("sizes 1 and 7 of other launchers around mpirun -n 2", then="exit 0: the 2 ranks that MPI sees")


@pytest.mark.parametrize("size, rank", [("2", "abc"), ("two", "0"), ("2", "2"), ("2", "-1"), ("2", "")])
def test_a_number_that_is_none(
    tmp_path: Path, program: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch, size: str, rank: str
) -> None:
    monkeypatch.setenv("PMI_SIZE", size)
    monkeypatch.setenv("PMI_RANK", rank)
    finished = program(*JOB)
    assert finished.code == 2 and finished.err.count("\n") == 1, finished
    assert f"PMI_SIZE={size} and PMI_RANK={rank} are no number" in finished.err


def test_a_number_that_no_computer_reads(program: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_SIZE", "9" * 6000)
    finished = program(*JOB)
    assert finished.code == 2 and finished.err.count("\n") == 1 and len(finished.err) < 300, finished


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


def test_launchers_that_tell_no_size(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """MPI is asked then; a rank alone, as left by somebody, is none."""
    monkeypatch.setenv("PMIX_RANK", "3")
    assert launched() == (1, 0, "")
    monkeypatch.setenv("PMIX_NAMESPACE", "1")
    assert launched() == (4, 3, "PMIX_RANK") and launched().size_unknown
    monkeypatch.setenv("FLUX_JOB_SIZE", "8")
    monkeypatch.setenv("FLUX_TASK_RANK", "5")
    assert launched() == (8, 5, "FLUX_JOB_SIZE")


def test_a_launcher_that_tells_no_size_in_a_shell_of_salloc(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """That shell is a step of one process, and so is what srun -n 1 starts by PMIx: none of several."""
    for variable, value in {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "PMIX_RANK": "1"}.items():
        monkeypatch.setenv(variable, value)
    for namespace, told in {
        "prterun-login-17@1": (2, 1, "PMIX_RANK"),
        "slurm.pmix.7.0": (1, 0, "SLURM_STEP_NUM_TASKS"),
    }.items():
        monkeypatch.setenv("PMIX_NAMESPACE", namespace)
        assert launched() == told
