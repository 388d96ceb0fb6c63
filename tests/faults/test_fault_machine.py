"""Faults of the machine while data is read and points are computed: a worker is killed, a disk or a server fails.

They are no point's own: none is recorded, and a value is what it would have been.
"""

from __future__ import annotations

import errno
import signal
import ssl
import sys
from collections.abc import Callable
from pathlib import Path

import fault_table
import numpy as np
import pytest
from programs import PROBLEMS, PROGRAM, Finished, Job, assert_same_landscape, each_writer, read, run_program
from torch.utils.data import DataLoader, Dataset

from hpc_landscape.data import faults
from hpc_landscape.data.faults import cause, sticks

MODULE = PROBLEMS / "machine_faults_for_tests.py"
AXES = ("--x=-1:1:12", "--y", "none", "--plot", "false", "--resident", "0", "--block", "1")
FIRST = 60  # passes of the model: 12 points are 120, and what comes before them 30 at most
OURS = "hpc_landscape: "
_undisturbed: list[bytes] = []


@pytest.fixture
def job(tmp_path: Path) -> list[str]:
    (tmp_path / "faults").mkdir()
    return ["--problem", f"{MODULE}:problem", "--problem.folder", str(tmp_path / "faults"), *AXES]


@pytest.fixture
def order(tmp_path: Path) -> Callable[..., None]:
    """Says what is to happen: where, what, how often, after how many passes; nothing any more."""

    def write(*what: object) -> None:
        for file in (tmp_path / "faults").iterdir():
            file.unlink()
        if what:
            (tmp_path / "faults" / "fault").write_text(" ".join(map(str, what)))

    return write


@pytest.fixture
def undisturbed(tmp_path: Path, job: list[str], program: Callable[..., Finished]) -> Path:
    """Computed once: no value depends on the folder that the faults are counted in."""
    path = tmp_path / "undisturbed.h5"
    if not _undisturbed:
        assert program(*job, "--problem.workers", 0, "--output", path.name).code == 0
        _undisturbed.append(path.read_bytes())
    path.write_bytes(_undisturbed[0])
    return path


@pytest.fixture
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "PAUSES", (0.05, 0.05))


def happened(tmp_path: Path) -> int:
    return len(list((tmp_path / "faults").glob("happened.*")))


def ours(finished: Finished) -> list[str]:
    return [line for line in finished.err.splitlines() if line.startswith(OURS)]


# A worker that dies


@pytest.mark.slow
@pytest.mark.parametrize(("writer", "on_error"), each_writer(["record"], ["record"]))
@pytest.mark.mpi_stack
def test_a_worker_of_one_rank_is_killed(
    tmp_path: Path, job: list[str], order: Callable[..., None], undisturbed: Path, writer: str, on_error: str
) -> None:
    order("data", "kill", 1, 45)
    finished = run_program(*job, "--on_error", on_error, "--writer", writer, folder=tmp_path, ranks=2)
    assert finished.code == 0 and happened(tmp_path) == 1, finished
    assert len(ours(finished)) == 1 and "a data-loading worker died" in ours(finished)[0], finished
    assert "Traceback" not in finished.err and not read(tmp_path / "landscape.h5", "failed").any()
    assert_same_landscape(tmp_path / "landscape.h5", undisturbed)
    then = "started anew, read on: exit 0, the same bits, nothing recorded"
    fault_table.record("SIGKILL of a data-loading worker", writer, then=then)


@pytest.mark.parametrize(("stream", "block"), [("false", 4), ("true", 1)])
def test_a_forked_worker_is_killed(
    tmp_path: Path,
    job: list[str],
    order: Callable[..., None],
    program: Callable[..., Finished],
    in_a_hurry: None,
    stream: str,
    block: int,
) -> None:
    """Told by a signal, wherever the process is. By default such an error ends a run; this is none of the run's."""
    job += ["--problem.stream", stream]
    assert program(*job, "--problem.workers", 0, "--output", "undisturbed.h5").code == 0
    order("data", "kill", 1, FIRST)
    finished = program(*job, "--problem.method", "fork", "--block", block)
    assert finished.code == 0 and happened(tmp_path) == 1, finished
    assert_same_landscape(tmp_path / "landscape.h5", tmp_path / "undisturbed.h5")


@pytest.mark.parametrize("resident", ["0", "0.5"])
def test_a_worker_is_killed_before_the_points(
    tmp_path: Path,
    job: list[str],
    order: Callable[..., None],
    program: Callable[..., Finished],
    undisturbed: Path,
    in_a_hurry: None,
    resident: str,
) -> None:
    order("data", "kill", 1, 0)
    (tmp_path / "faults" / "begun").touch()
    finished = program(*job, "--problem.method", "fork", "--resident", resident)
    assert finished.code == 0 and happened(tmp_path) == 1, finished
    assert "a data-loading worker died" in finished.out + finished.err and "cannot be sent" not in str(finished)
    assert_same_landscape(tmp_path / "landscape.h5", undisturbed)


# A disk or a server that fails


@pytest.mark.parametrize(("where", "fault"), [("data", "EIO"), ("model", "wrapped")])
def test_a_read_fails_twice(
    tmp_path: Path,
    job: list[str],
    order: Callable[..., None],
    program: Callable[..., Finished],
    undisturbed: Path,
    in_a_hurry: None,
    where: str,
    fault: str,
) -> None:
    order(where, fault, 2, FIRST)
    finished = program(*job, "--problem.workers", 0, "--on_error", "record")
    assert finished.code == 0 and happened(tmp_path) == 2, finished
    assert len(ours(finished)) == 1 and "Input/output error" in ours(finished)[0], finished
    assert_same_landscape(tmp_path / "landscape.h5", undisturbed)
    assert not read(tmp_path / "landscape.h5", "failed").any()
    fault_table.record("EIO twice, and then no more", then="done again: exit 0, the same bits, nothing recorded")


@pytest.mark.parametrize("where", ["data", "model"])
def test_a_read_fails_for_ever(
    tmp_path: Path,
    job: list[str],
    order: Callable[..., None],
    program: Callable[..., Finished],
    undisturbed: Path,
    in_a_hurry: None,
    where: str,
) -> None:
    order(where, "EIO", 1000, FIRST)
    job += ["--problem.workers", "0", "--on_error", "record"]
    finished = program(*job)
    assert finished.code == 1 and happened(tmp_path) == 3, finished
    assert len(ours(finished)) == 2 and "Traceback" not in finished.err, finished
    for words in ("Input/output error", "3 times in a row", "landscape.h5", "the same command goes on"):
        assert words in ours(finished)[1], finished
    done, failed = read(tmp_path / "landscape.h5", "done", "failed")
    assert 0 < done.sum() < 12 and not failed.any()
    order()
    finished = program(*job)
    assert finished.code == 0 and "still to do" in finished.out, finished
    assert_same_landscape(tmp_path / "landscape.h5", undisturbed)
    fault_table.record("EIO for ever", then="exit 1, one line, nothing recorded; resumed: the same bits")


@pytest.mark.slow
@pytest.mark.mpi_stack
def test_a_file_server_is_gone_on_all_ranks(
    tmp_path: Path, job: list[str], order: Callable[..., None], program: Callable[..., Finished], undisturbed: Path
) -> None:
    order("data", "EIO", 1000, 45)
    finished = run_program(*job, "--problem.workers", 0, folder=tmp_path, ranks=2)
    assert finished.code == 1, finished
    assert len([line for line in ours(finished) if "failed on rank" in line]) == 1, finished
    assert len(ours(finished)) == 2 and "Traceback" not in finished.err, finished
    order()
    assert program(*job, "--problem.workers", 0).code == 0
    assert_same_landscape(tmp_path / "landscape.h5", undisturbed)
    fault_table.record("EIO for ever on all ranks", then="exit 1, said once; resumed: the same bits")


def test_a_gpu_that_computes_nothing_any_more(
    tmp_path: Path, job: list[str], order: Callable[..., None], program: Callable[..., Finished], undisturbed: Path
) -> None:
    """With the words of PyTorch, on any machine: no other point is tried in this process."""
    order("model", "cuda", 1000, FIRST)
    job += ["--problem.workers", "0", "--on_error", "record"]
    finished = program(*job)
    assert finished.code == 1 and happened(tmp_path) == 1, finished
    assert len(ours(finished)) == 1 and "illegal memory access" in finished.err, finished
    assert "Traceback" not in finished.err and not read(tmp_path / "landscape.h5", "failed").any()
    order()
    assert program(*job).code == 0
    assert_same_landscape(tmp_path / "landscape.h5", undisturbed)
    fault_table.record("a GPU's memory fault (PyTorch's words)", then="exit 1, one line; resumed: the same bits")


@pytest.mark.slow
def test_a_stop_does_not_wait_for_the_next_try(
    tmp_path: Path, job: list[str], order: Callable[..., None], program: Callable[..., Finished], undisturbed: Path
) -> None:
    order("data", "EIO", 1000, FIRST)
    code = "from hpc_landscape.data import faults; faults.PAUSES = (60.0, 60.0); import sys; "
    code += "from hpc_landscape.cli import main; sys.exit(main())"
    with Job([sys.executable, "-c", code, *job, "--problem.workers", "0"], None, tmp_path) as running:
        running.until(lambda: happened(tmp_path))
        running.process.send_signal(signal.SIGTERM)
        finished = running.wait(50)
    assert finished.code == 75 and "the same command goes on" in finished.out, finished
    order()
    assert program(*job, "--problem.workers", 0).code == 0
    assert_same_landscape(tmp_path / "landscape.h5", undisturbed)


# The data's fault, and a point's own


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_set_that_raises_is_no_fault_of_a_point(
    tmp_path: Path, job: list[str], order: Callable[..., None], program: Callable[..., Finished], workers: int
) -> None:
    order("data", "value", 1000, FIRST)
    options = ["--problem.workers", workers, "--problem.method", "fork", "--on_error", "record"]
    finished = program(*job, *options)
    assert finished.code == 1 and 1 <= happened(tmp_path) <= 2, finished  # a worker reads ahead
    assert "reading the problem's data raised ValueError" in finished.err and "own fault" in finished.err
    assert len(ours(finished)) == 1, finished
    done, failed = read(tmp_path / "landscape.h5", "done", "failed")
    assert 0 < done.sum() < 12 and not failed.any()
    fault_table.record("the data set raises", then="exit 1, said once, nothing recorded")


def _recorded(
    tmp_path: Path, job: list[str], order: Callable[..., None], program: Callable[..., Finished]
) -> np.ndarray:
    """Three points at which something was raised, and which no run computes again by itself."""
    order("model", "value", 3, FIRST)
    finished = program(*job, "--on_error", "record")
    assert finished.code == 0 and "3 points have raised an error" in finished.out, finished
    assert "--retry_failed computes them again" in finished.out
    order()
    again = program(*job)
    assert again.code == 0 and "3 points have raised an error and are NaN: --retry_failed" in again.out, again
    assert "--retry_failed computes them again" in program("info", "landscape.h5").out
    failed = read(tmp_path / "landscape.h5", "failed")
    assert failed.sum() == 3
    return failed == 1


@pytest.mark.slow
@pytest.mark.parametrize(("writer", "ranks"), each_writer([1], [2]))
@pytest.mark.mpi_stack
def test_what_has_failed_is_computed_again(
    tmp_path: Path,
    job: list[str],
    order: Callable[..., None],
    program: Callable[..., Finished],
    undisturbed: Path,
    writer: str,
    ranks: int,
) -> None:
    job += ["--problem.workers", "0"]
    failed = _recorded(tmp_path, job, order, program)
    times = read(tmp_path / "landscape.h5", "wall_time")
    retry = [*job, "--retry_failed", "--writer", writer]
    finished = program(*retry) if ranks == 1 else run_program(*retry, folder=tmp_path, ranks=ranks)
    assert finished.code == 0 and "3 still to do" in finished.out, finished
    assert_same_landscape(tmp_path / "landscape.h5", undisturbed)
    assert not read(tmp_path / "landscape.h5", "failed").any()
    assert (read(tmp_path / "landscape.h5", "wall_time") == times)[~failed].all()
    assert "is complete; --overwrite" in program(*retry).out
    fault_table.record("a recorded failure and --retry_failed", writer, tries=3, then="exit 0: the same bits")


def test_what_fails_again_stays_recorded(
    tmp_path: Path, job: list[str], order: Callable[..., None], program: Callable[..., Finished]
) -> None:
    job += ["--problem.workers", "0"]
    failed = _recorded(tmp_path, job, order, program)
    order("model", "value", 1000, FIRST)  # the point that is compared first is over then
    finished = program(*job, "--retry_failed", "--on_error", "record")
    assert finished.code == 0 and happened(tmp_path) > 0, finished
    still, done, loss = read(tmp_path / "landscape.h5", "failed", "done", "loss")
    assert done.all() and 0 < still.sum() <= 3 and failed[still == 1].all()
    assert (np.isnan(loss) == (still == 1)).all()


@pytest.mark.slow
def test_a_kill_while_failures_are_computed_again(
    tmp_path: Path, job: list[str], order: Callable[..., None], program: Callable[..., Finished], undisturbed: Path
) -> None:
    """What is not finished stays as it was recorded; what is, is good."""
    job += ["--problem.workers", "0"]
    _recorded(tmp_path, job, order, program)
    order("model", "slow", 1000, 45)
    path = tmp_path / "landscape.h5"
    with Job([*PROGRAM, *job, "--retry_failed"], None, tmp_path) as running:
        running.until(lambda: read(path, "failed").sum() < 3)
        running.process.send_signal(signal.SIGKILL)
        running.process.wait()
    order()
    done, failed, loss = read(path, "done", "failed", "loss")
    assert done.all() and 0 < failed.sum() < 3
    assert (loss == read(undisturbed, "loss"))[failed == 0].all()
    assert program(*job, "--retry_failed").code == 0
    assert_same_landscape(path, undisturbed)
    fault_table.record("SIGKILL during --retry_failed", finished=1, then="resumed: the same bits")


# What is whose


class Raises(Dataset):
    """Raises what it is given, in a worker."""

    def __init__(self, error: Exception):
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, i: int) -> int:
        raise self.error


def _in_worker(error: Exception) -> Exception:
    """As it comes out of a loader."""
    try:
        list(DataLoader(Raises(error), num_workers=1, multiprocessing_context="fork"))
    except Exception as raised:
        return raised
    raise AssertionError("nothing was raised")


MACHINE = {
    "killed": RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "),
    "exited": RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"),
    "late": RuntimeError("DataLoader timed out after 5 seconds"),
    "shared memory": RuntimeError("unable to open shared memory object </torch_1_2> in read-write mode: (24)"),
    "descriptors": RuntimeError("received 0 items of ancdata"),
    "stale": OSError(errno.ESTALE, "Stale file handle"),
    "hdf5": OSError("Can't synchronously read data (file read failed: errno = 5, error message = 'Input/output error'"),
    "pipe": BrokenPipeError(),
    "reset": ConnectionResetError("by peer"),
    "full": OSError(errno.ENOSPC, "No space left on device"),
    "threads": RuntimeError("can't start new thread"),
    "ssl": ssl.SSLEOFError(8, "EOF occurred in violation of protocol"),
}
OWN = {
    "value": ValueError("errno = 5 is my lucky number"),
    "missing": FileNotFoundError(errno.ENOENT, "No such file or directory"),
    "words": OSError("the server has gone away"),
    "time": TimeoutError("it does not converge"),
    "end": EOFError("Ran out of input"),
    "memory": MemoryError(),
    "index": IndexError("index 17 is out of range"),
}


@pytest.mark.parametrize("name", MACHINE)
def test_faults_of_the_machine(name: str) -> None:
    assert cause(MACHINE[name]) is not None
    try:
        raise ValueError("the user's words for it") from MACHINE[name]
    except ValueError as error:
        assert cause(error) is not None


@pytest.mark.parametrize("name", OWN)
def test_faults_that_are_not_the_machines(name: str) -> None:
    assert cause(OWN[name]) is None
    assert not sticks(OWN[name])


@pytest.mark.parametrize("name", ["stale", "hdf5", "reset", "full", "threads", "ssl"])
def test_faults_of_the_machine_that_a_worker_raises(name: str) -> None:
    assert cause(_in_worker(MACHINE[name])) is not None


@pytest.mark.parametrize("name", ["value", "missing", "index"])
def test_faults_that_a_worker_raises_and_are_not_the_machines(name: str) -> None:
    assert cause(_in_worker(OWN[name]), reading=True) is None


def test_a_data_set_that_cannot_be_sent_is_told_so(program: Callable[..., Finished], tmp_path: Path) -> None:
    (tmp_path / "closed_problem_for_tests.py").write_text(
        "import torch\nfrom torch.utils.data import DataLoader\nfrom hpc_landscape import Problem\n"
        "class Rows(torch.utils.data.Dataset):\n    def __init__(self): self.f = lambda: 1\n"
        "    def __len__(self): return 8\n    def __getitem__(self, i): return torch.ones(2), torch.tensor(0)\n"
        "def problem():\n    data = DataLoader(Rows(), 4, num_workers=1)\n"
        "    return Problem(torch.nn.Linear(2, 2), torch.nn.CrossEntropyLoss(), data)\n"
    )
    finished = program("--problem", f"{tmp_path / 'closed_problem_for_tests.py'}:problem", *AXES)
    assert finished.code == 2 and "cannot be sent to data-loading workers" in finished.err, finished
