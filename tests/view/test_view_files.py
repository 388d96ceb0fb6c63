"""Small landscape files for the tests of view/, and: the file itself opens in xarray and VTK."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import h5py
import numpy as np
import pytest

from hpc_landscape.grid import Axis, Grid
from hpc_landscape.store import layout
from hpc_landscape.store.layout import Quantity

pytestmark = pytest.mark.mpi_stack

AXES = {1: (Axis(-1, 1, 5),), 2: (Axis(-1, 1, 5), Axis(-2, 3, 4)), 3: (Axis(-1, 1, 4), Axis(-2, 3, 3), Axis(0, 5, 5))}


def slanted(x: Any, y: Any = 0.0, z: Any = 0.0) -> Any:
    """No two points of a grid are alike, and no two axes can be exchanged unseen."""
    return x + 10 * y + 100 * z + 1000


def make(
    path: Any,
    axes: tuple[Axis, ...] = AXES[2],
    values: Callable[..., Any] | Mapping[str, Callable[..., Any]] = slanted,
    quantities: tuple[Quantity, ...] = (Quantity("loss"),),
    done: Any = None,
    sets: int | None = None,
    **attributes: Any,
) -> str:
    """A file at path as a run leaves it. values: functions of (x, y, ...) by quantity; done: bool, default all.

    sets: of an ensemble; values are functions of (set, x, y, ...) then.
    """
    grid = Grid(*axes, sets=sets)
    layout.create(str(path), grid, quantities, {"metrics": ",".join(q.name for q in quantities), **attributes})
    done = np.ones(grid.shape, bool) if done is None else np.asarray(done, bool)
    points = np.flatnonzero(done)
    mesh = np.meshgrid(*grid.scales.values(), indexing="ij")
    if callable(values):
        values = {quantities[0].name: values}
    with h5py.File(path, "r+", locking=False) as file:
        for quantity in quantities if len(points) else ():
            computed = np.broadcast_to(values[quantity.name](*mesh), grid.shape + quantity.shape)
            flat = computed.reshape(grid.size, *quantity.shape)
            layout.write(file[quantity.name], grid.shape, points, flat[points])
        if len(points):
            layout.write(file["wall_time"], grid.shape, points, np.full(len(points), 2.0))
            layout.write(file["done"], grid.shape, points, np.ones(len(points)))
    return str(path)


def read_at_once(path: str) -> layout.Stored:
    """layout.read without its process of its own, which a test of many files need not wait for."""
    with h5py.File(path, "r", locking=False) as file:
        return layout._describe(file)


def vtk_points(path: str, name: str) -> dict[tuple[float, float, float], tuple[float, ...]]:
    """What VTK finds at every place, by its own reader."""
    vtk = pytest.importorskip("vtk")
    reader = vtk.vtkHDFReader()
    reader.SetFileName(path)
    reader.Update()
    image = reader.GetOutput()
    array = image.GetPointData().GetArray(name)
    if array is not None:
        places = [image.GetPoint(i) for i in range(image.GetNumberOfPoints())]
    else:
        array = image.GetCellData().GetArray(name)
        bounds = [np.reshape(image.GetCell(i).GetBounds(), (3, 2)) for i in range(image.GetNumberOfCells())]
        places = [b.mean(axis=1) for b in bounds]
    assert array.GetNumberOfTuples() == len(places)
    return {tuple(np.round(place, 9) + 0.0): array.GetTuple(i) for i, place in enumerate(places)}


def expected_points(axes: tuple[Axis, ...]) -> dict[tuple[float, float, float], tuple[float, ...]]:
    grid = Grid(*axes)
    places = [grid.point(i) for i in range(grid.size)]
    return {tuple(np.round([*p, 0.0, 0.0][:3], 9) + 0.0): (slanted(*p),) for p in places}


def assert_same_points(found: dict[Any, Any], wanted: dict[Any, Any]) -> None:
    assert set(found) == set(wanted)
    for place, values in wanted.items():
        assert found[place] == pytest.approx(values)


@pytest.mark.parametrize("axes", AXES.values())
def test_vtk_reads_every_value_of_the_file_at_its_own_place(tmp_path, axes):
    path = make(tmp_path / "a.h5", axes)
    assert_same_points(vtk_points(path, "loss"), expected_points(axes))


ONE = {
    "one, a line": (Axis(0.5, 0.5, 1),),
    "one, first of two": (Axis(0.5, 0.5, 1), Axis(-1, 1, 4)),
    "one, second of two": (Axis(-1, 1, 4), Axis(2, 2, 1)),
    "all of two": (Axis(0, 0, 1), Axis(1, 1, 1)),
    "one, middle of three": (Axis(-1, 1, 3), Axis(2, 2, 1), Axis(0, 3, 2)),
    "two of three": (Axis(3, 3, 1), Axis(2, 2, 1), Axis(0, 3, 2)),
}


@pytest.mark.parametrize("axes", ONE.values(), ids=ONE)
def test_vtk_reads_axes_of_one_point(tmp_path, axes):
    """There each point is the centre of a cell."""
    path = make(tmp_path / "a.h5", axes)
    assert_same_points(vtk_points(path, "loss"), expected_points(axes))
    assert set(vtk_points(path, "done").values()) == {(1.0,)}


@pytest.mark.parametrize("axes", [*AXES.values(), *ONE.values()])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_vtk_reads_components(tmp_path, axes, size):
    """Of metrics with one axis of their own; those with more are left out, and the rest is read all the same."""
    quantities = (
        Quantity("loss"),
        Quantity("eigenvalues", (size,), ("eigenvalue",)),
        Quantity("matrix", (2, 2), ("row", "column")),
    )
    values = {
        "loss": slanted,
        "eigenvalues": lambda *c: np.stack([slanted(*c) * k for k in range(1, size + 1)], axis=-1),
        "matrix": lambda *c: slanted(*c)[..., None, None] * np.ones((2, 2)),
    }
    path = make(tmp_path / "a.h5", axes, values, quantities)
    wanted = {place: tuple(v * k for k in range(1, size + 1)) for place, (v,) in expected_points(axes).items()}
    assert_same_points(vtk_points(path, "eigenvalues"), wanted)
    assert_same_points(vtk_points(path, "loss"), expected_points(axes))
    with h5py.File(path) as file:
        group = file["VTKHDF"]["CellData" if "CellData" in file["VTKHDF"] else "PointData"]
        assert "matrix" not in group and group["eigenvalues"] == file["eigenvalues"], "the same dataset, no copy"


@pytest.mark.parametrize("n", [1, 2, 3])
def test_xarray_opens_the_file_with_dims_and_coordinates(tmp_path, n):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    quantities = (Quantity("loss"), Quantity("eigenvalues", (2,), ("eigenvalue",)))
    values = {"loss": slanted, "eigenvalues": lambda *c: np.stack([slanted(*c), -slanted(*c)], axis=-1)}
    path = make(tmp_path / "a.h5", AXES[n], values, quantities)
    with xarray.open_dataset(path, engine="h5netcdf") as data:
        names = ("x", "y", "z")[:n]
        assert data["loss"].dims == names and data["eigenvalues"].dims == (*names, "eigenvalue")
        assert data["wall_time"].dtype == np.float64
        for name, c in zip(names, Grid(*AXES[n]).coordinates, strict=True):
            np.testing.assert_array_equal(data[name], c)
        place = {name: data[name][-1] for name in names}
        assert float(data["loss"].sel(place)) == slanted(*(float(c) for c in place.values()))
        assert data["eigenvalues"].sel(place).values[1] == -float(data["loss"].sel(place))
