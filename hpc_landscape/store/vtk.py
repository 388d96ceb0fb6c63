"""The file's values as VTK reads them, ParaView, say: no copy."""

from __future__ import annotations

import h5py
import numpy as np

from ..grid import Grid


def add_vtk(file: h5py.File, grid: Grid, names: list[str]) -> None:
    """The same datasets once more, by hard link, as VTK's ImageData; one axis after the grid's are components.

    C order makes the last axis VTK's fastest, so extents, spacing and direction come with the axes reversed. VTK counts
    an axis of one point as no dimension, and cannot read the array then: of such a grid each point is a cell's centre.
    The sets of an ensemble are stacked along the next axis, 1 apart; volumes have none left, and are not shown.
    """
    n = grid.shape[::-1]
    k, cells = len(n), int(min(n) == 1)
    if k > 3:
        return
    along = [*grid.scales.values()]
    points_to = [*range(k)] if grid.sets is None else [k - 1, *range(k - 1)]  # of each dimension: x, y or z
    spacing = np.array([values[1] - values[0] if len(values) > 1 else 1.0 for values in along])
    origin, direction = np.zeros(3), np.zeros((3, 3))
    origin[points_to] = np.array([values[0] for values in along]) - cells * spacing / 2
    for i in range(3):  # column i: where VTK's axis i points
        direction[points_to[k - 1 - i] if i < k else i, i] = 1
    group = file.create_group("VTKHDF")
    group.attrs["Version"] = np.array([1, 0], dtype="i8")
    group.attrs.create("Type", b"ImageData", dtype=h5py.string_dtype("ascii", 9))
    ends = [n[i] - 1 + cells if i < k else 0 for i in range(3)]
    group.attrs["WholeExtent"] = np.array([e for end in ends for e in (0, end)], dtype="i8")
    group.attrs["Origin"] = origin
    group.attrs["Spacing"] = np.array([*spacing[::-1], *[1.0] * (3 - k)])
    group.attrs["Direction"] = direction.reshape(-1)
    data = group.create_group("CellData" if cells else "PointData")
    for name in names:
        data[name] = file[name]
