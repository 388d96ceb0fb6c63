"""A stored landscape in other formats."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable
from types import EllipsisType
from typing import Any

import h5py
import numpy as np

from ..errors import UserError
from ..store import layout
from ..store.layout import Stored
from ..store.refinement import estimates
from . import mesh, peers
from .field import SUMMARIES, components, default_metric, ordered, read_field, summarized
from .output import checked, write_whole
from .values import Values, all_values, as_dataset, need_xarray


def export(
    path: str, output: str, format: str | None = None, metric: str | None = None, log: bool | None = None
) -> str:
    """Write the file at path to output in another format; returns output.

    Args:
        path: a landscape file; of an unfinished one, the points that are done.
        output: the new file.
        format: a name in FORMATS. Default: the first that has output's suffix.
            All metrics, NaN where a point is not done: csv (a row a point, no values instead), npz (arrays by name),
            nc (NetCDF4; needs xarray and h5netcdf), vtkhdf (ImageData, as ParaView reads it). The surface over a plane:
            stl (binary), obj. Of other programs: loss-landscape (the surface file of tomgoldstein/loss-landscape),
            landscaper (the npz of Landscaper). Of an ensemble csv, npz and nc have all sets and each point's summaries,
            the others its summaries or its mean.
        metric: for stl, obj and landscaper. Default: the loss where there is one, else the first.
        log: for stl and obj: the height is the metric's logarithm. None decides by the values.

    Raises:
        UserError: where the file, the output, or what the format cannot hold is at fault; nothing is written then.
    """
    name = _format(path, output, format)
    _check_options(name, metric, log)
    if name == "nc":
        need_xarray(output)
    stored = layout.read(path)
    if not stored.done.any():
        raise UserError(f"{path}: no point is done yet, so there is nothing to export")
    write_whole(output, _writer(name, path, stored, metric, log))
    return output


def _format(path: str, output: str, asked: str | None) -> str:
    """The format's name; UserError where it is unknown, or output cannot be written or has another suffix."""
    if asked is not None and asked not in FORMATS:
        raise UserError(f"unknown format '{asked}'; there are {', '.join(FORMATS)}")
    suffix = checked(path, output, (FORMATS[asked],) if asked else tuple(dict.fromkeys(FORMATS.values())))
    return asked or next(name for name, its in FORMATS.items() if its == suffix)


def _check_options(name: str, metric: str | None, log: bool | None) -> None:
    if metric is not None and name not in (*_MESHES, "landscaper"):
        raise UserError(f"--metric {metric}: the format {name} takes all metrics; leave it out")
    if log is not None and name not in _MESHES:
        raise UserError(f"--log: only {' and '.join(_MESHES)} have a height; leave it out")


def _writer(name: str, path: str, stored: Stored, metric: str | None, log: bool | None) -> Callable[[str], object]:
    """What writes a file of this format; UserError where it cannot hold the landscape."""
    if name in _MESHES or name == "landscaper":
        field = read_field(path, stored, metric or default_metric(stored))
        if name == "landscaper":
            grid = peers.landscaper_values(path, field)
            return lambda file: peers.write_landscaper(file, grid)
        surface = mesh.surface(path, field, log)
        return lambda file: _MESHES[name](file, surface)
    values = all_values(path, stored)
    if stored.grid.sets is not None:
        stored, values = _summarized(name, stored, values)
    if name == "loss-landscape":
        held = peers.surface_values(path, stored, values)
        return lambda file: peers.write_surface_file(file, stored, held)
    return lambda file: _WRITERS[name](file, stored, values)


def _summarized(name: str, stored: Stored, values: Values) -> tuple[Stored, Values]:
    """An ensemble as a format holds it: the values of all sets, and what each point has of them, ``loss.q5``, say.

    Formats that know one plane have the latter alone, with underscores (``loss_q5``), and the mean by the metric's own
    name.
    """
    known = {key: summarized(np.where(np.isfinite(array), array, np.nan)) for key, array in values.items()}
    several = name not in ("vtkhdf", "loss-landscape")
    dot, metrics = "." if several else "_", known.keys() - {layout.WALL_TIME}
    found = {f"{key}{dot}{one}": known[key][one] for key in values if key in metrics for one in SUMMARIES}
    if several:
        return stored, values | found
    return stored.plane, {key: of["mean"] for key, of in known.items()} | found


def _csv(name: str, stored: Stored, values: Values) -> None:
    """x[,y[,z]], the scalars of every metric, done, wall_time: in full precision, in C order.

    Of an ensemble the number of the set before them, and each point's summaries in the rows of all sets.
    """
    columns = [axis.reshape(-1) for axis in np.meshgrid(*stored.grid.scales.values(), indexing="ij")]
    header = list(stored.grid.dims)
    for quantity in ordered(stored):
        for title, index in components(quantity):
            place: tuple[EllipsisType | int, ...] = (..., *index)
            header.append(title)
            columns.append(values[quantity.name][place].reshape(-1))
            for summary in SUMMARIES if stored.grid.sets is not None else ():
                header.append(f"{title}.{summary}")
                of_all = values[f"{quantity.name}.{summary}"][place]
                columns.append(np.broadcast_to(of_all, stored.grid.shape).reshape(-1))
    measured = len(columns)
    header += estimates(stored.refined)
    columns += [values[name].reshape(-1) for name in estimates(stored.refined)]
    done = stored.done.reshape(-1)
    with open(name, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow([*header, layout.DONE, layout.WALL_TIME])
        k = len(stored.grid.dims)
        for i, row in enumerate(zip(*columns, values[layout.WALL_TIME].reshape(-1), strict=True)):
            numbers = [repr(value.item()) for value in row]  # the number of a set is a whole one
            if not done[i]:
                numbers[k:measured], numbers[-1] = [""] * (measured - k), ""
            rows.writerow([*numbers[:-1], int(done[i]), numbers[-1]])


def _npz(name: str, stored: Stored, values: Values) -> None:
    """Axes, metrics, done, wall_time; the file's attributes as JSON text in ``attributes``."""
    arrays: dict[str, Any] = stored.grid.scales | values
    arrays |= {layout.DONE: stored.done, "attributes": np.array(json.dumps(_about(stored), default=_json))}
    with zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED) as archive:  # np.savez takes no array called "file"
        for key, array in arrays.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)


def _nc(name: str, stored: Stored, values: Values) -> None:
    """A Dataset over the axes, with the file's attributes."""
    data = as_dataset(stored, values)
    data.attrs = {key: _plain(value) for key, value in _about(stored).items()}
    data.to_netcdf(name, engine="h5netcdf")


def _plain(value: Any) -> Any:
    """An attribute as NetCDF has it: no bool, no objects, and no zeros in a text."""
    if isinstance(value, str):
        return value.replace("\0", r"\x00")
    if isinstance(value, np.ndarray) and value.dtype == object:
        return [_plain(one) for one in value.reshape(-1)]
    return np.int8(value) if np.asarray(value).dtype == bool else value


def _vtkhdf(name: str, stored: Stored, values: Values) -> None:
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


_WRITERS = {"csv": _csv, "npz": _npz, "nc": _nc, "vtkhdf": _vtkhdf}
_MESHES = {"stl": mesh.write_stl, "obj": mesh.write_obj}
# Of each format, what its files are called.
FORMATS = {name: f".{name}" for name in (*_WRITERS, *_MESHES)} | {"loss-landscape": ".h5", "landscaper": ".npz"}
