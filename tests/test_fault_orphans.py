"""Nobody is left behind: when a run is killed, all that it has started ends, and nothing stays in /dev/shm."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import fault_table
import pytest
from programs import PROBLEMS, PROGRAM, Job, environment

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")]

FAMILY = f"{PROBLEMS / 'family_problem_for_tests.py'}:family"
JOB = ("--problem", FAMILY, "--x=-1:1:100", "--y=-1:1:100", "--plot=false", "--resident=0", "--problem.folder")
END = 10.0  # seconds


def _numbers(folder: Path, name: str) -> list[int]:
    return [int(path.name.rpartition(".")[2]) for path in folder.glob(f"{name}.*")]


def _shm(pids: set[int]) -> list[str]:
    """What of these processes is in /dev/shm: ``torch_PID_...`` and ours."""
    return [
        name
        for name in os.listdir("/dev/shm")
        if any(name.startswith((f"torch_{pid}_", f"hpc_landscape-{pid}-")) for pid in pids)
    ]


def _table() -> dict[int, tuple[int, bool]]:
    """Each process's parent, and whether it lives."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            found[int(path.parent.name)] = int(fields[1]), fields[0] != "Z"
    return found


def _family(pid: int) -> set[int]:
    """A process and all that it, and they, have started: MPICH's ranks have sessions of their own."""
    found, table = {pid}, _table()
    while new := {child for child, (parent, _) in table.items() if parent in found} - found:
        found |= new
    return found


def _all_end(family: set[int], limit: float) -> float:
    """How long it takes until all of these have ended, and left nothing."""
    start = time.monotonic()
    while left := [pid for pid, (_, lives) in _table().items() if pid in family and lives]:
        assert time.monotonic() < start + limit, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]
        time.sleep(0.05)
    assert _shm(family) == []
    return time.monotonic() - start


def test_sigkill_without_mpi(tmp_path: Path) -> None:
    """By each method of multiprocessing: workers that hang, processes that a thread has started, and their children."""
    folder = tmp_path / "numbers"
    folder.mkdir()
    with Job([*PROGRAM, *JOB, folder], None, tmp_path) as job:
        for method in ("fork", "forkserver", "spawn"):
            job.until(lambda m=method: _numbers(folder, m))
        job.until(lambda: len(_numbers(folder, "child of by a thread *")) == 2)
        job.until((tmp_path / "landscape.h5").exists)
        family = _family(job.process.pid)
        others = {*_numbers(folder, "by a thread *"), *_numbers(folder, "child of by a thread *")}
        assert len(others) == 4 and others <= family  # the thread that has started them has ended long ago
        (folder / "hang").touch()
        os.kill(next(pid for pid in _numbers(folder, "spawn") if pid in family - {job.process.pid}), signal.SIGSTOP)
        job.process.kill()
        seconds = _all_end(family, END)
    fault = "SIGKILL of a run with data-loading workers, without MPI"
    then = "its processes, theirs, a hung and a stopped worker end too; nothing in /dev/shm"
    fault_table.record(fault, seconds=seconds, then=then)


def test_sockets_of_workers(tmp_path: Path) -> None:
    """They lie in /tmp; the fork server takes them away. (MPICH's mpirun kills that as well.)"""
    folder = tmp_path / "numbers"
    folder.mkdir()
    more = ("--problem.methods=forkserver", "--problem.others=false")
    with TemporaryDirectory(dir="/tmp") as temporary:  # short: the names of sockets end at 107 characters
        with Job([*PROGRAM, *JOB, folder, *more], None, tmp_path, environment(TMPDIR=temporary)) as job:
            job.until((tmp_path / "landscape.h5").exists)
            family = _family(job.process.pid)
            assert len(list(Path(temporary).glob("pymp-*"))) == 1
            job.process.kill()
            _all_end(family, END)
        assert list(Path(temporary).glob("pymp-*")) == []


@pytest.mark.parametrize("whom", ["one rank", "mpirun"])
def test_sigkill_with_mpi(tmp_path: Path, whom: str) -> None:
    folder = tmp_path / "numbers"
    folder.mkdir()
    more = ("--problem.methods=forkserver", "--problem.others=false")
    with Job([*PROGRAM, *JOB, folder, *more], 2, tmp_path) as job:
        job.until((tmp_path / "landscape.h5").exists)
        job.until(lambda: len(set(_numbers(folder, "forkserver")) & _family(job.process.pid)) >= 2)
        family = _family(job.process.pid)
        (folder / "hang").touch()
        if whom == "mpirun":
            job.process.kill()
        else:
            os.kill(_numbers(folder, "a rank")[0], signal.SIGKILL)
        seconds = _all_end(family - {job.process.pid}, 3 * END)
    fault = f"SIGKILL of {whom} of a run with data-loading workers"
    fault_table.record(fault, seconds=seconds, then="hung workers end too; nothing in /dev/shm")
