"""A stored landscape in other formats: CSV, NumPy, NetCDF4, VTKHDF."""

from __future__ import annotations

import csv
import json
from types import EllipsisType
from typing import Any

import h5py
import numpy as np

from ..errors import UserError
from ..store import layout
from ..store.layout import Quantity, Stored
from .field import components, ordered
from .output import checked, write_whole


def export(path: str, output: str) -> str:
    """Write the values of the file at path to output, in the format that its suffix names; returns output.

    .csv: a row a point, values of points not done empty. .npz: arrays by name. .nc: NetCDF4, needs xarray and
    h5netcdf. .vtkhdf: ImageData, as ParaView reads it. Points not done are NaN there. Raises UserError.
    """
    suffix = checked(path, output, tuple(_WRITERS))
    if suffix == ".nc":
        _need_xarray(output)
    stored = layout.read(path)
    if not stored.done.any():
        raise UserError(f"{path}: no point is done yet, so there is nothing to export")
    values = {quantity.name: _masked(path, stored, quantity) for quantity in ordered(stored)}
    values[layout.WALL_TIME] = _masked(path, stored, Quantity(layout.WALL_TIME))
    write_whole(output, lambda name: _WRITERS[suffix](name, stored, values))
    return output


def _masked(path: str, stored: Stored, quantity: Quantity) -> np.ndarray:
    """The quantity's values, NaN where the point is not done: a half-written point is no result."""
    values = layout.read_values(path, quantity.name)
    return np.where(stored.done.reshape(stored.done.shape + (1,) * len(quantity.shape)), values, np.nan)


def _csv(name: str, stored: Stored, values: dict[str, np.ndarray]) -> None:
    """x[,y[,z]], the scalars of every metric, done, wall_time: in full precision, in C order."""
    columns = [axis.reshape(-1) for axis in np.meshgrid(*stored.grid.coordinates, indexing="ij")]
    header = list(stored.grid.names)
    for quantity in ordered(stored):
        for title, index in components(quantity):
            place: tuple[EllipsisType | int, ...] = (..., *index)
            header.append(title)
            columns.append(values[quantity.name][place].reshape(-1))
    done = stored.done.reshape(-1)
    with open(name, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow([*header, layout.DONE, layout.WALL_TIME])
        k = len(stored.grid.names)
        for i, row in enumerate(zip(*columns, values[layout.WALL_TIME].reshape(-1), strict=True)):
            numbers = [repr(float(value)) for value in row] if done[i] else [repr(float(c)) for c in row[:k]]
            numbers += [""] * (len(row) - len(numbers))
            rows.writerow([*numbers[:-1], int(done[i]), numbers[-1]])


def _npz(name: str, stored: Stored, values: dict[str, np.ndarray]) -> None:
    """Axes, metrics, done, wall_time; the file's attributes as JSON text in ``attributes``."""
    arrays: dict[str, Any] = dict(zip(stored.grid.names, stored.grid.coordinates, strict=True)) | values
    arrays |= {layout.DONE: stored.done, "attributes": np.array(json.dumps(_about(stored), default=_json))}
    with open(name, "wb") as file:
        np.savez_compressed(file, **arrays)


def _nc(name: str, stored: Stored, values: dict[str, np.ndarray]) -> None:
    """A Dataset over the axes, with the file's attributes."""
    import xarray

    dims = {quantity.name: stored.grid.names + quantity.dims for quantity in stored.quantities}
    variables: dict[str, Any] = {key: (dims.get(key, stored.grid.names), array) for key, array in values.items()}
    variables[layout.WALL_TIME] += ({"units": "s"},)
    variables[layout.DONE] = (stored.grid.names, stored.done.astype(np.uint8))
    axes = dict(zip(stored.grid.names, stored.grid.coordinates, strict=True))
    about = {key: int(value) if isinstance(value, bool) else value for key, value in _about(stored).items()}
    about = {k: list(v) if isinstance(v, np.ndarray) and v.dtype == object else v for k, v in about.items()}
    xarray.Dataset(variables, axes, about).to_netcdf(name, engine="h5netcdf")


def _need_xarray(output: str) -> None:
    try:
        import h5netcdf  # noqa: F401
        import xarray  # noqa: F401
    except ImportError as error:
        raise UserError(f"{output}: NetCDF needs {error.name}: pip install xarray h5netcdf") from None


def _vtkhdf(name: str, stored: Stored, values: dict[str, np.ndarray]) -> None:
    """ImageData with x as VTK's fastest axis, so that it needs no Direction; trailing axes become components.

    VTK counts only the axes that have more than one point, and wants arrays of as many dimensions.
    """
    coordinates = [*stored.grid.coordinates, np.zeros(1), np.zeros(1)][:3]
    long = [n for n in stored.grid.shape if n > 1] or [1]
    with h5py.File(name, "w", libver=layout.LIBVER, locking=False) as file:
        group = file.create_group("VTKHDF")
        group.attrs["Version"] = np.array([1, 0], dtype="i8")
        group.attrs.create("Type", b"ImageData", dtype=h5py.string_dtype("ascii", 9))
        group.attrs["WholeExtent"] = np.array([e for c in coordinates for e in (0, len(c) - 1)], dtype="i8")
        group.attrs["Origin"] = np.array([c[0] for c in coordinates])
        group.attrs["Spacing"] = np.array([(c[-1] - c[0]) / (len(c) - 1) if len(c) > 1 else 1.0 for c in coordinates])
        group.attrs["Direction"] = np.eye(3).reshape(-1)
        points = group.create_group("PointData")
        for key, array in (values | {layout.DONE: stored.done.astype(np.uint8)}).items():
            several = array.reshape(*long, -1)
            reverse = several.transpose(*range(len(long))[::-1], len(long))
            points[key] = reverse if reverse.shape[-1] > 1 else reverse[..., 0]
        file.attrs.update(_about(stored))


def _about(stored: Stored) -> dict[str, Any]:
    """The file's attributes, less those that would make the export look like one of this program's files."""
    return {key: value for key, value in stored.attributes.items() if key not in ("format", "format_version")}


def _json(value: object) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else str(value)


_WRITERS = {".csv": _csv, ".npz": _npz, ".nc": _nc, ".vtkhdf": _vtkhdf}
