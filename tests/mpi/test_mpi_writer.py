"""The writers: to be run inside MPI, ``mpirun -n N python -m pytest tests/mpi``."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hpc_landscape.campaign.writing import fall_back, writing
from hpc_landscape.errors import UserError
from hpc_landscape.grid import Axis, Grid
from hpc_landscape.schedule.strided import strided
from hpc_landscape.store import layout, parallel, writer
from hpc_landscape.store.gather import GatherStore
from hpc_landscape.store.layout import Quantity
from hpc_landscape.store.parallel import ParallelStore
from hpc_landscape.store.raw import RawFile
from hpc_landscape.store.store import choose_writer

pytestmark = pytest.mark.mpi_stack

NO_PARALLEL = pytest.mark.skipif(not parallel.available(), reason="this h5py is built without MPI")
WRITERS = [GatherStore, pytest.param(ParallelStore, marks=NO_PARALLEL)]
QUANTITIES = [Quantity("loss"), Quantity("spectrum", (3,), ("index",))]
SHAPES = [(1,), (2, 1), (3, 5), (2, 3, 4)]


@pytest.fixture
def new(comm: Any, folder: str) -> Any:
    """Makes a new, laid-out file; gives its path and grid."""

    def make(shape: tuple[int, ...]) -> tuple[str, Grid]:
        grid = Grid(*(Axis(-1, 1, n) if n > 1 else Axis(0, 0, 1) for n in shape))
        path = str(Path(folder) / "landscape.h5")
        if comm.is_root:
            layout.create(path, grid, QUANTITIES, {})
        comm.barrier()
        return path, grid

    return make


def _values(point: int) -> dict[str, np.ndarray]:
    return {"loss": np.float64(point + 0.1), "spectrum": np.array([point, -point, np.nan])}


def _check(path: str, points: np.ndarray) -> None:
    """Those points are in the file, and no others."""
    with h5py.File(path, "r", locking=False) as file:
        done = file["done"][()].reshape(-1)
        assert np.flatnonzero(done).tolist() == sorted(points.tolist())
        loss, wall_time = file["loss"][()].reshape(-1), file["wall_time"][()].reshape(-1)
        spectrum = file["spectrum"][()].reshape(-1, 3)
    for point in range(len(done)):
        if done[point]:
            assert loss[point] == point + 0.1 and wall_time[point] == point / 8
            np.testing.assert_array_equal(spectrum[point], [point, -point, np.nan])
        else:
            assert np.isnan(loss[point]) and np.isnan(wall_time[point]) and np.isnan(spectrum[point]).all()


def _skip_serial(kind: Any, comm: Any) -> None:
    if kind is ParallelStore and comm.mpi is None:
        pytest.skip("needs MPI")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", WRITERS)
def test_round_trip(comm: Any, new: Any, kind: Any, shape: tuple[int, ...]) -> None:
    """Also with fewer points than ranks: no rank waits for one that has nothing to write."""
    _skip_serial(kind, comm)
    path, grid = new(shape)
    counted = []
    with writing(kind(path, comm, counted.append)) as store:
        for point in strided(np.arange(grid.size), comm.rank, comm.size):
            store.put(int(point), point / 8, _values(point))
    assert store.stop_code == 0
    assert sum(counted) == (grid.size if comm.is_root else 0)
    _check(path, np.arange(grid.size))


@pytest.mark.parametrize("kind", WRITERS)
def test_goes_on_with_what_is_there(comm: Any, new: Any, kind: Any) -> None:
    _skip_serial(kind, comm)
    path, grid = new((3, 5))
    rounds = [np.arange(0, 15, 4), np.zeros(0, int), np.setdiff1d(np.arange(15), np.arange(0, 15, 4))]
    for points in rounds:
        with writing(kind(path, comm)) as store:
            for point in strided(points, comm.rank, comm.size):
                store.put(int(point), point / 8, _values(point))
        if len(points) == 4:
            _check(path, points)
            assert layout.read(path).unfinished.tolist() == rounds[2].tolist()
    _check(path, np.arange(15))


@pytest.mark.parametrize("kind", WRITERS)
def test_points_reach_the_file_while_rank_0_computes(comm: Any, new: Any, kind: Any) -> None:
    """Rank 0's main thread waits until it sees the other ranks' points in the file: in vain, if they waited for it."""
    _skip_serial(kind, comm)
    path, grid = new((3, 5))
    with writing(kind(path, comm)) as store:
        points = strided(np.arange(grid.size), comm.rank, comm.size)
        if comm.is_root:
            end = time.monotonic() + 60
            while _done(path) < grid.size - len(points):
                assert time.monotonic() < end
                time.sleep(0.01)
        for point in points:
            store.put(int(point), point / 8, _values(point))
    _check(path, np.arange(grid.size))


def _done(path: str) -> int:
    with h5py.File(path, "r", locking=False) as file:
        return int(file["done"][()].sum())


@pytest.mark.parametrize("culprit", [0, 1, -1])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_stop_code_spreads_to_all(comm: Any, new: Any, kind: Any, culprit: int) -> None:
    _skip_serial(kind, comm)
    if culprit >= comm.size:
        pytest.skip("there is no such rank")
    path, _ = new((3, 5))
    with writing(kind(path, comm)) as store:
        store.put(comm.rank, comm.rank / 8, _values(comm.rank))
        if comm.rank == culprit % comm.size:
            store.control.stop_code = 75
        end = time.monotonic() + 60
        while not store.stop_code:
            assert time.monotonic() < end
            time.sleep(0.001)
    assert store.stop_code == 75
    _check(path, np.arange(comm.size))
    comm.barrier()
    assert comm.received() == []  # nothing left over for the next writer to mistake for its own
    with writing(kind(path, comm)) as store:
        time.sleep(0.1)
    assert store.stop_code == 0


@pytest.mark.parametrize("kind", WRITERS)
def test_stop_codes_of_several_ranks_at_once(comm: Any, new: Any, kind: Any) -> None:
    """All ranks agree, also where a signal comes while they end."""
    _skip_serial(kind, comm)
    path, _ = new((3, 5))
    store = kind(path, comm)
    late = threading.Timer(0.02, lambda: setattr(store.control, "stop_code", store.stop_code or 75))
    with writing(store):
        if comm.is_root:
            store.control.stop_code = 130
        late.start()
    late.join()
    assert set(comm.allgather(store.stop_code)) <= {75, 130}
    comm.barrier()
    time.sleep(0.2)
    comm.received()


@pytest.mark.parametrize("kind", WRITERS)
def test_what_fails_in_the_thread_is_raised_in_the_main_one(
    comm: Any, new: Any, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _skip_serial(kind, comm)
    if comm.size > 1:
        pytest.skip("a failing rank ends the job: see test_program_errors.py")
    path, _ = new((3, 5))

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(*((RawFile, "write") if kind is GatherStore else (parallel, "write")), full)
    with pytest.raises(UserError, match="cannot be written: No space left"), writing(kind(path, comm)) as store:
        store.put(0, 0.0, _values(0))
        end = time.monotonic() + 60
        while time.monotonic() < end:
            store.check()
            time.sleep(0.01)
    assert layout.read(path).unfinished.size == 15


@pytest.mark.parametrize("kind", WRITERS)
def test_an_error_in_the_main_thread_keeps_what_was_put(comm: Any, new: Any, kind: Any) -> None:
    _skip_serial(kind, comm)
    if comm.size > 1:
        pytest.skip("a failing rank ends the job: see test_program_errors.py")
    path, _ = new((3, 5))
    with pytest.raises(ArithmeticError), writing(kind(path, comm)) as store:
        store.put(4, 4 / 8, _values(4))
        raise ArithmeticError
    _check(path, np.array([4]))


@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_under_way_is_bounded(comm: Any, new: Any, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk slower than the ranks, and values larger than what may be under way: of each rank one point is, no more.

    So a kill costs no more, whatever had been computed before; values and flag of a point go out before the next's.
    """
    _skip_serial(kind, comm)
    path, grid = new((3, 5))
    monkeypatch.setattr(writer, "WINDOW", 8)
    where = os if kind is GatherStore else parallel
    name = "pwrite" if kind is GatherStore else "write"
    real = getattr(where, name)

    def slow(*arguments: Any) -> Any:
        time.sleep(0.01)
        return real(*arguments)

    monkeypatch.setattr(where, name, slow)
    mine = strided(np.arange(grid.size), comm.rank, comm.size)
    with writing(kind(path, comm)) as store:
        for number, point in enumerate(mine):
            store.put(int(point), point / 8, _values(point))
            with h5py.File(path, "r", locking=False) as file:
                done = file["done"][()].reshape(-1)[mine]
            assert done.sum() >= number
    _check(path, np.arange(grid.size))


def test_syncs_now_and_then(comm: Any, new: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = new((3, 5))
    synced = []
    monkeypatch.setattr(writer, "SYNC_EVERY", 0.05)
    monkeypatch.setattr(writer, "WRITE_EVERY", 0.01)
    monkeypatch.setattr(writer, "sync", synced.append)
    with writing(GatherStore(path, comm)) as store:
        if comm.is_root:
            store.put(0, 0.0, _values(0))
            end = time.monotonic() + 60
            while not synced:
                assert time.monotonic() < end
                time.sleep(0.01)
    assert bool(synced) == comm.is_root


def test_auto_takes_parallel_where_h5py_has_it_and_ranks_are_several(comm: Any) -> None:
    assert choose_writer("auto", comm) is (ParallelStore if parallel.available() and comm.size > 1 else GatherStore)
    assert choose_writer("gather", comm) is GatherStore
    if parallel.available():
        assert choose_writer("parallel", comm) is ParallelStore


@NO_PARALLEL
def test_falls_back_where_the_file_system_refuses(comm: Any, new: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _skip_serial(ParallelStore, comm)
    path, grid = new((2, 1))
    said: list[str] = []
    before = Path(path).read_bytes()
    comm.barrier()
    assert fall_back(ParallelStore, path, comm, said.append) is ParallelStore and not said
    assert fall_back(GatherStore, path, comm, said.append) is GatherStore and not said
    comm.barrier()
    assert Path(path).read_bytes() == before

    def refuse(*_: Any) -> None:
        raise OSError("Can't perform independent write when MPI_File_sync is required by ROMIO driver.")

    if comm.rank == comm.size - 1:  # one rank's refusal is enough
        monkeypatch.setattr(parallel, "write", refuse)
    assert fall_back(ParallelStore, path, comm, said.append) is GatherStore
    assert len(said) == 1 and "--writer gather" in said[0]
