"""A stored landscape as an xarray.Dataset, with what this program does for it in ``.landscape``."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from ..errors import UserError
from ..grid import NAMES
from ..store import layout
from ..store.layout import ALONG
from ..store.names import find_arrays
from ..store.probe import opened
from .values import all_values, as_dataset, need_xarray

if TYPE_CHECKING:
    import xarray

    from .compare import Comparison
    from .numbers import Numbers


def open(path: str | os.PathLike[str]) -> xarray.Dataset:
    """The landscape at path, which may be in use: values in memory, and the file neither locked nor kept open.

    Coordinates x[, y[, z]], and before them direction, the number of a set, where there is an ensemble; every metric,
    ``wall_time`` (s) and a metric's own trailing axes; ``done`` and ``failed``, bool. Values are NaN where a point is
    not done. Its attributes are the file's, and ``.landscape`` has the rest.

    Raises:
        UserError: where the file is missing, damaged or none of ours, or xarray or h5netcdf is missing.
    """
    path = os.fspath(path)
    need_xarray(path)
    _register()
    stored = layout.read(path)
    data = as_dataset(stored, all_values(path, stored))
    data.encoding["source"] = os.path.abspath(path)
    return data


@functools.cache
def _register() -> None:
    import xarray

    xarray.register_dataset_accessor("landscape")(Landscape)


class Landscape:
    """What ``.landscape`` of a Dataset does, by the file that it was opened from.

    Of a Dataset that no longer holds what the file does, a part of it say, nothing is drawn or measured: UserError.
    """

    def __init__(self, data: xarray.Dataset):
        self._data = data

    @property
    def path(self) -> str:
        """The file."""
        if not isinstance(source := self._data.encoding.get("source"), str):
            raise UserError("this Dataset does not say from which file it came: take what hpc_landscape.open gave")
        return source

    @property
    def _whole(self) -> str:
        """The file, where the Dataset holds what it does; else UserError."""
        if not self._is_of(self.path):
            raise UserError(
                f"this Dataset is not what {self.path} holds: a part was selected, or values changed; .landscape works "
                "on the file, so take what hpc_landscape.open gave"
            )
        return self.path

    def _is_of(self, path: str) -> bool:
        """Whether it holds what the file does, but for points that were done since."""
        stored, data = layout.read(path), self._data
        if not all(name in data.coords and np.array_equal(data[name], c) for name, c in stored.grid.scales.items()):
            return False
        if layout.DONE not in data or data[layout.DONE].shape != stored.grid.shape:
            return False
        done = np.asarray(data[layout.DONE], bool)
        for name in (quantity.name for quantity in stored.quantities):
            values = layout.read_values(path, name)
            if name not in data or data[name].shape != values.shape:
                return False
            if not np.array_equal(data[name].values[done], values[done], equal_nan=True):
                return False
        return True

    def plot(self, output: str | None = None, **options: Any) -> str:
        """A picture; returns its path. options: as ``hpc_landscape.plot``."""
        from .plot import plot

        return plot(self._whole, output, **options)

    def html(self, output: str | None = None, **options: Any) -> str:
        """A page to turn, zoom and point at; returns its path. options: as ``hpc_landscape.plot``."""
        return self.plot(output, html=True, **options)

    def numbers(self, metric: str | None = None, **options: Any) -> Numbers:
        """The numbers of one metric. options: as ``hpc_landscape.numbers``."""
        from .numbers import numbers

        return numbers(self._whole, metric, **options)

    def compare(self, other: xarray.Dataset | str | os.PathLike[str], **options: Any) -> Comparison:
        """Its numbers beside those of another, a Dataset or a file. options: as ``hpc_landscape.compare``."""
        from .compare import compare

        return compare(self._whole, _file_of(other), **options)

    def export(self, output: str, **options: Any) -> str:
        """Another format; returns output. options: as of the command ``export``: format, metric, log."""
        from .export import export

        return export(self._whole, output, **options)

    @property
    def directions(self) -> dict[str, Arrays]:
        """Axis -> parameter -> array, read when it is asked for; empty where the file was stored without."""
        found = {axis: Arrays(self.path, ALONG.format(axis)) for axis in NAMES}
        return {axis: arrays for axis, arrays in found.items() if len(arrays)}

    @property
    def model(self) -> Arrays:
        """Parameter or buffer -> array, read when it is asked for; empty where the file was stored without."""
        return Arrays(self.path, "model")

    @property
    def trajectory(self) -> xarray.Dataset:
        """The projected checkpoints: x[, y[, z]], distance, label, over checkpoint; empty where there are none."""
        import xarray

        columns = dict(Arrays(self.path, "trajectory"))
        texts = {name: np.array([_text(v) for v in a]) for name, a in columns.items() if a.dtype.hasobject}
        shape = np.shape(columns.get("x", ()))
        names = [k for k, a in columns.items() if a.shape == shape and a.ndim == 1 and not k.startswith("along_")]
        return xarray.Dataset({name: ("checkpoint", (columns | texts)[name]) for name in names})


def _file_of(other: xarray.Dataset | str | os.PathLike[str]) -> str:
    return os.fspath(other) if isinstance(other, (str, os.PathLike)) else Landscape(other)._whole


class Arrays(Mapping[str, np.ndarray]):
    """The arrays of one group of a file, by name. Each is read when it is asked for; the file is not kept open."""

    def __init__(self, path: str, group: str):
        self._path, self._group = path, group

    def __getitem__(self, name: str) -> np.ndarray:
        with opened(self._path) as file:
            return self._find(file)[name][()]

    def __iter__(self) -> Iterator[str]:
        with opened(self._path) as file:
            names = list(self._find(file))
        return iter(names)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"{self._group} of {self._path}: {', '.join(self)}"

    def _find(self, file: h5py.File) -> dict[str, h5py.Dataset]:
        group = file.get(self._group)
        return find_arrays(group) if isinstance(group, h5py.Group) else {}


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
