"""export: every format read back by its own readers."""

from __future__ import annotations

import csv
import json
import sys

import h5py
import numpy as np
import pytest
from test_view_files import AXES, assert_same_points, expected_points, make, slanted, vtk_points

from hpc_landscape.errors import UserError
from hpc_landscape.grid import Axis, Grid
from hpc_landscape.store.layout import Quantity
from hpc_landscape.view.export import export

TWO = (Quantity("loss"), Quantity("eigenvalues", (2,), ("eigenvalue",)))
TWO_VALUES = {"loss": slanted, "eigenvalues": lambda *c: np.stack([slanted(*c), -slanted(*c)], axis=-1)}


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_csv_has_a_row_a_point_at_its_own_place(tmp_path, n):
    path = make(tmp_path / "a.h5", AXES[n], TWO_VALUES, TWO)
    read = rows(export(path, str(tmp_path / "a.csv")))
    names = ["x", "y", "z"][:n]
    assert list(read[0]) == [*names, "loss", "eigenvalues[0]", "eigenvalues[1]", "done", "wall_time"]
    assert len(read) == Grid(*AXES[n]).size
    for row in read:
        value = slanted(*(float(row[name]) for name in names))
        assert float(row["loss"]) == value and float(row["eigenvalues[1]"]) == -value
        assert row["done"] == "1" and row["wall_time"] == "2.0"


def test_csv_tells_a_point_not_done_from_a_nan(tmp_path):
    values = {"loss": lambda x: np.where(x < 0, np.nan, np.where(x == 0, np.inf, 0.1 + x))}
    path = make(tmp_path / "a.h5", (Axis(-1, 1, 3),), values, done=[True, True, True])
    assert [row["loss"] for row in rows(export(path, str(tmp_path / "a.csv")))] == ["nan", "inf", "1.1"]
    path = make(tmp_path / "b.h5", (Axis(-1, 1, 3),), values, done=[True, False, True])
    read = rows(export(path, str(tmp_path / "b.csv")))
    assert [(row["x"], row["loss"], row["done"]) for row in read] == [
        ("-1.0", "nan", "1"),
        ("0.0", "", "0"),
        ("1.0", "1.1", "1"),
    ]


def half_written(tmp_path):
    """One point has its value, but its flag was not set before the writer died."""
    path = make(tmp_path / "half.h5", done=np.arange(20).reshape(5, 4) < 7)
    with h5py.File(path, "r+", locking=False) as file:
        file["loss"][4, 3] = 5.0
    return path


def test_npz_round_trip(tmp_path):
    output = export(half_written(tmp_path), str(tmp_path / "a.npz"))
    with np.load(output) as arrays:
        x, y = Grid(*AXES[2]).coordinates
        np.testing.assert_array_equal(arrays["x"], x)
        np.testing.assert_array_equal(arrays["done"], np.arange(20).reshape(5, 4) < 7)
        wanted = np.where(arrays["done"], slanted(x[:, None], y[None, :]), np.nan)
        np.testing.assert_array_equal(arrays["loss"], wanted)
        assert json.loads(str(arrays["attributes"]))["metrics"] == "loss"


def test_nc_round_trip_through_xarray(tmp_path):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    path = make(tmp_path / "a.h5", AXES[2], TWO_VALUES, TWO, seed=3, flag=True, names=["a", "b"])
    with xarray.open_dataset(export(path, str(tmp_path / "a.nc")), engine="h5netcdf") as data:
        assert data["loss"].dims == ("x", "y") and data["eigenvalues"].dims == ("x", "y", "eigenvalue")
        np.testing.assert_array_equal(data["loss"], slanted(data["x"].values[:, None], data["y"].values))
        assert data.attrs["seed"] == 3 and data["done"].values.all() and data["wall_time"].units == "s"


FLAT = [(Axis(-1, 1, 1), Axis(0, 3, 4)), (Axis(-1, 1, 3), Axis(0, 2, 1)), (Axis(0, 1, 2), Axis(2, 2, 1), Axis(0, 1, 3))]


@pytest.mark.parametrize("axes", [*AXES.values(), *FLAT, (Axis(-1, 1, 1),)])
def test_vtkhdf_has_every_value_at_its_own_place(tmp_path, axes):
    output = export(make(tmp_path / "a.h5", axes, TWO_VALUES, TWO), str(tmp_path / "a.vtkhdf"))
    wanted = expected_points(axes)
    assert_same_points(vtk_points(output, "loss"), wanted)
    both = {place: (value, -value) for place, (value,) in wanted.items()}
    assert_same_points(vtk_points(output, "eigenvalues"), both)
    assert set(vtk_points(output, "done").values()) == {(1.0,)}


@pytest.mark.parametrize("suffix", [".csv", ".npz", ".nc", ".vtkhdf", ".stl", ".obj", ".h5"])
def test_a_second_export_replaces_the_first(tmp_path, suffix):
    path, output = make(tmp_path / "a.h5"), str(tmp_path / f"b{suffix}")
    assert export(path, output) == export(path, output) == output
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["a.h5", f"b{suffix}"])


def test_a_landscape_is_never_overwritten(tmp_path):
    path = make(tmp_path / "a.nc")  # a run may have been told to write there
    other = make(tmp_path / "b.nc")
    before = (tmp_path / "a.nc").read_bytes(), (tmp_path / "b.nc").read_bytes()
    (tmp_path / "link.nc").symlink_to(path)
    for output in (path, other, str(tmp_path / "link.nc")):
        with pytest.raises(UserError, match="is not overwritten"):
            export(path, output)
    assert before == ((tmp_path / "a.nc").read_bytes(), (tmp_path / "b.nc").read_bytes())


def test_mistakes_are_one_line(tmp_path, monkeypatch):
    path = make(tmp_path / "a.h5")
    (tmp_path / "folder.csv").mkdir()
    for output, said in (("a.xlsx", "unknown suffix '.xlsx'"), ("a", "no suffix"), ("folder.csv", "is a directory")):
        with pytest.raises(UserError, match=said):
            export(path, str(tmp_path / output))
    with pytest.raises(UserError, match="there is no directory"):
        export(path, str(tmp_path / "nowhere" / "a.csv"))
    with pytest.raises(UserError, match="no such file"):
        export(str(tmp_path / "none.h5"), str(tmp_path / "a.csv"))
    with pytest.raises(UserError, match="no point is done"):
        export(make(tmp_path / "b.h5", done=np.zeros((5, 4))), str(tmp_path / "a.csv"))
    monkeypatch.setitem(sys.modules, "h5netcdf", None)
    with pytest.raises(UserError, match="pip install xarray h5netcdf"):
        export(path, str(tmp_path / "a.nc"))
