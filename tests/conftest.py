"""Makes the suite run inside MPI too: one rank prints, ranks end each test together, and no rank waits for ever.

``mpirun -n N python -m pytest tests/mpi`` runs the tests that take ``comm`` on N ranks.
"""

from __future__ import annotations

import faulthandler
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fault_table
import pytest
from programs import Finished, launcher_variables
from uneven import NODES, UnevenComm

from hpc_landscape.cli import main
from hpc_landscape.ranks.base import SerialComm
from hpc_landscape.ranks.comm import MPIComm, launched, world

TOGETHER = 20.0  # seconds that a rank waits at a test's end for the others, before it ends the job
TEST_LIMIT = 120.0  # seconds that a test on several ranks may take: beyond it they wait for each other
_worlds: dict[str, Any] = {}


def _of_several() -> bool:
    return launched()[0] > 1


def _control() -> MPIComm:
    """A communicator for this file alone: a test's own messages never meet it."""
    if "control" not in _worlds:
        _worlds["control"] = world()
    return _worlds["control"]


@pytest.hookimpl(trylast=True)  # after pytest has made its reporter
def pytest_configure(config: pytest.Config) -> None:
    if _of_several():
        _worlds["stderr"] = os.fdopen(os.dup(2), "w", buffering=1)  # the terminal's, before tests are captured
        _control()
    if launched()[1] > 0:
        config.get_terminal_writer()._file = open(os.devnull, "w")  # noqa: SIM115


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as if no launcher had started it, with one thread."""
    import torch

    for name in launcher_variables():
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads only get in each other's way in networks this small."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def program(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Finished]:
    """Runs the program's main() in this process, in tmp_path: importing torch once is enough for many runs."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: Any) -> Finished:
        capfd.readouterr()
        start = time.monotonic()
        code = main([str(word) for word in arguments])
        return Finished(code, *capfd.readouterr(), time.monotonic() - start)

    return call


@pytest.fixture(params=["mpi"] if launched()[0] > 1 else ["serial", "mpi"])
def comm(request: pytest.FixtureRequest) -> Iterator[Any]:
    """All ranks; three of them believe in nodes of 2 + 1. In a single process both kinds: without MPI, and MPI's world
    of one.
    """
    if request.param == "serial":
        yield SerialComm()
        return
    if "comm" not in _worlds:
        pytest.importorskip("mpi4py")
        ours = world(need_mpi=True)
        _worlds["comm"] = UnevenComm(ours.mpi) if ours.size == sum(NODES) else ours
    if _of_several():
        faulthandler.dump_traceback_later(TEST_LIMIT, exit=True, file=_worlds["stderr"])
    yield _worlds["comm"]
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def folder(comm: Any, tmp_path: Any) -> str:
    """Rank 0's temporary folder, on every rank."""
    return comm.bcast(str(tmp_path))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Any:
    """Each phase of a test on several ranks ends the same on all: rank 0 tells what failed on any of them."""
    report = yield
    if not _of_several() or "comm" not in getattr(item, "fixturenames", ()):
        return report
    mine = (report.nodeid, report.when, report.outcome, report.longreprtext)
    for rank, (nodeid, when, outcome, text) in enumerate(_together(mine)):
        if (nodeid, when) != mine[:2]:
            _abort(f"rank {rank} is at {when} of {nodeid}, not at {mine[1]} of {mine[0]}")
        if outcome == "failed" and report.outcome != "failed":
            report.outcome, report.longrepr = "failed", f"failed on rank {rank}:\n{text}"
    return report


def _together(mine: tuple[str, str, str, str]) -> list[tuple[str, str, str, str]]:
    """What every rank says at this point; ends the job where one does not come: it may wait for this one for ever."""
    control = _control()
    arrived = control.mpi.Ibarrier()
    end = time.monotonic() + TOGETHER
    while not arrived.Test():
        if time.monotonic() > end:
            _abort(f"the other ranks did not come to the end of {mine[1]} of {mine[0]}, {mine[2]} here\n{mine[3]}")
        time.sleep(0.001)
    return control.mpi.allgather(mine)


def _abort(text: str) -> None:
    control = _control()
    print(f"\nrank {control.rank} of {control.size}: {text}", file=_worlds["stderr"])
    control.mpi.Abort(1)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # one of pytest-xdist's processes: the one that began them writes
        session.config.workeroutput["faults"] = fault_table.rows()
    elif not _of_several():
        fault_table.write()


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_testnodedown(node: Any) -> None:
    fault_table.add(getattr(node, "workeroutput", {}).get("faults", []))


def pytest_unconfigure() -> None:
    """No rank leaves before rank 0 has told how it went: a launcher may end the others when one fails."""
    if "control" in _worlds:
        arrived = _worlds["control"].mpi.Ibarrier()
        end = time.monotonic() + TOGETHER
        while not arrived.Test() and time.monotonic() < end:
            time.sleep(0.001)
