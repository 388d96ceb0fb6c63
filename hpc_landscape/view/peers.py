"""The files of other programs: tomgoldstein/loss-landscape's surfaces, and Landscaper's."""

from __future__ import annotations

import h5py
import numpy as np

from ..errors import UserError
from ..store import layout
from ..store.layout import Stored
from ..store.refinement import names as names_of_estimate
from .field import Field
from .values import Values

# A surface file's names, and ours for the same: the first that there is.
NAMES = {
    "train_loss": ("loss", "train_loss"),
    "train_acc": ("accuracy", "train_accuracy"),
    "test_loss": ("test_loss",),
    "test_acc": ("test_accuracy",),
}
NOT_DONE = -1.0  # what a surface file has where a point is still to do


def surface_values(path: str, stored: Stored, values: Values) -> Values:
    """What a surface file holds: its names -> arrays (nx,) or (ny, nx).

    As its programs draw it: values at ``[j, i]`` belong to ``(x[i], y[j])``. Accuracies are in percent there, and -1
    stands for a point that is not done; NaN for one that is. Raises UserError for three axes, and without a loss.
    """
    if len(stored.grid.axes) > 2:
        raise UserError(f"{path}: a surface file of loss-landscape has one or two axes; this grid has three")
    scalars = {q.name for q in stored.quantities if not q.shape}
    held = {}
    for theirs, ours in NAMES.items():
        if found := [name for name in ours if name in scalars]:
            unit = 100.0 if theirs.endswith("acc") else 1.0
            known = np.where(stored.done, values[found[0]], values.get(names_of_estimate(found[0])[0], NOT_DONE / unit))
            held[theirs] = unit * known.T
    if "train_loss" not in held:
        raise UserError(f"{path} has no 'loss', which a surface file of loss-landscape is made of")
    return held


def write_surface_file(name: str, stored: Stored, values: Values) -> None:
    """HDF5: coordinates, values, and an empty name of a file of directions."""
    with h5py.File(name, "w", libver=layout.LIBVER, locking=False) as file:
        for axis, coordinates in zip(stored.grid.names, stored.grid.coordinates, strict=True):
            file[f"{axis}coordinates"] = coordinates
        for key, array in values.items():
            file[key] = array
        file["dir_file"] = ""


def landscaper_values(path: str, field: Field) -> Values:
    """What Landscaper's npz holds: loss, and coordinates (axes, n).

    It takes the points in the order of ``np.meshgrid``, whose first two axes are exchanged, and knows neither gaps nor
    axes of different lengths. Raises UserError where there are such.
    """
    shape = field.values.shape
    if len(shape) < 2 or len(set(shape)) > 1:
        has = " x ".join(map(str, shape))
        raise UserError(f"{path}: Landscaper reads two or three axes of one length; the file's grid is {has}")
    if missing := field.values.size - field.finite.size:
        raise UserError(
            f"{path}: Landscaper needs a finite value at every point, and {missing} of {field.values.size} have none"
        )
    return {"loss": np.swapaxes(field.values, 0, 1), "coordinates": np.stack(field.coordinates)}


def write_landscaper(name: str, values: Values) -> None:
    """An npz as ``LossLandscape.load_from_npz`` reads it."""
    with open(name, "wb") as file:
        np.savez(file, loss=values["loss"], coordinates=values["coordinates"])
