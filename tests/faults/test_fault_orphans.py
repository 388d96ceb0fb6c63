"""Nobody is left behind: when a run is killed, all that it has started ends, and nothing stays in /dev/shm."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import fault_table
import pytest
from programs import PROBLEMS, PROGRAM, Job, environment, stat

pytestmark = [pytest.mark.slow, pytest.mark.mpi_stack, pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")]

FAMILY = f"{PROBLEMS / 'family_problem_for_tests.py'}:family"
JOB = ("--problem", FAMILY, "--x=-1:1:100", "--y=-1:1:100", "--plot=false", "--resident=0", "--problem.folder")
END = 10.0  # seconds


def _numbers(folder: Path, name: str) -> list[int]:
    return [int(path.name.rpartition(".")[2]) for path in folder.glob(f"{name}.*")]


def _things(family: set[int], temporary: str) -> set[Path]:
    """What these have in /dev/shm, but for MPI's own, and in the folder for temporary files."""
    found = {*Path(temporary).glob("pymp-*")}
    for pid in family:
        with suppress(OSError):
            mapped = [line.split(maxsplit=5)[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
            found |= {Path(name) for name in mapped if name.startswith(("/dev/shm/sem.mp-", "/dev/shm/torch_"))}
    return {path for path in found if path.exists()}  # what is unlinked is told as deleted


def _table() -> dict[int, tuple[int, bool]]:
    """Each process's parent, and whether it lives."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = stat(path.name)
            found[int(path.name)] = int(fields[1]), fields[0] != "Z"
    return found


def _family(pid: int) -> set[int]:
    """A process and all that it, and they, have started: MPICH's ranks have sessions of their own."""
    found, table = {pid}, _table()
    while new := {child for child, (parent, _) in table.items() if parent in found} - found:
        found |= new
    return found


def _all_end(family: set[int], limit: float, things: set[Path]) -> float:
    """How long it takes until all of these have ended, and left nothing."""
    start = time.monotonic()
    while left := [pid for pid, (_, lives) in _table().items() if pid in family and lives]:
        assert time.monotonic() < start + limit, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]
        time.sleep(0.05)
    assert [path for path in things if path.exists()] == []
    return time.monotonic() - start


@pytest.fixture
def temporary() -> Iterator[str]:
    """A folder of a short name: that of a socket ends at 107 characters."""
    with TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder


def test_sigkill_without_mpi(tmp_path: Path, temporary: str) -> None:
    """By each method of multiprocessing: workers that hang, processes that a thread has started, and their children."""
    folder = tmp_path / "numbers"
    folder.mkdir()
    with Job([*PROGRAM, *JOB, folder], None, tmp_path, environment(TMPDIR=temporary)) as job:
        for method in ("fork", "forkserver", "spawn"):
            job.until(lambda m=method: _numbers(folder, m))
        job.until(lambda: len(_numbers(folder, "child of by a thread *")) == 2)
        job.until((tmp_path / "landscape.h5").exists)
        family = _family(job.process.pid)
        others = {*_numbers(folder, "by a thread *"), *_numbers(folder, "child of by a thread *")}
        assert len(others) == 4 and others <= family  # the thread that has started them has ended long ago
        (folder / "hang").touch()
        os.kill(next(pid for pid in _numbers(folder, "spawn") if pid in family - {job.process.pid}), signal.SIGSTOP)
        things = _things(family, temporary)
        assert {path.name.partition("-")[0] for path in things} == {"sem.mp", "pymp"}
        job.process.kill()
        seconds = _all_end(family, END, things)
    fault = "SIGKILL of a run with data-loading workers, without MPI"
    then = "its processes, theirs, a hung and a stopped worker end too; nothing in /dev/shm and /tmp"
    fault_table.record(fault, seconds=seconds, then=then)


@pytest.mark.parametrize("whom", ["one rank", "mpirun"])
def test_sigkill_with_mpi(tmp_path: Path, temporary: str, whom: str) -> None:
    folder = tmp_path / "numbers"
    folder.mkdir()
    more = ("--problem.methods=forkserver", "--problem.others=false")
    with Job([*PROGRAM, *JOB, folder, *more], 2, tmp_path, environment(TMPDIR=temporary)) as job:
        job.until((tmp_path / "landscape.h5").exists)
        job.until(lambda: len(set(_numbers(folder, "forkserver")) & _family(job.process.pid)) >= 2)
        family = _family(job.process.pid)
        (folder / "hang").touch()
        things = _things(family, temporary)
        assert len([path for path in things if path.name.startswith("pymp-")]) == 2, "one of each rank"
        if whom == "mpirun":
            job.process.kill()
        else:
            os.kill(_numbers(folder, "a rank")[0], signal.SIGKILL)
        seconds = _all_end(family - {job.process.pid}, 3 * END, things)
    fault = f"SIGKILL of {whom} of a run with data-loading workers"
    fault_table.record(fault, seconds=seconds, then="hung workers end too; nothing in /dev/shm and /tmp")
