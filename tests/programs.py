"""Runs the program as a program: a subprocess, alone or under mpirun, with a time limit and a cleaned environment."""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
PROBLEMS = Path(__file__).resolve().parent / "problems_for_tests"
TINY = f"{PROBLEMS / 'tiny_problem_for_tests.py'}:tiny"
PROGRAM = (sys.executable, "-m", "hpc_landscape")
LIMIT = 120.0  # seconds: for what takes a few on a quiet machine
# What a launcher leaves in the environment: with it, a process of ours would believe that it is one of several ranks.
LAUNCHER_PREFIXES = ("OMPI_", "PMI", "PRTE_", "HYDI_", "HYDRA_", "MPI_", "MPIR_", "SLURM_", "PALS_", "MV2_", "JSM_")
LAUNCHER_PREFIXES += ("FLUX_", "ALPS_")
# Open MPI refuses root, and more ranks than cores, unless told; MPICH needs nothing. First 4.x, then 5.x.
ALLOWED = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


def launcher_variables() -> list[str]:
    """What this process's own launcher has set."""
    return [name for name in os.environ if name.startswith(LAUNCHER_PREFIXES)]


def environment(**changes: str | None) -> dict[str, str]:
    """The environment of a process that no launcher has started; changes: None takes a variable out."""
    wanted = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_PREFIXES)}
    path = [str(ROOT), *filter(None, [wanted.get("PYTHONPATH")])]
    wanted |= ALLOWED | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    wanted |= {name: value for name, value in changes.items() if value is not None}
    return {name: value for name, value in wanted.items() if changes.get(name, "") is not None}


@functools.cache
def mpirun() -> str:
    """The mpirun of this Python's MPI: the one beside the interpreter, else on PATH; skips the test without one."""
    beside = Path(sys.executable).parent / "mpirun"
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        pytest.skip("no mpirun beside this Python, nor on PATH")
    vendor = _said([sys.executable, "-c", "from mpi4py import MPI; print(MPI.get_vendor()[0])"]).strip()
    if not vendor:
        pytest.skip("mpi4py cannot be used")
    named = {"MPICH": "HYDRA", "Open MPI": "Open MPI"}.get(vendor)
    if named is not None and named not in (said := _said([found, "--version"])):
        pytest.skip(f"mpi4py is bound to {vendor}, but {found} is {said.strip().splitlines()[:1]}")
    return found


def _said(command: Sequence[str]) -> str:
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=LIMIT).stdout


def parallel_h5py() -> bool:
    """Whether this h5py is built with MPI."""
    return bool(h5py.get_config().mpi)


# Where there is the parallel writer, what is tested with both is a twin: CI's other environment has tested it.
TWIN = [pytest.mark.twin] if parallel_h5py() else []
PARALLEL = pytest.mark.skipif(not parallel_h5py(), reason="this h5py is built without MPI")
WRITERS = [pytest.param("gather", marks=TWIN), pytest.param("parallel", marks=PARALLEL)]


def each_writer(cases: Sequence[Any], with_parallel: Sequence[Any]) -> list[Any]:
    """(writer, case) for parametrize: every case with the gathering writer, some with the parallel one as well."""
    twins = {case: TWIN for case in with_parallel}
    gather = [pytest.param("gather", case, marks=twins.get(case, []), id=f"gather-{case}") for case in cases]
    return gather + [pytest.param("parallel", case, marks=PARALLEL, id=f"parallel-{case}") for case in with_parallel]


@dataclass
class Line:
    """What the tiny problem has logged: kind, rank, process, when, and of a point a digest of its parameters."""

    kind: str
    rank: int
    pid: int
    time: float
    what: str


def log_lines(path: Any, kind: str = "") -> list[Line]:
    """The tiny problem's log, in the order in which it was written; only lines of one kind when asked."""
    if not Path(path).exists():
        return []
    split = (line.split() for line in Path(path).read_text().splitlines())
    lines = [Line(kind, int(rank), int(pid), float(when), what) for kind, rank, pid, when, what in split]
    return [line for line in lines if kind in ("", line.kind)]


@dataclass
class Finished:
    """How a program ended."""

    code: int
    out: str
    err: str
    seconds: float

    def __str__(self) -> str:
        return f"exit code {self.code} after {self.seconds:.1f} s\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


class Job:
    """A program started in a session of its own: ``with Job(...) as job``; at the end nothing of it is left running."""

    def __init__(
        self, command: Sequence[str], ranks: int | None, folder: Any, env: Mapping[str, str] | None = None, **popen: Any
    ):
        launcher = [] if ranks is None else [mpirun(), "-n", str(ranks)]
        self._streams = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115 (files: a pipe may fill)
        self.start = time.monotonic()
        self.process = subprocess.Popen(
            [*launcher, *map(str, command)],
            cwd=folder,
            env=dict(env or environment()),
            stdin=subprocess.DEVNULL,
            stdout=self._streams[0],
            stderr=self._streams[1],
            start_new_session=True,
            **popen,
        )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: Any) -> None:
        self.kill()
        for stream in self._streams:
            stream.close()

    def wait(self, limit: float = LIMIT) -> Finished:
        """How it ended; fails the test when it does not within the limit, in seconds."""
        try:
            self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"did not end within {limit:g} s: {self.finished()}")
        return self.finished()

    def finished(self) -> Finished:
        """How it ended; without the lines that tell once a minute how far a run is: a slow machine's may be long."""
        texts = []
        for stream in self._streams:
            stream.seek(0)
            texts.append(re.sub(r"(?m)^\d+/\d+ points, .* left\n", "", stream.read()))
        return Finished(self.process.returncode, *texts, time.monotonic() - self.start)

    def until(self, condition: Callable[[], Any], limit: float = LIMIT) -> Any:
        """Wait until the condition gives something true, and return that; the program must be running all the time."""
        end = time.monotonic() + limit
        while not (seen := condition()):
            if self.process.poll() is not None:
                if seen := condition():
                    break
                pytest.fail(f"ended too early: {self.finished()}")
            if time.monotonic() > end:
                self.kill()
                pytest.fail(f"waited {limit:g} s in vain: {self.finished()}")
            time.sleep(0.01)
        return seen

    def kill(self) -> None:
        """SIGKILL all that it has started, the launcher first; by session: a rank may have its own process group."""
        if self.process.poll() is None:
            self.process.kill()
        while found := living(self.process.pid):
            for pid in found:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.005)
        self.process.wait()


def stat(pid: Any) -> list[str]:
    """What Linux tells of a process, after its name: state, parent, ...; OSError where it has ended."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def living(leader: int) -> list[int]:
    """The living processes of a session, as Linux tells; elsewhere only the process group is killed."""
    if not Path("/proc/self/stat").exists():
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)
        return []
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = stat(entry.name)
        except OSError:  # it has just ended
            continue
        state, session, threads = fields[0], int(fields[3]), int(fields[17])
        if session == leader and (state != "Z" or threads > 1):  # the first thread may be the first to die
            found.append(int(entry.name))
    return found


def run_program(
    *arguments: Any,
    folder: Any,
    ranks: int | None = None,
    limit: float = LIMIT,
    env: Mapping[str, str] | None = None,
    **popen: Any,
) -> Finished:
    """``[mpirun -n RANKS] python -m hpc_landscape ARGUMENTS`` in that folder, to its end."""
    with Job([*PROGRAM, *arguments], ranks, folder, env, **popen) as job:
        return job.wait(limit)


def slow_disk(folder: Path, rate: float, when: Path | None = None) -> dict[str, str]:
    """The environment of a process whose disk takes so many bytes a second; skips the test without a C compiler.

    when: a file that has to exist for it.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    library, source = folder / "slow_disk.so", Path(__file__).with_name("slow_disk.c")
    if not library.exists():
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True, timeout=LIMIT)
    return environment(LD_PRELOAD=str(library), SLOW_DISK=str(rate), SLOW_DISK_WHEN=when and str(when))


def read(path: Any, *names: str) -> Any:
    """Datasets of a landscape file, which may be in use: one array, or a list of them."""
    with h5py.File(path, "r", locking=False) as file:
        arrays = [file[name][()] for name in names]
    return arrays[0] if len(names) == 1 else arrays


def assert_same_landscape(path: Any, reference: Any, names: Sequence[str] = ("loss", "accuracy")) -> None:
    """The file is complete, and its values are the reference's to the bit."""
    assert read(path, "done").all()
    for name in names:
        mine, theirs = read(path, name), read(reference, name)
        assert np.isfinite(mine).all()
        assert mine.tobytes() == theirs.tobytes(), f"{name} differs at {np.argwhere(mine != theirs).tolist()[:5]}"


def listing(folder: Any) -> dict[str, bytes | None]:
    """Everything in a folder: relative path -> bytes, None for a folder."""
    paths = Path(folder).rglob("*")
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(paths)}
