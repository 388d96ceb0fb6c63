"""Streams that each rank reads for itself: to be run inside MPI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from programs import PROBLEMS, read

from hpc_landscape import UserError
from hpc_landscape.arguments import parse
from hpc_landscape.data import streams
from hpc_landscape.run import run

pytestmark = pytest.mark.mpi_stack

JOB = ("--problem", f"{PROBLEMS / 'stream_problem_for_tests.py'}:drifting", "--y=none", "--plot=false")
BY_RANK = ("--problem.by_rank", "true", "--schedule=strided", "--ranks_per_point=1")


def test_ranks_whose_passes_read_other_data(comm: Any, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond what rank 0 has seen before the first point: it is told in the end."""
    if comm.size == 1:
        pytest.skip("nobody to differ from")
    monkeypatch.setattr(streams, "PROBE", 0.0)
    path = Path(folder) / "landscape.h5"
    words = ["--output", str(path), f"--x=0:1:{comm.size}", *BY_RANK]
    with pytest.raises(UserError, match=f"the ranks have read different data: .*The values in {path}"):
        run(parse([*JOB, *words], "test")[0], comm)
    assert not comm.is_root or np.isfinite(read(path, "loss")).all()
