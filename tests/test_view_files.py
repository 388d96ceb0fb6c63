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
    **attributes: Any,
) -> str:
    """A file at path as a run leaves it. values: functions of (x, y, ...) by quantity; done: bool, default all."""
    grid = Grid(*axes)
    layout.create(str(path), grid, quantities, {"metrics": ",".join(q.name for q in quantities), **attributes})
    done = np.ones(grid.shape, bool) if done is None else np.asarray(done, bool)
    points = np.flatnonzero(done)
    mesh = np.meshgrid(*grid.coordinates, indexing="ij")
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
    count = image.GetNumberOfPoints()
    assert array.GetNumberOfTuples() == count
    return {tuple(np.round(image.GetPoint(i), 9) + 0.0): array.GetTuple(i) for i in range(count)}


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
