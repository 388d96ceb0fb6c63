"""A writer that is slower than the ranks, and one that not every rank can reach."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import fault_table
import pytest
from programs import PARALLEL, PROBLEMS, TINY, Finished, Job, assert_same_landscape, parallel_h5py

pytestmark = [pytest.mark.slow, pytest.mark.mpi_stack]

JOB = ("--problem", TINY, "--x=-1:1:6", "--y=-1:1:5", "--plot", "false")
ELSEWHERE = """
import os, sys
from hpc_landscape.ranks.comm import launched
folder = f"rank{launched()[1]}"
os.makedirs(folder, exist_ok=True)
os.chdir(folder)
from hpc_landscape.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize("writer", ["gather", pytest.param("auto", marks=PARALLEL)])
def test_only_rank_0_sees_the_file(tmp_path: Path, program: Callable[..., Finished], writer: str) -> None:
    """The other one is in a folder of its own, as on a node whose disk is its own."""
    with Job([sys.executable, "-c", ELSEWHERE, *JOB, "--writer", writer], 2, tmp_path) as job:
        finished = job.wait()
    assert finished.code == 0 and finished.err == "", finished
    fallen_back = "not every rank sees the file: rank 0 writes instead (--writer gather)"
    assert (fallen_back in finished.out) == (writer == "auto" and parallel_h5py())
    assert list((tmp_path / "rank1").iterdir()) == []
    assert program(*JOB).code == 0
    assert_same_landscape(tmp_path / "rank0" / "landscape.h5", tmp_path / "landscape.h5")
    fault_table.record("only rank 0 sees the file", writer, then="rank 0 writes, exit 0: the same bits")


def test_values_that_memory_cannot_take(tmp_path: Path, program: Callable[..., Finished]) -> None:
    """Counted before anything is computed, with their copies on the way to the file."""
    wide = f"{PROBLEMS / 'wide_problem_for_tests.py'}:wide"
    finished = program("--problem", wide, "--problem.numbers", 10**12, "--metrics", "wide", "--x=-1:1:1", "--y=none")
    assert finished.code == 2 and finished.err.count("\n") == 1, finished
    assert "a point's values take 7.3 TiB (wide 7.3 TiB)" in finished.err, finished
    assert list(tmp_path.iterdir()) == []
