"""Nodes of unequal size, or of unequal means; and an MPI that takes no calls from two threads at once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import fault_table
import pytest
from programs import PROBLEMS, ROOT, TINY, WRITERS, Finished, Job, assert_same_landscape, listing, parallel_h5py

pytestmark = [pytest.mark.slow, pytest.mark.mpi_stack]

UNEVEN = (sys.executable, str(ROOT / "tests" / "uneven.py"))
CACHED = ("--problem", f"{PROBLEMS / 'small_problem_for_tests.py'}:cached", "--resident", "0.001")
GRID = ("--x=-1:1:3", "--y=-1:1:3", "--plot=false")
SAME = "runs on to its end, exit 0: the same bits"
BOTH = "parallel" if parallel_h5py() else "gather"


@pytest.mark.parametrize(("nodes", "writer"), [("2+1", BOTH), ("1+2 shm:1", "gather")])
def test_a_data_loader_on_uneven_nodes(
    tmp_path: Path, program: Callable[..., Finished], nodes: str, writer: str
) -> None:
    """Kept in memory by all ranks; also where one node has no room in the memory that its ranks share."""
    alone = program(*CACHED, *GRID, "--output", "alone.h5")
    assert alone.code == 0 and "streamed" not in alone.out, alone
    command = [*UNEVEN, *nodes.split(), *CACHED, *GRID, "--writer", writer]
    with Job(command, 3, tmp_path) as job:
        finished = job.wait(60)
    assert finished.code == 0 and "streamed" not in finished.out, finished
    assert_same_landscape(tmp_path / "landscape.h5", tmp_path / "alone.h5")
    fault_table.record("a data loader on nodes of unequal size, one with /dev/shm full", writer, then=SAME)


THREADS = """
import sys, mpi4py
mpi4py.rc.thread_level = sys.argv.pop(1)
from mpi4py import MPI
from hpc_landscape.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize("writer", WRITERS)
def test_an_mpi_that_takes_one_call_at_a_time(tmp_path: Path, program: Callable[..., Finished], writer: str) -> None:
    job = ["--problem", TINY, *GRID]
    assert program(*job, "--output", "alone.h5").code == 0
    with Job([sys.executable, "-c", THREADS, "serialized", *job, "--writer", writer], 2, tmp_path) as started:
        finished = started.wait(60)
    assert finished.code == 0, finished
    assert_same_landscape(tmp_path / "landscape.h5", tmp_path / "alone.h5")
    fault_table.record("MPI takes one call at a time (MPI_THREAD_SERIALIZED)", writer, then=SAME)


def test_an_mpi_that_only_the_main_thread_may_call(tmp_path: Path) -> None:
    with Job([sys.executable, "-c", THREADS, "funneled", "--problem", TINY, *GRID], 2, tmp_path) as started:
        finished = started.wait(60)
    assert finished.code == 2 and not listing(tmp_path), finished
    ours = [line for line in finished.err.splitlines() if line.startswith("hpc_landscape: ")]
    assert len(ours) == 1 and "MPI_THREAD_FUNNELED" in ours[0] and "mpi4py.rc.thread_level" in ours[0], finished
    fault_table.record("MPI may be called by its main thread alone (MPI_THREAD_FUNNELED)", then="exit 2, one line")
