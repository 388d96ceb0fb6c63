"""Work stealing between real ranks: to be run inside MPI, ``mpirun -n N python -m pytest tests/mpi``."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc_landscape.campaign.teams import shared, team_of
from hpc_landscape.campaign.writing import writing
from hpc_landscape.grid import Axis, Grid
from hpc_landscape.ranks.control import Control
from hpc_landscape.store import layout
from hpc_landscape.store.gather import GatherStore

pytestmark = pytest.mark.mpi_stack

BLOCK, WAIT = 100, 0.02


@pytest.mark.parametrize("stop", [0.05, 0.3, None])
def test_long_tails_and_a_stop(comm: Any, folder: str, stop: float | None) -> None:
    """The last rank is slow. Hundreds of kilobytes of points are on their way: a stop then keeps nobody from ending."""
    grid, path = Grid(Axis(-1, 1, 600), Axis(-1, 1, 600)), str(Path(folder) / "landscape.h5")
    if comm.is_root:
        layout.create(path, grid, [layout.Quantity("loss")], {})
    comm.barrier()
    control, taken = Control(comm), [np.empty(0, int)]
    writer = GatherStore(path, comm, control=control)
    schedule = shared(np.arange(grid.size), team_of(comm, comm.size), writer, BLOCK)
    slow = comm.rank == comm.size - 1 > 0
    timer = threading.Timer(stop or 0, lambda: setattr(control.signals, "code", 75))
    if comm.rank == comm.size // 2 and stop is not None:
        timer.start()
    with writing(writer):
        while not control.stops and len(points := schedule.next(BLOCK)):
            taken.append(points)
            time.sleep(WAIT * slow)
    timer.cancel()
    all_taken = np.concatenate(comm.allgather(np.concatenate(taken)))
    assert len(np.unique(all_taken)) == len(all_taken)  # none twice
    if stop is None:
        assert len(all_taken) == grid.size
        own = grid.size / comm.size  # of which others have taken over
        assert comm.size == 1 or comm.allgather(sum(map(len, taken)))[-1] < 0.9 * own
    else:
        assert control.stop_code == 75 or len(all_taken) == grid.size
