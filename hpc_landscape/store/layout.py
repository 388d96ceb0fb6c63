"""The file: one HDF5 file, complete by itself, whose structure never changes after its first moment.

Every dataset is contiguous and allocated when it is made, so that later only raw values change and a killed writer
cannot break the structure. The format's low version bound is HDF5 1.8's: checksummed metadata, no consistency flag.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t

from ..errors import UserError, reason
from ..grid import NAMES, SETS, Axis, Grid
from .lock import exclusive, settle
from .names import load_arrays, save_arrays
from .probe import damaged, opened, probe
from .refinement import SUMMARY, Summary, described
from .refinement import estimates as estimates_of
from .space import give_back, reserve
from .temporary import whole
from .vtk import add_vtk

FORMAT = "hpc_landscape"
FORMAT_VERSION = 3  # of an ensemble; 1 had directions/x, which xarray cannot tell from the coordinate x above it
WITHOUT_SETS = 2  # of any other file: versions of this program that know no ensembles read it
LIBVER = ("v108", "v108")
DONE, WALL_TIME, FAILED = "done", "wall_time", "failed"
ALONG = "directions/along_{}"  # an axis's direction: a group of arrays by parameter name
MIXED = "runs/mixed"  # 1 once runs on other processors, or by other kernels, have written points
NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable."  # how NetCDF-4 calls such a scale
SLACK = 2**16  # bytes of metadata per file, and a sixteenth of it per dataset
MOST_DENSE = 1100  # bytes of an array for each of its file: gzip makes at most 1032 of one


@dataclass(frozen=True)
class Quantity:
    """A value stored for every point: its name, the shape of one value, and a name for each dimension of that shape."""

    name: str
    shape: tuple[int, ...] = ()
    dims: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trajectory:
    """Checkpoints projected onto the grid's space, in their order: coordinates (n, axes), what is left (n,), labels.

    paths: the number of the path that each is on, where there are several.
    """

    coordinates: np.ndarray
    distances: np.ndarray
    labels: list[str]
    paths: np.ndarray | None = None


# What is in every file: no metric, and none of its dimensions, can be called so.
RESERVED = {*NAMES, SETS, DONE, WALL_TIME, FAILED, "directions", "model", "trajectory", "VTKHDF", "runs"}


def create(
    path: str,
    grid: Grid,
    quantities: Iterable[Quantity],
    attributes: Mapping[str, Any],
    directions: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    model: Mapping[str, np.ndarray] | None = None,
    trajectory: Trajectory | None = None,
    refined: Iterable[str] = (),
    fill: Callable[[h5py.File], None] | None = None,
) -> None:
    """Lay out a new file under a temporary name, then give it its name: path is whole, or as it was before.

    directions: axis name -> parameter name -> array; model: parameter or buffer name -> array. refined: the metrics
    of which there are estimates. fill: puts in the values that are known.
    """
    saved = [*(directions or {}).values(), model or {}]
    estimates = [Quantity(name) for name in estimates_of(refined)]
    space = _space(
        grid,
        [*(quantities := list(quantities)), *estimates],
        [a for arrays in saved for a in arrays.values()],
        attributes,
    )
    with whole(path, lambda descriptor: settle(path, descriptor)) as (name, descriptor):
        reserve(descriptor, space)
        with h5py.File(name, "w", libver=LIBVER, locking=False) as file:  # which cuts it to nothing first
            reserve(descriptor, space)
            version = WITHOUT_SETS if grid.sets is None else FORMAT_VERSION
            file.attrs.update({"format": FORMAT, "format_version": version, **attributes})
            _lay_out(file, grid, quantities, estimates)
            for axis, arrays in (directions or {}).items():
                _save_arrays(file, ALONG.format(axis), arrays)
            if model:
                _save_arrays(file, "model", model)
            if trajectory is not None:
                columns = dict(zip(grid.names, trajectory.coordinates.T, strict=True))
                labels = np.array(trajectory.labels, dtype=h5py.string_dtype())
                if trajectory.paths is not None:
                    columns["path"] = trajectory.paths
                group = file.create_group("trajectory")
                save_arrays(group, columns | {"distance": trajectory.distances, "label": labels})
                for dataset in list(group.values()):  # else a reader takes x for the grid's axis of this name
                    _attach(group, dataset, ("checkpoint",))
                for axis in grid.names:  # once more: in an xarray.DataTree trajectory/x is the x above it
                    group[f"along_{axis}"] = group[axis]
            if fill is not None:
                fill(file)
        give_back(descriptor)
        sync(name)


def _space(grid: Grid, quantities: list[Quantity], arrays: list[np.ndarray], attributes: Mapping[str, Any]) -> int:
    """Bytes that a file will take, or a little more."""
    values = grid.size * (8 * (1 + sum(math.prod(q.shape) for q in quantities)) + 2)
    texts = sum(len(str(value)) for value in attributes.values())
    datasets = len(arrays) + len(quantities) + 16
    return values + sum(np.asarray(a).nbytes for a in arrays) + texts + SLACK + datasets * SLACK // 16


def _lay_out(file: h5py.File, grid: Grid, quantities: list[Quantity], estimates: list[Quantity]) -> None:
    for name, values in grid.scales.items():
        file.create_dataset(name, data=values, track_times=False).make_scale(name)
    for quantity in [*quantities, *estimates]:
        dataset = _allocate(file, quantity.name, grid.shape + quantity.shape, np.float64, np.nan)
        _attach(file, dataset, grid.dims + quantity.dims)
    wall_time = _allocate(file, WALL_TIME, grid.shape, np.float64, np.nan)
    wall_time.attrs["units"] = "s"
    wall_time.attrs["long_name"] = "time that the point took"
    done = _allocate(file, DONE, grid.shape, np.uint8, 0)
    done.attrs["long_name"] = "1 once every metric of the point is written"
    failed = _allocate(file, FAILED, grid.shape, np.uint8, 0)
    failed.attrs["long_name"] = "1 where a metric raised an error, and the values are NaN (--on_error record)"
    file.create_group("runs")
    _size_axes(file, _allocate(file, MIXED, (1,), np.uint8, 0))
    if estimates:
        _size_axes(file, _allocate(file, SUMMARY, (len(estimates) // 2, len(Summary._fields)), np.float64, np.nan))
        file[SUMMARY].attrs["long_name"] = ", ".join(Summary._fields)
    for dataset in (wall_time, done, failed):
        _attach(file, dataset, grid.dims)
    add_vtk(file, grid, [q.name for q in [*quantities, *estimates] if len(q.shape) < 2] + [WALL_TIME, DONE, FAILED])


def _allocate(file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any, fill: float) -> h5py.Dataset:
    """A contiguous dataset whose space is taken, and filled, now."""
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_layout(h5d.CONTIGUOUS)
    plist.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5d.FILL_TIME_ALLOC)
    plist.set_fill_value(np.array(fill, dtype))
    plist.set_obj_track_times(False)
    kind = h5t.py_create(np.dtype(dtype), logical=True)
    return h5py.Dataset(h5d.create(file.id, name.encode(), kind, h5s.create_simple(shape), plist))


def _attach(file: h5py.Group, dataset: h5py.Dataset, dims: tuple[str, ...]) -> None:
    """Give every axis its scale: xarray rejects the whole file where one has none."""
    for axis, name in enumerate(dims):
        if name not in file:
            scale = file.create_dataset(name, data=np.arange(dataset.shape[axis]), track_times=False)
            scale.make_scale(name)
        if file[name].shape != dataset.shape[axis : axis + 1]:
            raise ValueError(f"{dataset.name}: its dimension '{name}' has another length than one of the same name")
        dataset.dims[axis].attach_scale(file[name])
        dataset.dims[axis].label = name


def _save_arrays(file: h5py.File, name: str, arrays: Mapping[str, np.ndarray]) -> None:
    """A group of arrays whose axes say no more than how long they are."""
    group = file.create_group(name)
    save_arrays(group, arrays)
    for dataset in group.values():
        _size_axes(file, dataset)


def _size_axes(file: h5py.File, dataset: h5py.Dataset) -> None:
    """Give every axis a scale without values, ``size-64``, as NetCDF has for a dimension that is no variable.

    Not by HDF5's own function: it notes in the scale, too, what it belongs to, which takes the square of their number.
    """
    if not dataset.ndim:
        return
    scales = np.empty(dataset.ndim, object)
    for axis, n in enumerate(dataset.shape):
        before = dataset.shape[:axis].count(n)  # no two axes of an array may have the same scale
        name = f"size-{n}-{before + 1}" if before else f"size-{n}"  # no identifier, hence no metric
        if name not in file:
            file.create_dataset(name, (n,), np.uint8, track_times=False).make_scale(NO_VARIABLE)
        scales[axis] = np.array([file[name].ref], h5py.ref_dtype)
    dataset.attrs.create("DIMENSION_LIST", scales, dtype=h5py.vlen_dtype(h5py.ref_dtype))


def write(dataset: h5py.Dataset, grid_shape: tuple[int, ...], points: np.ndarray, values: np.ndarray) -> None:
    """Write values[i] at the flat index points[i], in one HDF5 call where a value is a single number."""
    if not len(points):
        return
    if dataset.shape == grid_shape:
        where = np.stack(np.unravel_index(points, grid_shape), axis=1)
        space = dataset.id.get_space()
        space.select_elements(where)
        dataset.id.write(h5s.create_simple((len(points),)), space, np.ascontiguousarray(values, dataset.dtype))
        return
    for point, value in zip(points, values, strict=True):
        dataset[np.unravel_index(point, grid_shape)] = value


def save(
    path: str,
    grid: Grid,
    values: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any],
    directions: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    trajectory: Trajectory | None = None,
) -> None:
    """A complete file of values that are known: name -> array of the grid's shape and its own after it."""
    k = len(grid.dims)
    if bad := [name for name in values if name in RESERVED or not name.isidentifier()]:
        raise UserError(f"{path}: '{bad[0]}' cannot be the name of values in the file; take another")
    if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise UserError(f"{path}: there is no directory {os.path.dirname(os.path.abspath(path))}")
    names = {name: tuple(f"{name}_{i}" for i in range(array.ndim - k)) for name, array in values.items()}
    quantities = [Quantity(name, values[name].shape[k:], dims) for name, dims in names.items()]

    def fill(file: h5py.File) -> None:
        for name, array in values.items():
            file[name][...] = array
        file[DONE][...] = 1

    with exclusive(path):
        create(path, grid, quantities, attributes, directions, trajectory=trajectory, fill=fill)


def sync(path: str) -> None:
    """Bring the file's bytes to the disk itself: HDF5's flush stops at the operating system."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Stored:
    """What a file says of itself, without its values."""

    attributes: dict[str, Any]
    grid: Grid
    quantities: tuple[Quantity, ...]
    done: np.ndarray  # bool, the grid's shape
    has_directions: bool
    has_model: bool
    has_trajectory: bool = False
    failed: np.ndarray | None = None  # bool, the grid's shape; None in a file without
    refined: Mapping[str, Summary] = field(default_factory=dict)  # of metrics that are estimated where not done

    @property
    def plane(self) -> Stored:
        """Of an ensemble, what one set's grid has of all sets: done where any is, failed where any has."""
        if self.grid.sets is None:
            return self
        failed = None if self.failed is None else self.failed.max(axis=0)
        return replace(self, grid=self.grid.plane, done=self.done.max(axis=0), failed=failed)

    @property
    def unfinished(self) -> np.ndarray:
        """Flat indices of the points still to do."""
        return np.flatnonzero(~self.done.reshape(-1))

    @property
    def complete(self) -> bool:
        """Whether all points are done, or all that a refinement has wanted."""
        return bool(self.done.all()) or any(summary.ended == 1 for summary in self.refined.values())


def read(path: str, probe_seconds: float | None = None) -> Stored:
    """What the file at path holds; UserError where it is missing, foreign or damaged. Never writes."""
    probe(path, probe_seconds)
    try:
        with opened(path) as file:
            if not isinstance(form := _plain(file.attrs.get("format")), str) or form != FORMAT:
                raise UserError(f"{path} is an HDF5 file but not one of this program's; it is left as it is")
            if not isinstance(version := _plain(file.attrs.get("format_version", 0)), int):
                raise ValueError("its format_version is no whole number")
            if version > FORMAT_VERSION:
                raise UserError(f"{path} was written by a newer version of this program; update it to read the file")
            return _describe(file)
    except UserError:
        raise
    except Exception as error:  # what a file holds that this program did not write may be anything
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{damaged(path)}: {said}") from None


def _describe(file: h5py.File) -> Stored:
    names = [name for name in ("x", "y", "z") if name in file]
    each = [name for name in (DONE, WALL_TIME, FAILED) if name != FAILED or name in file]  # of the grid's shape
    sets = [SETS] if SETS in file else []
    _check_datasets(file, [*sets, *names, *each])
    values = [file[name][()] for name in names]
    grid = Grid(*(Axis(float(v[0]), float(v[-1]), len(v)) for v in values), sets=file[SETS].size if sets else None)
    grid.coordinates = tuple(values)  # as stored, to the bit
    done = file[DONE][()].astype(bool)
    for name in each:
        if file[name].shape != grid.shape:
            raise ValueError(f"'{name}' has shape {file[name].shape}, the axes say {grid.shape}")
    attributes = {key: _plain(value) for key, value in file.attrs.items()}
    refined = described(file, grid.shape, attributes)
    others = {DONE, WALL_TIME, FAILED, *estimates_of(refined)}
    quantities = tuple(
        Quantity(name, dataset.shape[len(grid.dims) :], tuple(dim.label for dim in dataset.dims)[len(grid.dims) :])
        for name, dataset in _datasets(file)
        if name not in others
        and not dataset.is_scale
        and dataset.dtype.kind in "fiu"
        and dataset.shape[: len(grid.dims)] == grid.shape
    )
    failed = file[FAILED][()].astype(bool) if FAILED in file else None
    has = {name: isinstance(_find(file, name), h5py.Group) for name in ("directions", "model", "trajectory")}
    parts = has["directions"], has["model"], has["trajectory"]
    return Stored(attributes, grid, quantities, done, *parts, failed, refined)


def _check_datasets(file: h5py.File, names: Iterable[str]) -> None:
    """ValueError where one of these is no array of numbers, or there is one larger than any compression explains."""
    size = file.id.get_filesize()
    for name, dataset in _datasets(file):
        if dataset.nbytes > MOST_DENSE * size:
            raise ValueError(f"'{name}' has {dataset.nbytes} bytes, in a file of {size}")
    for name in names:
        if not isinstance(file[name], h5py.Dataset) or file[name].dtype.kind not in "fiu" or not file[name].size:
            raise ValueError(f"'{name}' is no array of numbers")
        if name in NAMES and not _is_axis(file[name][()]):
            raise ValueError(f"the values of '{name}' are no axis")


def _is_axis(values: np.ndarray) -> bool:
    return values.ndim == 1 and bool(np.isfinite(values).all() and (np.diff(values) > 0).all())


def _datasets(group: h5py.Group) -> list[tuple[str, h5py.Dataset]]:
    """The group's arrays, by name."""
    found = ((name, _find(group, name)) for name in group)
    return [(name, thing) for name, thing in found if isinstance(thing, h5py.Dataset)]


def _find(group: h5py.Group, name: str) -> Any:
    """What the group holds by that name; None for nothing, or a link that leads nowhere."""
    try:
        return group.get(name)
    except (OSError, RuntimeError):
        return None


def _plain(value: object) -> Any:
    """An attribute as Python's own text or number, or an array of such; text where it is anything else."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, (str, int, float, np.ndarray)) else str(value)


def read_values(path: str, name: str) -> np.ndarray:
    """One quantity, of the grid's shape and its own; UserError where the file has none of that name."""
    with opened(path) as file:
        if name not in file or not isinstance(file[name], h5py.Dataset):
            have = sorted(name for name, dataset in _datasets(file) if not dataset.is_scale)
            raise UserError(f"{path} has no '{name}'; it has {', '.join(have)}")
        try:
            return file[name][()]
        except OSError as error:
            raise UserError(f"{damaged(path)}: '{name}': {reason(error)}") from None


def read_arrays(path: str, group: str) -> dict[str, np.ndarray]:
    """The arrays of one group (``model``, ``directions/along_x``), by name; KeyError where there is no such group."""
    with opened(path) as file:
        if not isinstance(found := _find(file, group), h5py.Group):
            raise KeyError(f"no group '{group}'")
        return load_arrays(found)
