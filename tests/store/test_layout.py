"""The file: how it is laid out, what writing puts where, and what reading a damaged one does."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fault_table
import h5py
import numpy as np
import pytest
from h5py import h5d

from hpc_landscape.errors import UserError
from hpc_landscape.grid import Axis, Grid
from hpc_landscape.store import layout, probe
from hpc_landscape.store.layout import Quantity
from hpc_landscape.store.raw import RawFile

pytestmark = pytest.mark.mpi_stack

GRIDS = {
    1: Grid(Axis(-1, 1, 7)),
    2: Grid(Axis(-1, 1, 5), Axis(-2, 2.5, 4)),
    3: Grid(Axis(-1, 1, 3), Axis(-1, 1, 4), Axis(-1, 1, 2)),
}
QUANTITIES = [
    Quantity("loss"),
    Quantity("accuracy"),
    Quantity("eigenvalues", (3,), ("which",)),
    Quantity("matrix", (2, 3), ("row", "column")),
]
ATTRIBUTES = {"settings": "seed: 0\nproblem: größe\n", "seed": 0, "sha256_model": "ab" * 32, "cosine": 0.25}
DIRECTIONS = {
    "x": {"conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "a": np.float32(3)},
    "y": {"conv.weight": -np.arange(24, dtype=np.float32).reshape(2, 3, 4), "a": np.float32(4)},
}
MODEL = {"b": np.arange(5), "a": np.ones((2, 2), np.float16)}


def created(path, dimensions: int = 2, quantities=QUANTITIES, **more) -> str:
    layout.create(str(path), GRIDS[dimensions], quantities, ATTRIBUTES, **more)
    return str(path)


def opened(path) -> h5py.File:
    return h5py.File(path, "r", locking=False)


def datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    found = {}
    file.visititems(lambda name, thing: found.update({name: thing}) if isinstance(thing, h5py.Dataset) else None)
    return found


# Laid out


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_every_value_has_its_place_from_the_first_moment(tmp_path, dimensions):
    path = created(tmp_path / "a.h5", dimensions)
    size = os.path.getsize(path)
    with opened(path) as file:
        for name in [q.name for q in QUANTITIES] + ["done", "failed", "wall_time"]:
            dataset = file[name]
            plist = dataset.id.get_create_plist()
            assert plist.get_layout() == h5d.CONTIGUOUS and dataset.chunks is None and dataset.compression is None
            assert plist.get_alloc_time() == h5d.ALLOC_TIME_EARLY
            assert plist.get_fill_time() == h5d.FILL_TIME_ALLOC
            assert dataset.id.get_space_status() == h5d.SPACE_STATUS_ALLOCATED
            assert dataset.id.get_storage_size() == dataset.size * dataset.dtype.itemsize
            assert 0 < dataset.id.get_offset() <= size - dataset.id.get_storage_size()
            assert dataset.maxshape == dataset.shape
            assert dataset.dtype == (np.uint8 if name in ("done", "failed") else np.float64)
            values = dataset[()]
            assert (values == 0).all() if name in ("done", "failed") else np.isnan(values).all()
        shape = GRIDS[dimensions].shape
        assert file["loss"].shape == file["done"].shape == file["wall_time"].shape == shape
        assert file["matrix"].shape == (*shape, 2, 3) and file["wall_time"].attrs["units"] == "s"
    # later writes change raw values alone: the size stays
    with h5py.File(path, "r+", libver=layout.LIBVER, locking=False) as file:
        for name in ("loss", "done", "matrix"):
            file[name][()] = 1
    assert os.path.getsize(path) == size


def test_the_format_has_checksums_and_no_consistency_flag(tmp_path):
    content = Path(created(tmp_path / "a.h5")).read_bytes()
    assert content[:8] == b"\x89HDF\r\n\x1a\n"
    assert content[8] == 2 and content[11] == 0  # superblock version 2: checksummed; 3 has the flag


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_every_axis_has_its_scale(tmp_path, dimensions):
    grid = GRIDS[dimensions]
    with opened(created(tmp_path / "a.h5", dimensions)) as file:
        for name, values in zip(grid.names, grid.coordinates, strict=True):
            assert file[name].is_scale and file[name][()].tobytes() == values.tobytes()
        for quantity in QUANTITIES:
            dims = file[quantity.name].dims
            labels = grid.names + quantity.dims
            assert tuple(d.label for d in dims) == labels
            assert [list(d.keys()) for d in dims] == [[label] for label in labels]
            assert all(len(d[0]) == n for d, n in zip(dims, file[quantity.name].shape, strict=True))


def test_attributes_directions_and_model_come_back(tmp_path):
    path = created(tmp_path / "a.h5", directions=DIRECTIONS, model=MODEL)
    stored = layout.read(path)
    assert {k: stored.attributes[k] for k in ATTRIBUTES} == ATTRIBUTES
    assert stored.attributes["format"] == "hpc_landscape" and stored.attributes["format_version"] == 2
    assert all(type(v) in (str, int, float) for v in stored.attributes.values())
    assert stored.has_directions and stored.has_model
    saved = {"model": MODEL} | {f"directions/along_{axis}": arrays for axis, arrays in DIRECTIONS.items()}
    for group, arrays in saved.items():
        back = layout.read_arrays(path, group)
        assert set(back) == set(arrays)
        for name, array in arrays.items():
            assert back[name].dtype == array.dtype and back[name].tobytes() == array.tobytes()
    bare = layout.read(created(tmp_path / "b.h5"))
    assert not bare.has_directions and not bare.has_model


def test_what_has_no_values_does_not_keep_the_writer_from_its_places(tmp_path):
    """The axes of saved arrays have scales that take no space."""
    path = created(tmp_path / "a.h5", directions=DIRECTIONS, model=MODEL)
    file = RawFile(path)
    file.write("done", np.array([1]), np.array([1]))
    file.close()
    assert layout.read(path).done.reshape(-1).nonzero()[0].tolist() == [1]


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_read_tells_what_was_laid_out(tmp_path, dimensions):
    path = created(tmp_path / "a.h5", dimensions)
    stored, grid = layout.read(path), GRIDS[dimensions]
    assert [a.tobytes() for a in stored.grid.coordinates] == [a.tobytes() for a in grid.coordinates]
    assert stored.grid.shape == grid.shape and stored.grid.names == grid.names
    assert sorted(stored.quantities, key=lambda q: q.name) == sorted(QUANTITIES, key=lambda q: q.name)
    assert stored.unfinished.tolist() == list(range(grid.size))
    points = np.array([1, grid.size - 1])
    with h5py.File(path, "r+", libver=layout.LIBVER, locking=False) as file:
        layout.write(file["done"], grid.shape, points, np.ones(2))
    assert layout.read(path).unfinished.tolist() == [i for i in range(grid.size) if i not in points]
    assert layout.read_values(path, "done").ravel()[points].tolist() == [1, 1]


def test_read_values_of_a_quantity_that_is_not_there(tmp_path):
    with pytest.raises(
        UserError, match="has no 'los'; it has accuracy, done, eigenvalues, failed, loss, matrix, wall_time"
    ):
        layout.read_values(created(tmp_path / "a.h5"), "los")


# Written


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("quantity", QUANTITIES, ids=lambda q: q.name)
def test_write_is_numpy_s_fancy_assignment(tmp_path, dimensions, quantity):
    path, grid = created(tmp_path / "a.h5", dimensions, [quantity]), GRIDS[dimensions]
    draw = np.random.default_rng(0)
    expected = np.full(grid.shape + quantity.shape, np.nan)
    with h5py.File(path, "r+", libver=layout.LIBVER, locking=False) as file:
        for n in (1, 2, grid.size // 2, grid.size):
            points = draw.permutation(grid.size)[:n]  # in any order
            values = draw.standard_normal((n, *quantity.shape))
            values.flat[0] = np.inf
            layout.write(file[quantity.name], grid.shape, points, values)
            expected.reshape(grid.size, *quantity.shape)[points] = values
            assert file[quantity.name][()].tobytes() == expected.tobytes()
    assert layout.read_values(path, quantity.name).tobytes() == expected.tobytes()


def test_write_of_other_dtypes(tmp_path):
    path = created(tmp_path / "a.h5")
    with h5py.File(path, "r+", libver=layout.LIBVER, locking=False) as file:
        layout.write(file["loss"], (5, 4), np.array([3]), np.array([0.1], np.float32))
        layout.write(file["done"], (5, 4), np.array([3, 4]), np.ones(2))
        layout.write(file["loss"], (5, 4), np.array([19, 0]), np.arange(8.0)[::4])  # a strided view
        assert file["loss"][0, 3] == np.float32(0.1) and file["done"][()].sum() == 2
        assert file["loss"][4, 3] == 0 and file["loss"][0, 0] == 4


# Atomic


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("where", ["_lay_out", "save_arrays", "sync"])
def test_create_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, where, error):
    path = tmp_path / "a.h5"
    path.write_bytes(b"what was there")

    def fails(*arguments):
        raise error("midway")

    monkeypatch.setattr(layout, where, fails)
    with pytest.raises(error):
        created(path, model=MODEL)
    assert path.read_bytes() == b"what was there" and names(tmp_path) == ["a.h5"]


def test_create_replaces_the_old_file(tmp_path):
    path = tmp_path / "größe 1.h5"
    path.write_bytes(b"what was there")
    assert layout.read(created(path)).grid.shape == (5, 4) and names(tmp_path) == ["größe 1.h5"]


def test_create_where_one_may_not(tmp_path):
    with pytest.raises(OSError):
        created(tmp_path / "none" / "a.h5")


# Files that are not ours, or damaged: never written to


def refused(path) -> str:
    with pytest.raises(UserError) as error:
        layout.read(str(path))
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


def test_not_ours(tmp_path):
    assert "no such file" in refused(tmp_path / "none.h5")
    assert "is a directory" in refused(tmp_path)
    for name, content in {"empty": b"", "text": b"hello\n" * 100, "start": b"\x89HDF"}.items():
        (tmp_path / name).write_bytes(content)
        assert "is not an HDF5 file" in refused(tmp_path / name)
        assert (tmp_path / name).read_bytes() == content
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["loss"] = np.zeros((3, 3))
    before = (tmp_path / "foreign.h5").read_bytes()
    assert "not one of this program's" in refused(tmp_path / "foreign.h5")
    assert (tmp_path / "foreign.h5").read_bytes() == before


def test_a_newer_version(tmp_path):
    path = created(tmp_path / "a.h5")
    with h5py.File(path, "r+", locking=False) as file:
        file.attrs["format_version"] = 99
    assert "newer version" in refused(path)


@pytest.mark.parametrize("missing", ["done", "x", "y"])
def test_a_file_that_lacks_a_part(tmp_path, missing):
    path = created(tmp_path / "a.h5")
    with h5py.File(path, "r+", libver=layout.LIBVER, locking=False) as file:
        del file[missing]
    assert "damaged" in refused(path)


def test_reading_leaves_the_file_alone(tmp_path):
    path = created(tmp_path / "a.h5")
    os.utime(path, (1e9, 1e9))
    os.chmod(path, 0o444)
    before = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    layout.read(path)
    layout.read_values(path, "loss")
    assert os.stat(path).st_mtime == 1e9 and hashlib.sha256(Path(path).read_bytes()).hexdigest() == before


def test_a_file_in_use_is_read(tmp_path):
    path = created(tmp_path / "a.h5")
    with h5py.File(path, "r+", libver=layout.LIBVER, locking=False) as file:
        layout.write(file["done"], (5, 4), np.array([0]), np.ones(1))
        file.flush()
        assert len(layout.read(path).unfinished) == 19


def filled(path) -> str:
    """A file with values in it, and all of its parts."""
    created(path, directions=DIRECTIONS, model=MODEL)
    with h5py.File(path, "r+", libver=layout.LIBVER, locking=False) as file:
        file["loss"][()] = np.arange(20.0).reshape(5, 4)
        file["done"][:3] = 1
    return str(path)


def same(a: layout.Stored, b: layout.Stored) -> bool:
    return (
        a.grid.names == b.grid.names
        and [x.tobytes() for x in a.grid.coordinates] == [x.tobytes() for x in b.grid.coordinates]
        and [(q.name, q.shape) for q in a.quantities] == [(q.name, q.shape) for q in b.quantities]
        and a.done.tobytes() == b.done.tobytes()
        and (a.has_directions, a.has_model) == (b.has_directions, b.has_model)
        and {k: v for k, v in a.attributes.items() if not isinstance(v, str)}
        == {k: v for k, v in b.attributes.items() if not isinstance(v, str)}
    )


def outcome(path: str, content: bytes, whole: layout.Stored) -> str:
    """Write a damaged file, read it: "refused" or "right", anything else is a failure."""
    with open(path, "wb") as file:
        file.write(content)
    os.utime(path, (1e9, 1e9))
    try:
        found = layout.read(path, 20)
    except UserError as error:
        assert "\n" not in str(error)
        result = "refused"
    else:
        result = "right" if same(found, whole) else "wrong"
    assert os.stat(path).st_mtime == 1e9
    with open(path, "rb") as file:
        assert file.read() == content
    return result


def outcomes(folder, contents: list[bytes], whole: layout.Stored) -> list[str]:
    with ThreadPoolExecutor(2) as pool:
        paths = [str(folder / f"damaged{i}.h5") for i in range(len(contents))]
        return list(pool.map(outcome, paths, contents, [whole] * len(contents)))


def test_a_file_cut_short(tmp_path):
    path = filled(tmp_path / "a.h5")
    whole, content = layout.read(path), Path(path).read_bytes()
    lengths = [8, 48, 100, len(content) - 1, *np.random.default_rng(0).integers(1, len(content) - 1, 46)]
    found = outcomes(tmp_path, [content[:n] for n in lengths], whole)
    assert set(found) == {"refused"}
    fault_table.record("a file cut short at a random length", tries=len(found), then="refused; the file is as it was")


def test_a_file_with_changed_metadata(tmp_path):
    """Values are not metadata: those bytes are left out. So are texts: HDF5's heap for them has no checksum."""
    path = filled(tmp_path / "a.h5")
    whole, content = layout.read(path), Path(path).read_bytes()
    raw = np.zeros(len(content), bool)
    with opened(path) as file:
        for dataset in datasets(file).values():
            start, n = dataset.id.get_offset(), dataset.id.get_storage_size()
            if start is not None:
                raw[start : start + n] = True
    candidates = np.flatnonzero(~raw)
    draw = np.random.default_rng(0)
    damaged = []
    for _ in range(50):
        copy = bytearray(content)
        for i in draw.choice(candidates, 4, replace=False):
            copy[i] ^= draw.integers(1, 256)
        damaged.append(bytes(copy))
    found = outcomes(tmp_path, damaged, whole)
    assert "wrong" not in found and found.count("refused") > 8
    then = "refused, or read as it was; the file is as it was"
    fault_table.record("4 random bytes of a file's metadata changed", tries=len(found), then=then)


def _slow(seconds):
    """As the file's reader, where each thing takes so long."""
    look = "def look(name, thing):\n    go_on()"
    assert look in probe._PROBE
    return probe._PROBE.replace(look, f"{look}; import time; time.sleep({seconds})")


def test_many_things_on_a_slow_disk(tmp_path, monkeypatch):
    """They take longer in all than one may: that is no damage."""
    path = created(tmp_path / "a.h5")
    with h5py.File(path, "r+", locking=False) as file:
        for i in range(20):
            file.create_group(f"g{i}")
    monkeypatch.setattr(probe, "_PROBE", _slow(0.4))  # times 20: beside other work the reader itself takes seconds
    assert layout.read(path, 6).done.size


def test_a_file_whose_reading_does_not_end(tmp_path, monkeypatch):
    path = created(tmp_path / "a.h5")
    monkeypatch.setattr(probe, "_PROBE", _slow(60))
    with pytest.raises(UserError, match="did not end in 0.2 s"):
        layout.read(path, 0.2)


def test_a_file_that_kills_its_reader(tmp_path, monkeypatch):
    path = created(tmp_path / "a.h5")
    monkeypatch.setattr(probe, "_PROBE", "import os; os.abort()")
    assert "the reader died (-6)" in refused(path)
