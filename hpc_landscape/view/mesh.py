"""The surface of a landscape as triangles, for 3-D programs and printers: STL and OBJ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import UserError, printable
from .field import Field
from .scale import choose

# Of a cell, counter-clockwise seen from above.
_CORNERS = (np.s_[:-1, :-1], np.s_[1:, :-1], np.s_[1:, 1:], np.s_[:-1, 1:])


LARGEST = 1e18  # coordinate: areas are numbers in 32 bits, too


@dataclass(frozen=True)
class Mesh:
    """Triangles: points (n, 3), and their indices (m, 3), counter-clockwise seen from above. note: what height is."""

    points: np.ndarray
    triangles: np.ndarray
    note: str


def surface(path: str, field: Field, log: bool | None = None) -> Mesh:
    """The surface over a plane: two triangles a cell; where a corner has no value, what is left of the cell.

    x and y are the grid's. Height is the value, or its logarithm to base 10, shifted and scaled so that the lowest is
    0 and the highest half the plane's longer side. log: None decides as pictures do. Raises UserError.
    """
    if len(field.coordinates) != 2 or min(field.values.shape) < 2:
        shape = " x ".join(map(str, field.values.shape))
        raise UserError(f"{path}: a surface needs two axes of two points or more; the file's grid is {shape}")
    if not field.finite.size:
        raise UserError(f"{path}: '{printable(field.name)}' has no finite value, so there is no surface")
    if (far := max(float(np.abs(c).max()) for c in field.coordinates)) > LARGEST:
        raise UserError(f"{path}: its coordinates go to {far:g}; 3-D programs count in 32 bits, to {LARGEST:g} here")
    log = log is not False and choose(field.finite, log).log
    drawn = np.isfinite(field.values) & ((field.values > 0) if log else True)
    heights = np.full(field.values.shape, np.nan)
    heights[drawn] = np.log10(field.values[drawn]) if log else field.values[drawn]
    low, high = float(np.nanmin(heights)), float(np.nanmax(heights))
    top = 0.5 * max(float(c[-1] - c[0]) for c in field.coordinates)
    rise = (heights / 2 - low / 2) / ((high / 2 - low / 2) or 1.0)  # halves: their difference is in float64's range
    x, y = np.meshgrid(*field.coordinates, indexing="ij")
    points = np.stack([x, y, top * rise], axis=-1).reshape(-1, 3)
    triangles = _triangles(drawn)
    if not len(triangles):
        raise UserError(f"{path}: no three neighbours have a value of '{printable(field.name)}': there is no surface")
    used, place = np.unique(triangles, return_inverse=True)
    what = f"log10({field.name})" if log else field.name
    note = f"z is 0 at {what} = {low:.6g}, {top:.6g} at {high:.6g}"
    return Mesh(points[used], place.reshape(-1, 3), printable(note))


def _triangles(there: np.ndarray) -> np.ndarray:
    """Of each cell of a grid (nx, ny) two triangles, one where one corner is missing; indices in C order, (m, 3)."""
    index = np.arange(there.size).reshape(there.shape)
    a, b, c, d = (index[corner].reshape(-1) for corner in _CORNERS)
    has = there.reshape(-1)
    along = has[a] & has[c]  # the diagonal from a to c, unless b and d alone make a triangle
    first = np.where(along[:, None], np.stack([a, b, c], axis=1), np.stack([a, b, d], axis=1))
    second = np.where(along[:, None], np.stack([a, c, d], axis=1), np.stack([b, c, d], axis=1))
    both = np.stack([first, second], axis=1).reshape(-1, 3)
    return both[has[both].all(axis=1)]


def write_stl(name: str, mesh: Mesh) -> None:
    """Binary STL: 80 bytes of text, the number of triangles, and for each its normal and corners in float32."""
    corners = mesh.points[mesh.triangles]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    records = np.zeros(len(corners), record)
    records["normal"] = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    records["corners"] = corners
    with open(name, "wb") as file:
        file.write(mesh.note.encode("ascii", "replace")[:80].ljust(80))
        file.write(np.uint32(len(records)).astype("<u4").tobytes() + records.tobytes())


def write_obj(name: str, mesh: Mesh) -> None:
    """Wavefront OBJ: a comment, the points, and the triangles by the points' numbers, which begin with 1."""
    with open(name, "w", encoding="utf-8") as file:
        file.write(f"# {mesh.note}\n")
        file.writelines(f"v {x:.9g} {y:.9g} {z:.9g}\n" for x, y, z in mesh.points.tolist())
        file.writelines(f"f {a} {b} {c}\n" for a, b, c in (mesh.triangles + 1).tolist())
