"""--ensemble: the same grid along several sets of random directions, on any number of ranks, and after a kill."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import xarray
from problems_for_tests.quadratic_problem_for_tests import Quadratic, hessian
from programs import (
    PROBLEMS,
    PROGRAM,
    TINY,
    WRITERS,
    Finished,
    Job,
    assert_same_landscape,
    log_lines,
    read,
    run_program,
)

from hpc_landscape.directions.normalize import normalize
from hpc_landscape.directions.random import random_directions
from hpc_landscape.settings import OPTIONS
from hpc_landscape.view.numbers import numbers

QUADRATIC = f"{PROBLEMS / 'quadratic_problem_for_tests.py'}:quadratic"
PLANE = ("--x=-1:1:5", "--y=-1:1:3", "--plot=false")
SETS = 3
Program = Callable[..., Finished]


def weights() -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in Quadratic().named_parameters()}


def flat(direction: dict[str, torch.Tensor]) -> np.ndarray:
    return torch.cat([direction[name].reshape(-1) for name in ("matrix", "vector")]).double().numpy()


def test_every_set_has_its_own_numbers_in_the_streams(program: Program) -> None:
    done = program("--problem", QUADRATIC, *PLANE, "--seed=7", "--ensemble", SETS, "--block=4")
    assert done.code == 0, done
    x, y, loss = read("landscape.h5", "x", "y", "loss")
    assert loss.shape == (SETS, 5, 3)
    drawn = [flat(normalize(d, weights())) for d in random_directions(weights(), 2 * SETS, 7)]
    for values, a, b in zip(loss, drawn[::2], drawn[1::2], strict=True):
        expected = [[1 + (d := s * a + t * b) @ hessian().numpy() @ d / 2 for t in y] for s in x]
        np.testing.assert_allclose(values, expected, rtol=1e-12)


def test_a_set_is_what_a_run_along_its_directions_gives_to_the_bit(program: Program) -> None:
    job = ("--problem", QUADRATIC, *PLANE)
    assert program(*job, "--ensemble", SETS).code == 0
    assert program(*job, "--output=plain.h5").code == 0
    loss = read("landscape.h5", "loss")
    np.testing.assert_array_equal(loss[0], read("plain.h5", "loss"))
    assert len({values.tobytes() for values in loss}) == SETS
    assert np.unique(loss[:, 2, 1]).size == 1  # the model itself, once for each set
    for i in range(SETS):
        for axis, direction in enumerate(random_directions(weights(), 2, 0, first=2 * i)):
            np.savez(f"{axis}.npz", **{name: d.numpy() for name, d in normalize(direction, weights()).items()})
        alone = ("--directions=file", "--direction_files=0.npz,1.npz", f"--output=set{i}.h5")
        assert program(*job, *alone).code == 0
        np.testing.assert_array_equal(loss[i], read(f"set{i}.h5", "loss"))


def test_the_file_is_open_to_others(program: Program) -> None:
    assert program("--problem", QUADRATIC, *PLANE, "--ensemble", SETS).code == 0
    with xarray.open_dataset("landscape.h5", engine="h5netcdf") as data:
        assert data["loss"].dims == data["done"].dims == data["wall_time"].dims == ("direction", "x", "y")
        assert data["direction"].values.tolist() == [0, 1, 2]
        loss = data["loss"].values
    vtk = pytest.importorskip("vtk")
    reader = vtk.vtkHDFReader()
    reader.SetFileName("landscape.h5")
    reader.Update()
    image = reader.GetOutput()
    found = image.GetPointData().GetArray("loss")
    for i in range(image.GetNumberOfPoints()):  # the sets are stacked along z
        x, y, z = image.GetPoint(i)
        assert found.GetValue(i) == loss[round(z), round(2 * (x + 1)), round(y + 1)]


def test_a_line_of_sets_in_vtk_has_them_along_y(program: Program) -> None:
    vtk = pytest.importorskip("vtk")
    assert program("--problem", QUADRATIC, "--x=-1:1:5", "--y=none", "--plot=false", "--ensemble", SETS).code == 0
    reader = vtk.vtkHDFReader()
    reader.SetFileName("landscape.h5")
    reader.Update()
    image, loss = reader.GetOutput(), read("landscape.h5", "loss")
    found = image.GetPointData().GetArray("loss")
    for i in range(image.GetNumberOfPoints()):
        x, y, _ = image.GetPoint(i)
        assert found.GetValue(i) == loss[round(y), round(2 * (x + 1))]
    assert (
        program("--problem", QUADRATIC, "--x=-1:1:2", "--y=0:1:2", "--z=0:1:2", "--ensemble=2", "--output=v.h5").code
        == 0
    )
    assert "VTKHDF" not in h5py.File("v.h5")


def test_the_trace_is_within_its_standard_error(program: Program) -> None:
    raw = ("--normalization=none", "--ignore=none", "--y=none", "--plot=false")
    trace = float(hessian().trace())
    off = []
    for seed in range(6):
        job = ("--x=-0.5:0.5:5", *raw, "--ensemble=60", "--seed", seed, "--output", f"{seed}.h5")
        assert program("--problem", QUADRATIC, *job).code == 0
        found = numbers(f"{seed}.h5")
        directions = [flat(d) for d in random_directions(weights(), 60, seed)]
        samples = [d @ hessian().numpy() @ d for d in directions]  # by hand: of a quadratic no step is too large
        np.testing.assert_allclose(found["hessian_trace"], np.mean(samples), rtol=1e-9)
        np.testing.assert_allclose(found["hessian_trace_error"], np.std(samples, ddof=1) / 60**0.5, rtol=1e-9)
        off.append((found["hessian_trace"] - trace) / found["hessian_trace_error"])
    assert np.abs(off).max() < 3 and np.abs(off).min() < 1 and abs(np.sum(off)) < 3 * 6**0.5


def test_filter_normalized_directions_have_no_trace_and_others_no_share(program: Program) -> None:
    assert program("--problem", QUADRATIC, *PLANE, "--ensemble", SETS).code == 0
    found = numbers("landscape.h5", level=3.0, radius=0.5)
    assert found["hessian_trace"] is None and found["hessian_trace_error"] is None
    loss = read("landscape.h5", "loss")
    stays = (loss[:, 1:4, 1] <= 3).all(axis=1)  # the points within 0.5 of the model
    assert found["share_of_directions_under_level"] == stays.mean()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--ensemble=1",), "--ensemble 1: must be from 2"),
        (("--ensemble=2", "--trajectory=*.pt"), "--ensemble and --trajectory"),
        (("--ensemble=2", "--directions=hessian"), "--ensemble 2: goes with --directions random"),
        (("--ensemble=2", "--directions=interpolation", "--to=a.pt"), "--ensemble 2: goes with --directions random"),
    ],
)
def test_what_does_not_go_with_it_is_one_line(program: Program, words: tuple[str, ...], what: str) -> None:
    done = program("--problem", QUADRATIC, *words)
    assert done.code == 2 and what in done.err and done.err.count("\n") == 1, done
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(("option", "value"), [("refine", "0.01"), ("extend", "old.h5")])
def test_other_ways_to_choose_points_do_not_go_with_it(program: Program, option: str, value: str) -> None:
    if option not in OPTIONS:
        pytest.skip("there is no such option")
    done = program("--problem", QUADRATIC, "--ensemble=2", f"--{option}={value}")
    assert done.code == 2 and f"--{option} is for one set of directions" in done.err, done


def test_a_file_is_gone_on_with_by_the_same_ensemble_alone(program: Program) -> None:
    job = ("--problem", QUADRATIC, *PLANE)
    assert program(*job, "--ensemble", SETS).code == 0
    before = Path("landscape.h5").read_bytes()
    assert "is complete" in program(*job, "--ensemble", SETS).out
    for words in ((), ("--ensemble=4",), ("--ensemble=3", "--seed=1")):
        done = program(*job, *words)
        assert done.code == 2 and "is of another run" in done.err, done
    assert Path("landscape.h5").read_bytes() == before


def test_a_point_of_a_later_set_is_not_compared_along_the_first_one(program: Program) -> None:
    job = ("--problem", QUADRATIC, *PLANE, "--ensemble", SETS)
    assert program(*job).code == 0
    loss = read("landscape.h5", "loss")
    with h5py.File("landscape.h5", "r+") as file:
        file["done"][0] = 0
        file["loss"][0] = np.nan
    done = program(*job)
    assert done.code == 0 and "15 still to do" in done.out, done
    np.testing.assert_array_equal(read("landscape.h5", "loss"), loss)


def test_directions_of_another_numpy_would_be_seen(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's first set is no record of the others: a run that goes on draws it again, and compares."""
    job = ("--problem", QUADRATIC, *PLANE, "--ensemble", SETS)
    assert program(*job).code == 0
    with h5py.File("landscape.h5", "r+") as file:
        file["done"][2] = 0
    monkeypatch.setattr("hpc_landscape.directions.random.draw", lambda *a: np.ones(a[3], np.float32))
    done = program(*job)
    assert done.code == 2 and "directions differ" in done.err, done


@pytest.mark.slow
@pytest.mark.mpi_stack
@pytest.mark.parametrize("writer", WRITERS)
def test_killed_on_three_ranks_and_gone_on_with_on_two(tmp_path: Path, program: Program, writer: str) -> None:
    job = ("--problem", TINY, "--x=-1:1:3", "--y=-1:1:2", "--ensemble=4", "--plot=false", "--writer", writer)
    assert program(*job[:-2], "--output=one.h5").code == 0
    log, file = tmp_path / "log", tmp_path / "landscape.h5"
    slow = ("--problem.log", log, "--problem.delay", 0.3)
    with Job([*PROGRAM, *job, *slow], 3, tmp_path) as running:
        running.until(lambda: file.exists() and read(file, "done").sum() >= 9)
        os.kill(next(line.pid for line in log_lines(log, "begin") if line.rank == 1), signal.SIGKILL)
        assert running.wait(30).code != 0
    done = read(file, "done").reshape(-1) == 1
    assert 9 <= done.sum() < done.size
    np.testing.assert_array_equal(read(file, "loss").reshape(-1)[done], read("one.h5", "loss").reshape(-1)[done])
    finished = run_program(*job, folder=tmp_path, ranks=2)
    assert finished.code == 0, finished
    assert_same_landscape(file, tmp_path / "one.h5")
