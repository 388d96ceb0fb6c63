"""The values of a stored landscape: as arrays, and as an xarray.Dataset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from ..store import layout
from ..store.layout import Quantity, Stored
from ..store.refinement import estimates
from .field import ordered

if TYPE_CHECKING:
    import xarray

Values = dict[str, np.ndarray]


def need_xarray(where: str) -> None:
    """UserError where xarray or h5netcdf is not installed."""
    try:
        import h5netcdf  # noqa: F401
        import xarray  # noqa: F401
    except ImportError as error:
        raise UserError(f"{where}: this needs {error.name}: pip install xarray h5netcdf") from None


def all_values(path: str, stored: Stored) -> Values:
    """Every metric and the wall time, by name; NaN where the point is not done: a half-written point is no result.

    After them, of every point, the estimates of a refinement and their errors.
    """
    found = {q.name: _masked(path, stored, q) for q in [*ordered(stored), Quantity(layout.WALL_TIME)]}
    return found | {name: layout.read_values(path, name) for name in estimates(stored.refined)}


def _masked(path: str, stored: Stored, quantity: Quantity) -> np.ndarray:
    values = layout.read_values(path, quantity.name)
    return np.where(stored.done.reshape(stored.done.shape + (1,) * len(quantity.shape)), values, np.nan)


def as_dataset(stored: Stored, values: Values) -> xarray.Dataset:
    """The values over the axes, and the file's attributes."""
    import xarray

    names = stored.grid.dims
    dims = {q.name: (*names, *own) for q, own in zip(stored.quantities, _own_dims(stored), strict=True)}
    variables: dict[str, Any] = {}
    for key, array in values.items():
        base, dot, _ = key.partition(".")
        along = dims.get(base, names)
        variables[key] = (along[1:] if dot else along, array)  # a summary of all sets is along none
    variables[layout.WALL_TIME] += ({"units": "s"},)
    variables[layout.DONE] = (names, stored.done)
    variables |= {} if stored.failed is None else {layout.FAILED: (names, stored.failed)}
    return xarray.Dataset(variables, stored.grid.scales, stored.attributes)


def _own_dims(stored: Stored) -> Iterator[list[str]]:
    """Names of each quantity's own axes: the file's, unless it has none there, or the same for something else."""
    lengths = dict.fromkeys([*stored.grid.dims, *(q.name for q in stored.quantities)], -1)
    for quantity in stored.quantities:
        dims: list[str] = []
        for i, (name, n) in enumerate(zip(quantity.dims, quantity.shape, strict=True)):
            fits = name and name not in dims and lengths.setdefault(name, n) == n
            dims.append(name if fits else f"{quantity.name}_{i}")
        yield dims
