"""The library's face on several ranks: to be run inside MPI, ``mpirun -n N python -m pytest tests/mpi``."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from programs import LIMIT, environment
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hpc_landscape import (
    GeneralModelWrapper,
    LinearLossLandscape,
    PlanarLossLandscape,
    UserError,
    eval_loss,
    eval_warm_up,
    linear_interpolation,
    planar_interpolation,
    random_line,
    random_plane,
)
from hpc_landscape.metrics import Loss, LossGradient, Metric
from hpc_landscape.ranks.comm import launched

pytestmark = pytest.mark.mpi_stack

CRITERION = nn.CrossEntropyLoss()


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3))
        model[1].running_mean.normal_()
    return model


def data(n: int = 10) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 4, generator=generator), torch.randint(3, (n,), generator=generator)


def vector(wrapper: Any) -> np.ndarray:
    """A metric: where the point is."""
    return torch.cat([p.detach().reshape(-1) for p in wrapper.parameters()]).numpy()


@pytest.fixture(params=["ours", "mpi4py's"])
def given(request: pytest.FixtureRequest, comm: Any) -> Any:
    """What a user may pass as comm: ours, or mpi4py's own communicator."""
    if request.param == "ours":
        return comm
    if comm.mpi is None:
        pytest.skip("a single process without MPI has no communicator of mpi4py's")
    return comm.mpi


def assert_same(comm: Any, found: np.ndarray, alone: np.ndarray) -> None:
    """Bitwise what one process gives, whole, on every rank."""
    assert found.shape == alone.shape and found.dtype == np.float64 and np.isfinite(found).all()
    assert set(comm.allgather(found.tobytes())) == {alone.tobytes()}
    assert len(np.unique(found)) > 1 or found.size == 1


METRICS = {"loss": Loss, "gradient": LossGradient}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("steps", [5, (2, 3)])
def test_random_plane_with_a_seed(comm: Any, metric: str, steps: Any) -> None:
    model, metric = network(), METRICS[metric](CRITERION, *data())
    alone = random_plane(model, metric, distance=2, steps=steps, seed=3)
    assert_same(comm, random_plane(model, metric, distance=2, steps=steps, seed=3, comm=comm), alone)


def test_random_plane_without_a_seed_is_one_plane(comm: Any, given: Any) -> None:
    model, metric = network(), Loss(CRITERION, *data())
    plane = PlanarLossLandscape(model, 3, comm=given).random_plane(2)
    found = plane.compute(metric)
    assert len(set(comm.allgather(plane.seed))) == 1
    alone = PlanarLossLandscape(model, 3).random_plane(2, seed=plane.seed)
    assert_same(comm, found, alone.compute(metric))
    mine = [d.numpy().tobytes() for direction in plane.directions for d in direction.values()]
    assert mine == [d.numpy().tobytes() for direction in alone.directions for d in direction.values()]


def test_warm_up_and_compute(comm: Any, given: Any) -> None:
    model, (x, y) = network(), data()
    loader, metric = DataLoader(TensorDataset(x, y), 4), Loss(CRITERION, x, y)

    def values(comm: Any) -> list[np.ndarray]:
        plane = PlanarLossLandscape(model, (4, 3), comm=comm).random_plane(2, seed=1)
        bare = plane.compute(metric)
        plane.warm_up(metric)
        warmed = plane.compute(metric)
        eval_warm_up(plane, loader, "cpu", CRITERION)
        return [bare, warmed, eval_loss(plane, loader, "cpu", CRITERION)]

    together, alone = values(given), values(None)
    for mine, theirs in zip(together, alone, strict=True):
        assert_same(comm, mine, theirs)
    assert not np.allclose(together[0], together[1]) and not np.allclose(together[1], together[2], rtol=1e-4)


def test_interpolation(comm: Any) -> None:
    a, b, c, metric = network(1), network(2), network(3), Loss(CRITERION, *data())
    alone = planar_interpolation(a, b, c, metric, steps=3)
    assert_same(comm, planar_interpolation(a, b, c, metric, steps=3, comm=comm), alone)
    alone = linear_interpolation(a, b, metric, steps=5)
    assert_same(comm, linear_interpolation(a, b, metric, steps=5, comm=comm), alone)
    seen = LinearLossLandscape(a, 2, comm=comm).interpolation(b).compute(vector)
    for end, found in zip((a, b), seen, strict=True):
        assert found.tolist() == torch.cat([p.detach().reshape(-1) for p in end.parameters()]).double().tolist()


@pytest.mark.parametrize("steps", [1, 2])
def test_fewer_points_than_ranks(comm: Any, steps: int) -> None:
    model, metric = network(), Loss(CRITERION, *data())
    alone = random_line(model, metric, distance=2, steps=steps, seed=3)
    assert_same(comm, random_line(model, metric, distance=2, steps=steps, seed=3, comm=comm), alone)
    line = LinearLossLandscape(model, steps, comm=comm).random_line(2, seed=3)
    line.warm_up(metric)
    reference = LinearLossLandscape(model, steps).random_line(2, seed=3)
    reference.warm_up(metric)
    assert_same(comm, line.compute(metric), reference.compute(metric))


def test_every_rank_computes_its_share_and_gets_all(comm: Any) -> None:
    plane = PlanarLossLandscape(network(), (4, 3), comm=comm).random_plane(seed=0)
    calls = []
    found = plane.compute(lambda wrapper: (calls.append(1), comm.rank)[1])
    assert found.shape == (4, 3) and found.reshape(-1).tolist() == [i % comm.size for i in range(12)]
    assert sum(comm.allgather(len(calls))) == 12 and abs(len(calls) - 12 / comm.size) < 1


def test_tuples_of_unlike_parts(comm: Any) -> None:
    def metric(wrapper: Any) -> tuple[float, np.ndarray]:
        return float(vector(wrapper).sum()), vector(wrapper)[:2]

    plane = PlanarLossLandscape(network(), 3, comm=comm).random_plane(seed=0)
    one, two = plane.compute(metric)
    alone = PlanarLossLandscape(network(), 3).random_plane(seed=0).compute(metric)
    assert two.shape == (3, 3, 2)
    assert_same(comm, one, alone[0])
    assert_same(comm, two, alone[1])


def test_draws_do_not_depend_on_the_rank(comm: Any) -> None:
    torch.manual_seed(comm.rank), np.random.seed(comm.rank)

    def metric(wrapper: Any) -> list[float]:
        return [torch.rand(()).item(), np.random.rand(), wrapper.train()(data()[0]).sum().item()]

    found = PlanarLossLandscape(network(), 3, comm=comm).random_plane(seed=0).compute(metric)
    alone = PlanarLossLandscape(network(), 3).random_plane(seed=0).compute(metric)
    assert_same(comm, found, alone)


# What fails on one rank


class Raises(Metric):
    def __init__(self, here: bool, error: BaseException):
        super().__init__()
        self.here, self.error = here, error

    def __call__(self, wrapper: Any) -> float:
        wrapper(data()[0])
        if self.here:
            raise self.error
        return 1.0


@pytest.mark.parametrize("what", ["compute", "warm_up"])
@pytest.mark.parametrize("culprit", [0, -1])
def test_what_one_rank_raises_all_raise(comm: Any, what: str, culprit: int) -> None:
    model, here = network(), comm.rank == culprit % comm.size
    before = [(p.data_ptr(), p.detach().clone(), p.requires_grad) for p in model.parameters()]
    plane = PlanarLossLandscape(model, 3, comm=comm).random_plane(seed=0)
    expected = ArithmeticError if here else RuntimeError
    with pytest.raises(expected, match="of the user's own" if here else rf"on rank {culprit % comm.size}.*user's own"):
        getattr(plane, what)(Raises(here, ArithmeticError("of the user's own")))
    for p, (pointer, value, flag) in zip(model.parameters(), before, strict=True):
        assert p.data_ptr() == pointer and torch.equal(p, value) and p.requires_grad == flag
    found = plane.compute(Loss(CRITERION, *data()))  # nobody is out of step, and no rank's points are warmed up
    assert_same(comm, found, PlanarLossLandscape(model, 3).random_plane(seed=0).compute(Loss(CRITERION, *data())))


def test_a_single_point_that_raises(comm: Any) -> None:
    """Whichever rank has it."""
    line = LinearLossLandscape(network(), 7, comm=comm).random_line(2, seed=0)
    bad = LinearLossLandscape(network(), 7).random_line(2, seed=0).compute(vector)[4]

    def metric(wrapper: Any) -> float:
        if vector(wrapper).astype(np.float64).tolist() == bad.tolist():
            raise ArithmeticError("at that point")
        return 0.0

    with pytest.raises(ArithmeticError if comm.rank == 4 % comm.size else RuntimeError, match="at that point"):
        line.compute(metric)


def test_a_mistake_of_all_is_one_of_all(comm: Any) -> None:
    plane = PlanarLossLandscape(network(), 3, comm=comm)
    with pytest.raises(UserError, match="say first"):
        plane.compute(Loss(CRITERION, *data()))
    with pytest.raises(UserError, match="distance"):
        plane.random_plane(-1)
    assert plane.random_plane(seed=0).compute(lambda _: 2.0).tolist() == [[2.0] * 3] * 3


def test_values_that_differ_in_shape_from_rank_to_rank(comm: Any) -> None:
    if comm.size == 1:
        pytest.skip("there is no other rank")
    line = LinearLossLandscape(network(), 4, comm=comm).random_line(seed=0)
    with pytest.raises(UserError, match="differ in shape"):
        line.compute(lambda _: np.zeros(comm.rank))


# Ranks whose models differ


def test_points_are_rank_0_s(comm: Any) -> None:
    model = network(seed=comm.rank)
    before = [p.detach().clone() for p in model.parameters()]
    root = network(seed=0)
    plane = PlanarLossLandscape(model, 3, comm=comm).random_plane(2, "filter", seed=1)
    alone = PlanarLossLandscape(root, 3).random_plane(2, "filter", seed=1)
    assert_same(comm, plane.compute(vector), alone.compute(vector))
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)), "each keeps its own"


def test_ends_are_rank_0_s(comm: Any) -> None:
    line = LinearLossLandscape(network(10 + comm.rank), 3, comm=comm).interpolation(network(20 + comm.rank))
    alone = LinearLossLandscape(network(10), 3).interpolation(network(20))
    assert_same(comm, line.compute(vector), alone.compute(vector))
    for name, d in line.directions[0].items():
        assert d.numpy().tobytes() == alone.directions[0][name].numpy().tobytes()


def test_precomputed_directions_are_rank_0_s(comm: Any) -> None:
    count = sum(p.numel() for p in network().parameters())
    mine, roots = (np.random.default_rng(rank).standard_normal(count) for rank in (comm.rank, 0))
    found = LinearLossLandscape(network(), 3, comm=comm).precomputed(mine).compute(vector)
    assert_same(comm, found, LinearLossLandscape(network(), 3).precomputed(roots).compute(vector))


def test_buffers_are_rank_0_s_as_well(comm: Any) -> None:
    """Without a warm-up values depend on running statistics; on which rank has a point they must not."""
    model, metric = network(), Loss(CRITERION, *data())
    model[1].running_mean += comm.rank
    plane = PlanarLossLandscape(model, 3, comm=comm).random_plane(2, seed=1)
    alone = PlanarLossLandscape(network(), 3).random_plane(2, seed=1)
    assert_same(comm, plane.compute(metric), alone.compute(metric))
    assert torch.equal(model[1].running_mean, network()[1].running_mean + comm.rank), "each keeps its own"


def test_parameters_that_do_not_move_are_rank_0_s_as_well(comm: Any) -> None:
    metric = Loss(CRITERION, *data())

    def wrapped(seed: int) -> GeneralModelWrapper:
        model = network()
        with torch.no_grad():
            model[0].weight.add_(seed)
        return GeneralModelWrapper(model, [model[4]], lambda model, x: model(x))

    plane = PlanarLossLandscape(wrapped(comm.rank), 3, comm=comm).random_plane(2, seed=1)
    alone = PlanarLossLandscape(wrapped(0), 3).random_plane(2, seed=1)
    assert_same(comm, plane.compute(metric), alone.compute(metric))


def test_models_that_differ_in_more_than_values(comm: Any) -> None:
    other = comm.rank == comm.size - 1 and comm.size > 1
    model = nn.Linear(3 + other, 2)
    if comm.size == 1:
        pytest.skip("there is no other rank")
    with pytest.raises(UserError, match="make the same on all"):
        LinearLossLandscape(model, 3, comm=comm).random_line(2, seed=1)
    with pytest.raises(UserError, match="make the same on all"):
        LinearLossLandscape(network(), 3 + other, comm=comm).random_line(2, seed=1)


@pytest.mark.parametrize("culprit", [0, -1])
def test_a_file_that_one_rank_cannot_read(comm: Any, tmp_path: Path, culprit: int) -> None:
    """A disk of one node alone, say."""
    path = tmp_path / f"end of {comm.rank}.pt"
    if comm.rank != culprit % comm.size:
        torch.save(network(2).state_dict(), path)
    line = LinearLossLandscape(network(), 3, comm=comm)
    with pytest.raises(UserError, match=f"end of {culprit % comm.size}.pt"):
        line.interpolation(str(path))
    torch.save(network(2).state_dict(), path)
    alone = LinearLossLandscape(network(), 3).interpolation(network(2))
    assert_same(comm, line.interpolation(str(path)).compute(vector), alone.compute(vector))


# The rest


def test_rank_0_saves(comm: Any, folder: str) -> None:
    path = str(Path(folder) / "landscape.h5")
    plane = PlanarLossLandscape(network(), 3, comm=comm).random_plane(2, seed=5)
    found = plane.compute(Loss(CRITERION, *data()))
    mine = path if comm.is_root else str(Path(folder) / f"of_rank_{comm.rank}.h5")
    plane.save(mine, loss=found)
    comm.barrier()
    assert [p.name for p in sorted(Path(folder).iterdir())] == ["landscape.h5"]
    with h5py.File(path, "r", locking=False) as file:
        assert file["loss"][()].tobytes() == found.tobytes() and file.attrs["seed"] == 5
    comm.barrier()
    again = PlanarLossLandscape(network(), 3, comm=comm).load_directions(path, distance=2)
    assert_same(comm, again.compute(Loss(CRITERION, *data())), found)


def test_a_trajectory_on_every_rank(comm: Any) -> None:
    points = [network(seed) for seed in range(2, 6)]
    plane = PlanarLossLandscape(network(), 3, comm=comm).pca(points)
    alone = PlanarLossLandscape(network(), 3).pca(points)
    for mine, theirs in zip(plane.coordinates, alone.coordinates, strict=True):
        assert mine.tolist() == theirs.tolist()
    assert_same(comm, plane.project(points), alone.project(points))
    assert_same(comm, plane.compute(Loss(CRITERION, *data())), alone.compute(Loss(CRITERION, *data())))


def test_a_copy_on_every_rank(comm: Any) -> None:
    model, metric = network(), Loss(CRITERION, *data())
    found = random_plane(model, metric, steps=3, seed=0, deepcopy_model=True, comm=comm)
    assert_same(comm, found, random_plane(model, metric, steps=3, seed=0))


def test_a_user_s_own_messages_are_not_met(comm: Any) -> None:
    """A message under way on the user's communicator arrives where the user receives it."""
    if comm.mpi is None:
        pytest.skip("a single process without MPI has no messages")
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    request = comm.mpi.isend(("mine", comm.rank), right)
    found = random_plane(network(), Loss(CRITERION, *data()), steps=3, seed=0, comm=comm.mpi)
    assert comm.mpi.recv(source=left) == ("mine", left)
    request.wait()
    assert_same(comm, found, random_plane(network(), Loss(CRITERION, *data()), steps=3, seed=0))


def test_a_thousand_landscapes_on_one_communicator() -> None:
    """An MPI library has some 2,000 communicators; a landscape must not keep any for good."""
    pytest.importorskip("mpi4py")
    if launched()[0] > 1:
        pytest.skip("a process of its own, without a launcher, is enough: the others would have no communicator left")
    code = """
        from mpi4py import MPI
        from torch import nn
        from hpc_landscape import LinearLossLandscape
        for _ in range(1100):
            LinearLossLandscape(nn.Linear(2, 2), 2, comm=MPI.COMM_WORLD)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr


def test_a_file_is_written_and_gone_on_with_by_all_ranks(comm: Any, folder: str) -> None:
    """Values are those in memory, in every mode, whoever has computed them; a file goes on on any number of ranks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(20, 4, generator=generator), torch.randint(0, 3, (20,), generator=generator)
    metric = Loss(nn.CrossEntropyLoss(), list(zip(x.split(5), y.split(5), strict=True)))
    alone = PlanarLossLandscape(model, 4).random_plane(seed=2).compute(metric, bn="batch")
    plane = PlanarLossLandscape(model, 4, comm=comm).random_plane(seed=2)
    np.testing.assert_array_equal(plane.compute(metric, bn="batch"), alone)
    path = os.path.join(folder, "x.h5")
    np.testing.assert_array_equal(plane.compute(metric, bn="batch", file=path), alone)
    if comm.is_root:
        with h5py.File(path, "r+") as file:
            file["done"][1:] = 0
            file["loss"][1:] = np.nan
    comm.barrier()
    np.testing.assert_array_equal(plane.compute(metric, bn="batch", file=path), alone)
    for options in ({"block": 2}, {"precision": "fp64"}):
        found = plane.compute(metric, "cpu", bn="warmup", **options)
        np.testing.assert_allclose(found, plane.compute(metric, bn="warmup"), rtol=1e-5)


def test_a_way_that_is_too_far_off_is_given_up_on_every_rank(comm: Any) -> None:
    """Each rank computes some of the points in both ways; what is found is the same on all, and said once."""
    metric, model = Loss(CRITERION, *data()), nn.Sequential(*(network()[i] for i in (0, 2, 4)))
    alone = LinearLossLandscape(model, 5).random_line(seed=1).compute(metric)
    line = LinearLossLandscape(model, 5, comm=comm).random_line(seed=1)
    near = line.compute(metric, "cpu", precision="bf16")
    assert comm.allgather(line.execution_error) == [abs(near - alone).max()] * comm.size and line.execution_error > 0
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = line.compute(metric, "cpu", precision="bf16", max_error=1e-6)
    assert_same(comm, found, alone)
    assert line.execution_error == 0
    assert any("instead of weights in bfloat16: loss" in str(one.message) for one in said) == comm.is_root


class Fails(Metric):
    """At every point of one rank, once."""

    shape = ()

    def __init__(self, rank: int):
        super().__init__()
        self.rank = rank

    def __call__(self, model: Any) -> float:
        if self.rank >= 0 and launched()[1] == self.rank:
            raise ArithmeticError("too much")
        time.sleep(0.1)  # or the others take over all of its points before it begins
        return float(next(model.parameters()).detach().double().sum())


def test_one_rank_fails_while_a_file_is_written(comm: Any, folder: str) -> None:
    """All ranks are told, none waits for ever, and what the others have finished is in the file: all but its point."""
    plane = PlanarLossLandscape(nn.Linear(3, 2), 3, comm=comm).random_plane(seed=2)
    path = os.path.join(folder, "x.h5")
    with pytest.raises((ArithmeticError, RuntimeError), match="too much"):
        plane.compute(Fails(comm.size - 1), file=path)
    comm.barrier()
    with h5py.File(path) as file:
        assert file["done"][()].sum() == (8 if comm.size > 1 else 0)
