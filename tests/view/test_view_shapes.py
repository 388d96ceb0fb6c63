"""export to surfaces (STL, OBJ) and to the files of other programs, read as these read them."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from test_view_files import AXES, make, slanted

from hpc_landscape.cli import main
from hpc_landscape.errors import UserError
from hpc_landscape.grid import Axis, Grid
from hpc_landscape.store.layout import Quantity
from hpc_landscape.view.export import export

SQUARE = (Axis(-1, 1, 5), Axis(-2, 2, 5))


def triangles(path):
    """(m, 3, 3): the corners of each triangle, by VTK's own reader."""
    vtk = pytest.importorskip("vtk")
    from vtk.util.numpy_support import vtk_to_numpy

    reader = vtk.vtkSTLReader() if path.endswith(".stl") else vtk.vtkOBJReader()
    reader.SetFileName(path)
    reader.Update()
    points = vtk_to_numpy(reader.GetOutput().GetPoints().GetData())
    cells = vtk_to_numpy(reader.GetOutput().GetPolys().GetConnectivityArray()).reshape(-1, 3)
    return points[cells].astype(float)


def normals(found):
    """Of each triangle, twice its area long."""
    return np.cross(found[:, 1] - found[:, 0], found[:, 2] - found[:, 0])


@pytest.mark.parametrize("suffix", [".stl", ".obj"])
def test_a_surface_is_the_values_at_their_places_and_faces_upward(tmp_path, suffix):
    """A slanted plane: every normal and the area are known, and no two axes can be exchanged unseen."""
    path = make(tmp_path / "a.h5", SQUARE, lambda x, y: 3 * x + y + 10)
    found = triangles(export(path, str(tmp_path / f"a{suffix}"), log=False))
    assert found.shape == (2 * 4 * 4, 3, 3)
    x, y, z = found.reshape(-1, 3).T
    np.testing.assert_allclose(z, 2.0 * (3 * x + y + 5) / 10, atol=1e-6)  # from 5 to 15; half of 4, the longer side
    assert {(a, b) for a, b in zip(x, y, strict=True)} == {(a, b) for a in np.linspace(-1, 1, 5) for b in range(-2, 3)}
    normal = np.array([-0.6, -0.2, 1.0])
    cross = normals(found)
    np.testing.assert_allclose(np.linalg.norm(cross, axis=1).sum() / 2, 2 * 4 * np.linalg.norm(normal), rtol=1e-6)
    np.testing.assert_allclose(cross / cross[:, 2:], np.broadcast_to(normal, cross.shape), atol=1e-5)
    assert (cross[:, 2] > 0).all()


def test_an_stl_says_what_its_height_is_and_has_its_normals(tmp_path):
    output = export(make(tmp_path / "a.h5", SQUARE, lambda x, y: 10**x + 0 * y), str(tmp_path / "a.stl"), log=True)
    content = (tmp_path / "a.stl").read_bytes()
    assert content[:80].decode().rstrip() == "z is 0 at log10(loss) = -1, 2 at 1" and len(content) == 84 + 50 * 32
    np.testing.assert_allclose(triangles(output)[..., 2], triangles(output)[..., 0] + 1, atol=1e-6)
    record = np.frombuffer(content[84:], [("normal", "<f4", 3), ("rest", "V38")])
    np.testing.assert_allclose(record["normal"], [[-(0.5**0.5), 0, 0.5**0.5]] * 32, atol=1e-6)


@pytest.mark.parametrize("log", [False, True])
def test_a_surface_has_holes_where_there_is_no_value(tmp_path, log):
    """A missing corner takes one of a cell's two triangles."""
    flat = make(tmp_path / "a.h5", SQUARE, lambda x, y: np.where((x == 0) & (y == 1), -1.0 if log else np.inf, 1.0))
    found = triangles(export(flat, str(tmp_path / "a.obj"), log=log))
    assert len(found) == 32 - 4 and (found[..., 2] == 0).all()
    assert not ((found[..., 0] == 0) & (found[..., 1] == 1)).any()
    done = np.ones((5, 5), bool)
    done[0, 0] = done[2, 2] = done[2, 3] = False
    part = make(tmp_path / "b.h5", SQUARE, lambda x, y: x + y, done=done)
    found = triangles(export(part, str(tmp_path / "b.obj")))
    assert len(found) == 32 - 1 - 8 and not ((found[..., 0] == 0) & (found[..., 1] == 0)).any()
    assert (normals(found)[:, 2] > 0).all()


def test_a_surface_of_another_metric(tmp_path):
    values = {"loss": slanted, "eigenvalues": lambda *c: np.stack([slanted(*c), -slanted(*c)], axis=-1)}
    path = make(tmp_path / "a.h5", SQUARE, values, (Quantity("loss"), Quantity("eigenvalues", (2,), ("eigenvalue",))))
    found = triangles(export(path, str(tmp_path / "a.obj"), metric="eigenvalues[1]", log=False))
    x, y, z = found.reshape(-1, 3).T
    np.testing.assert_allclose(z, 2 * (21 - x - 10 * y) / 42, atol=1e-6)


def test_heights_beyond_the_range_of_numbers(tmp_path):
    path = make(tmp_path / "a.h5", SQUARE, lambda x, y: 1.7e308 * x)
    found = triangles(export(path, str(tmp_path / "a.obj"), log=False))
    np.testing.assert_allclose(found[..., 2], found[..., 0] + 1)


@pytest.mark.parametrize("n", [1, 2])
def test_a_surface_file_reads_as_its_plotting_scripts_do(tmp_path, n):
    done = np.ones(Grid(*AXES[n]).shape, bool)
    done.reshape(-1)[3] = False
    values = {"loss": slanted, "accuracy": lambda *c: slanted(*c) / 2000}
    path = make(tmp_path / "a.h5", AXES[n], values, (Quantity("loss"), Quantity("accuracy")), done=done)
    with h5py.File(export(path, str(tmp_path / "surface.h5")), "r") as file:
        axes = [np.array(file[f"{axis}coordinates"][:]) for axis in "xy"[:n]]
        mesh = np.meshgrid(*axes)  # the first axis along columns, and so are the values
        loss, percent = np.array(file["train_loss"][:]), np.array(file["train_acc"][:])
        assert isinstance(file["dir_file"][()], bytes) and "format" not in file.attrs
    assert loss.shape == percent.shape == mesh[0].shape
    todo = loss == -1
    np.testing.assert_array_equal(todo, ~done.T)
    np.testing.assert_array_equal(loss[~todo], slanted(*mesh)[~todo])
    np.testing.assert_allclose(percent[~todo], slanted(*mesh)[~todo] / 20)
    assert (percent[todo] == -1).all()


def test_a_surface_file_has_training_and_test_values(tmp_path):
    quantities = tuple(Quantity(f"{part}_{name}") for part in ("train", "test") for name in ("loss", "accuracy"))
    values = {q.name: lambda x, k=k: 0 * x + k for k, q in enumerate(quantities)}
    path = make(tmp_path / "a.h5", AXES[1], values, quantities)
    with h5py.File(export(path, str(tmp_path / "surface.h5")), "r") as file:
        found = {name: file[name][0] for name in file if name.startswith("t")}
    assert found == {"train_loss": 0, "train_acc": 100, "test_loss": 2, "test_acc": 300}


@pytest.mark.parametrize("n", [2, 3])
def test_landscaper_pairs_every_value_with_its_place(tmp_path, n):
    """As its LossLandscape does: the coordinates of loss.flatten() are those of np.meshgrid(*coordinates)."""
    axes = (Axis(-1, 1, 4), Axis(-2, 3, 4), Axis(0, 5, 4))[:n]
    output = export(make(tmp_path / "a.h5", axes), str(tmp_path / "a.npz"), format="landscaper")
    with np.load(output) as arrays:
        loss, ranges = arrays["loss"], arrays["coordinates"]
    np.testing.assert_array_equal(ranges, np.stack(Grid(*axes).coordinates))
    np.testing.assert_array_equal(loss.flatten(), slanted(*(c.flatten() for c in np.meshgrid(*ranges))))


def test_what_a_format_cannot_hold_is_one_line_and_nothing_is_written(tmp_path):
    line, plane, cube = (make(tmp_path / f"{n}.h5", AXES[n]) for n in (1, 2, 3))
    row = make(tmp_path / "row.h5", (Axis(0, 0, 1), Axis(-1, 1, 3)))
    nan = make(tmp_path / "nan.h5", SQUARE, lambda x, y: np.nan * x)
    dots = make(tmp_path / "dots.h5", SQUARE, done=np.eye(5))
    far = make(tmp_path / "far.h5", (Axis(-1, 1e300, 3), Axis(-1, 1, 3)))
    other = make(tmp_path / "other.h5", SQUARE, quantities=(Quantity("sharpness"),))
    for path, name, options, said in (
        (line, "a.stl", {}, "needs two axes of two points or more; the file's grid is 5"),
        (cube, "a.obj", {}, "needs two axes"),
        (row, "a.stl", {}, "the file's grid is 1 x 3"),
        (nan, "a.stl", {}, "no finite value"),
        (dots, "a.stl", {}, "no three neighbours"),
        (far, "a.stl", {}, "coordinates go to 1e\\+300"),
        (plane, "a.stl", {"metric": "f1"}, "has no metric 'f1'"),
        (cube, "a.h5", {}, "one or two axes"),
        (other, "a.h5", {}, "has no 'loss'"),
        (line, "a.npz", {"format": "landscaper"}, "two or three axes of one length; the file's grid is 5"),
        (plane, "a.npz", {"format": "landscaper"}, "the file's grid is 5 x 4"),
        (dots, "a.npz", {"format": "landscaper"}, "20 of 25 have none"),
        (plane, "a.npz", {"format": "matlab"}, "unknown format 'matlab'; there are csv, npz"),
        (plane, "a.csv", {"format": "stl"}, "unknown suffix '.csv'.*: .stl"),
        (plane, "a.csv", {"metric": "loss"}, "takes all metrics"),
        (plane, "a.h5", {"log": True}, "only stl and obj have a height"),
    ):
        with pytest.raises(UserError, match=said):
            export(path, str(tmp_path / name), **options)
        assert not (tmp_path / name).exists()


def test_the_command_takes_the_format_and_says_what_is_wrong_in_one_line(tmp_path, capsys):
    path = make(tmp_path / "a.h5", SQUARE, lambda x, y: 10**x + 0 * y)
    for name, options in (("a.npz", ["--format", "landscaper"]), ("a.stl", ["--no-log"]), ("a.obj", ["--metric=loss"])):
        assert main(["export", path, "-o", str(tmp_path / name), *options]) == 0
        assert capsys.readouterr().out == f"{tmp_path / name}\n"
    with np.load(tmp_path / "a.npz") as arrays:
        assert set(arrays) == {"loss", "coordinates"}
    assert main(["export", make(tmp_path / "line.h5", AXES[1]), "-o", str(tmp_path / "b.stl")]) == 2
    error = capsys.readouterr().err
    assert "error: " in error and len(error.splitlines()) == 1 and not (tmp_path / "b.stl").exists()
