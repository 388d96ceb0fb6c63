"""hpc_landscape.open, its accessor, and xarray.open_datatree of the file itself."""

from __future__ import annotations

import sys

import h5py
import numpy as np
import pytest
from test_view_files import AXES, make, slanted

from hpc_landscape.errors import UserError
from hpc_landscape.grid import Axis, Grid
from hpc_landscape.store import layout
from hpc_landscape.store.layout import Quantity, Trajectory
from hpc_landscape.view.dataset import open as open_landscape

xarray = pytest.importorskip("xarray")
pytest.importorskip("h5netcdf")

TWO = (Quantity("loss"), Quantity("eigenvalues", (2,), ("eigenvalue",)))
TWO_VALUES = {"loss": slanted, "eigenvalues": lambda *c: np.stack([slanted(*c), -slanted(*c)], axis=-1)}
# Names that are an axis's, have dots and slashes, or are odd; shapes with and without equal lengths.
PARAMETERS = {
    "conv.weight": np.arange(108, dtype=np.float32).reshape(4, 3, 3, 3),
    "x": np.arange(7, dtype=np.float32),
    "loss": np.ones((5, 5), np.float32),
    "block/0.bias": np.ones(4),
    "count": np.array(3),
    "none": np.ones((0, 4), np.float32),
    "": np.ones(2, np.complex64),
}


def full(path, n=2):
    """A file with everything in it."""
    grid = Grid(*AXES[n])
    places = np.arange(3.0 * n).reshape(3, n) / 7
    layout.create(
        *(str(path), grid, TWO, {"metrics": "loss,eigenvalues", "seed": 3}),
        *({axis: PARAMETERS for axis in grid.names}, PARAMETERS),
        Trajectory(places, np.array([0.5, 0.25, 0.0]), ["a.pt", "b.pt", "c.pt"], np.array([0, 0, 1])),
    )
    return str(path)


@pytest.mark.mpi_stack
@pytest.mark.parametrize("engine", ["h5netcdf", None])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_datatree_has_every_array_of_the_file(tmp_path, n, engine):
    path = full(tmp_path / "a.h5", n)
    with xarray.open_datatree(path, engine=engine) as tree, h5py.File(path) as file:
        names = ("x", "y", "z")[:n]
        assert tree["loss"].dims == names and set(tree.to_dataset().dims) == {*names, "eigenvalue"}
        for axis, values in zip(names, Grid(*AXES[n]).coordinates, strict=True):
            np.testing.assert_array_equal(tree[axis], values)
            np.testing.assert_array_equal(tree[f"trajectory/along_{axis}"], file[f"trajectory/{axis}"])
        for group in (*(f"directions/along_{axis}" for axis in names), "model"):
            here = tree[group].to_dataset(inherit=False)  # else the parameter x hides behind the axis above it
            assert set(here) == set(file[group]) and not here.coords
            for name, dataset in file[group].items():
                np.testing.assert_array_equal(here[name], dataset[()])
        assert tree["trajectory/label"].values.tolist() == ["a.pt", "b.pt", "c.pt"]
        assert tree["trajectory/distance"].dims == ("checkpoint",)


@pytest.mark.mpi_stack
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_datatree_of_a_file_without_directions_and_model(tmp_path, n):
    with xarray.open_datatree(make(tmp_path / "a.h5", AXES[n]), engine="h5netcdf") as tree:
        assert set(tree.children) == {"VTKHDF", "runs"} and tree["VTKHDF/PointData/loss"].identical(tree["loss"])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_open_gives_the_values_at_their_places(tmp_path, n):
    data = open_landscape(make(tmp_path / "a.h5", AXES[n], TWO_VALUES, TWO, seed=3))
    names = ("x", "y", "z")[:n]
    assert data["loss"].dims == names and data["eigenvalues"].dims == (*names, "eigenvalue")
    mesh = np.meshgrid(*Grid(*AXES[n]).coordinates, indexing="ij")
    np.testing.assert_array_equal(data["loss"], slanted(*mesh))
    np.testing.assert_array_equal(data["eigenvalues"][..., 1], -slanted(*mesh))
    assert data["wall_time"].units == "s" and data["done"].dtype == bool and data["done"].all()
    assert data.attrs["seed"] == 3 and all(type(v) in (str, int, float) for v in data.attrs.values())


def test_what_is_not_done_is_nan_and_the_file_is_left_alone(tmp_path):
    path = make(tmp_path / "half.h5", done=np.arange(20).reshape(5, 4) < 7)
    with h5py.File(path, "r+", locking=False) as file:
        file["loss"][4, 3] = 5.0  # its flag was not set before the writer died
    data = open_landscape(path)
    np.testing.assert_array_equal(np.isnan(data["loss"]), ~data["done"])
    with h5py.File(path, "r+") as file:  # with HDF5's own lock: nobody else has the file open
        file["loss"][4, 3] = 6.0
    assert np.isnan(data["loss"][4, 3]) and not data["failed"].any()


def test_dimensions_without_a_name_or_of_two_lengths_get_names_of_their_own(tmp_path):
    quantities = (Quantity("a", (2,), ("k",)), Quantity("b", (3,), ("j",)), Quantity("c", (2, 2), ("l", "m")))
    # What others wrote may say anything; a name of a variable is none for a dimension, for instance.
    path = make(
        tmp_path / "a.h5", AXES[1], {q.name: lambda x, s=q.shape: np.zeros((5, *s)) for q in quantities}, quantities
    )
    with h5py.File(path, "r+") as file:
        file["a"].dims[1].label, file["b"].dims[1].label, file["c"].dims[1].label = "", "x", "b"
    dims = {name: array.dims for name, array in open_landscape(path).data_vars.items()}
    assert (dims["a"], dims["b"], dims["c"]) == (("x", "a_0"), ("x", "b_0"), ("x", "c_0", "m"))


def test_directions_and_model_are_read_when_they_are_asked_for(tmp_path, monkeypatch):
    data = open_landscape(full(tmp_path / "a.h5"))
    assert set(data.landscape.directions) == {"x", "y"}
    for arrays in (data.landscape.directions["y"], data.landscape.model):
        assert set(arrays) == set(PARAMETERS) and len(arrays) == len(PARAMETERS)
        for name, wanted in PARAMETERS.items():
            assert arrays[name].dtype == wanted.dtype
            np.testing.assert_array_equal(arrays[name], wanted)
    with pytest.raises(KeyError):
        data.landscape.model["other"]
    read = []
    whole = h5py.Dataset.__getitem__
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda self, i: read.append(self.name) or whole(self, i))
    assert data.landscape.directions["x"]["conv.weight"].shape == (4, 3, 3, 3)
    assert read == ["/directions/along_x/conv.weight"]


def test_arrays_are_read_while_xarray_has_the_file_open(tmp_path):
    path = full(tmp_path / "a.h5")
    with xarray.open_dataset(path, engine="h5netcdf") as data:
        np.testing.assert_array_equal(data.landscape.model["block/0.bias"], np.ones(4))
        np.testing.assert_array_equal(open_landscape(path)["x"], data["x"])


def test_the_trajectory_is_a_dataset(tmp_path):
    way = open_landscape(full(tmp_path / "a.h5")).landscape.trajectory
    np.testing.assert_array_equal(way["y"], np.arange(6).reshape(3, 2)[:, 1] / 7)
    assert way["label"].values.tolist() == ["a.pt", "b.pt", "c.pt"] and way["distance"].values.tolist() == [
        0.5,
        0.25,
        0,
    ]
    assert set(way) == {"x", "y", "distance", "label", "path"}
    assert not len(open_landscape(make(tmp_path / "b.h5")).landscape.trajectory)


def test_a_trajectory_of_unlike_columns_has_those_that_go_together(tmp_path):
    path = make(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        for name, column in {"x": np.ones(3), "y": np.ones(4), "distance": 1.0, "label": np.zeros((3, 2))}.items():
            file[f"trajectory/{name}"] = column
    assert set(open_landscape(path).landscape.trajectory) == {"x"}


def test_a_file_without_directions_and_model_has_empty_ones(tmp_path):
    bare = open_landscape(make(tmp_path / "a.h5")).landscape
    assert bare.directions == {} and len(bare.model) == 0


def test_the_accessor_is_of_the_file_wherever_one_is(tmp_path, monkeypatch):
    make(tmp_path / "a.h5", AXES[2])
    monkeypatch.chdir(tmp_path)
    data = open_landscape("a.h5").assign(more=1.0)
    monkeypatch.chdir("/")
    assert data.landscape.path == str(tmp_path / "a.h5")
    assert data.landscape.export(str(tmp_path / "a.csv")) == str(tmp_path / "a.csv")
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 21
    with pytest.raises(UserError, match="does not say from which file"):
        _ = xarray.Dataset().landscape.path


CHANGED = {
    "a part": lambda data: data.isel(x=slice(0, 3)),
    "a point": lambda data: data.isel(x=0, y=0),
    "turned": lambda data: data.transpose("y", "x"),
    "other values": lambda data: data.assign(loss=data.loss * 2),
    "other places": lambda data: data.assign_coords(x=data.x + 1),
    "a number": lambda data: data.assign(loss=0.0),
    "without": lambda data: data.drop_vars("loss"),
    "without flags": lambda data: data.drop_vars("done"),
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
def test_the_accessor_refuses_what_is_not_in_the_file(tmp_path, change):
    data = change(open_landscape(make(tmp_path / "a.h5", (Axis(-1, 1, 4), Axis(-1, 1, 4)))))
    data.encoding["source"] = str(tmp_path / "a.h5")  # some changes keep it
    with pytest.raises(UserError, match="is not what .* holds"):
        data.landscape.numbers()


def test_the_accessor_goes_on_with_a_file_in_use(tmp_path):
    path = make(tmp_path / "a.h5", AXES[2], done=np.arange(20).reshape(5, 4) < 7)
    data = open_landscape(path)
    with h5py.File(path, "r+", locking=False) as file:
        file["loss"][4, 3], file["done"][4, 3] = 3.0, 1
    assert data.landscape.numbers()["points"] == 8


def test_a_file_that_xarray_has_open_with_locks_is_read(tmp_path):
    path = make(tmp_path / "a.h5")
    with xarray.open_dataset(path, engine="h5netcdf") as data:
        assert open_landscape(path).loss.equals(data.loss)


def test_the_accessor_plots_measures_and_compares(tmp_path):
    values = lambda x, y: (x - 0.5) ** 2 + y**2  # noqa: E731
    square = (Axis(-1, 1, 5), Axis(-1, 1, 5))
    a, b = (open_landscape(make(tmp_path / f"{name}.h5", square, values)) for name in "ab")
    assert a.landscape.numbers()["minimum"] == 0
    assert a.landscape.compare(b).json() == a.landscape.compare(b.landscape.path).json()
    pytest.importorskip("matplotlib")
    assert a.landscape.plot(str(tmp_path / "a.png")) == str(tmp_path / "a.png")
    pytest.importorskip("plotly")
    assert (tmp_path / "a.html").samefile(a.landscape.html(str(tmp_path / "a.html")))


def test_mistakes_are_one_line(tmp_path, monkeypatch):
    path = make(tmp_path / "a.h5")
    with pytest.raises(UserError, match="no such file"):
        open_landscape(str(tmp_path / "none.h5"))
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(UserError, match="is not an HDF5 file"):
        open_landscape(str(tmp_path / "text.h5"))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1.0
    with pytest.raises(UserError, match="not one of this program's"):
        open_landscape(str(tmp_path / "other.h5"))
    for name in ("xarray", "h5netcdf"):
        with monkeypatch.context() as missing:
            missing.setitem(sys.modules, name, None)
            with pytest.raises(UserError, match=f"needs {name}: pip install xarray h5netcdf"):
                open_landscape(path)
