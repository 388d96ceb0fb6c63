"""Values written at their places in a laid-out file, past HDF5.

Each dataset is contiguous and allocated, so that a value's place is known and there is nothing that HDF5 would have to
do. A write that fails is then an OSError and no more: inside HDF5 it leaves the library in a state in which closing the
file, or leaving the process, crashes.
"""

from __future__ import annotations

import os

import h5py
import numpy as np

from ..errors import UserError
from .batch import Block
from .layout import FAILED
from .probe import opened
from .refinement import SUMMARY


class RawFile:
    """A laid-out file open for writing values; its structure stays as it is. created: when it was laid out."""

    def __init__(self, path: str):
        with opened(path) as file:
            datasets = {name: thing for name, thing in file.items() if isinstance(thing, h5py.Dataset)}
            datasets |= {SUMMARY: file[SUMMARY]} if SUMMARY in file else {}
            self._places = {
                name: (d.id.get_offset(), d.dtype, d.nbytes)
                for name, d in datasets.items()
                if d.id.get_offset() is not None or not d.is_scale  # else a scale without values
            }
            self.created = file.attrs.get("created")
        if None in (self._places[name][0] for name, d in self._places.items() if d[2]):
            raise UserError(f"{path} was repacked: its datasets are no longer contiguous; choose another --output")
        self._descriptor = os.open(path, os.O_RDWR)
        begins = sorted((offset, nbytes) for offset, _, nbytes in self._places.values() if nbytes)
        ends = [offset + nbytes for offset, nbytes in begins]
        nexts = [*(offset for offset, _ in begins[1:]), os.fstat(self._descriptor).st_size]
        if any(end > following for end, following in zip(ends, nexts, strict=True)):
            raise UserError(f"{path} is damaged: its datasets overlap, or end beyond it; choose another --output")

    def write_block(self, block: Block) -> None:
        """All of a block; an older file has no place for what has failed."""
        for name, values in block.columns():
            if name in self._places or name != FAILED:
                self.write(name, block.points, values)

    def write(self, name: str, points: np.ndarray, values: np.ndarray) -> None:
        """Write values[i] at the flat index points[i]: (n,), and (n, ...) of one value's shape."""
        offset, dtype, _ = self._places[name]
        if len(points) > 1:
            order = np.argsort(points, kind="stable")
            points, values = points[order], values[order]
        values = np.ascontiguousarray(values, dtype)
        size = values[0].nbytes
        edges = (np.flatnonzero(np.diff(points) != 1) + 1).tolist()  # neighbours go out together
        for start, end in zip([0, *edges], [*edges, len(points)], strict=True):
            self._write_all(values[start:end].data.cast("B"), offset + int(points[start]) * size)

    def _write_all(self, content: memoryview, offset: int) -> None:
        while content:
            written = os.pwrite(self._descriptor, content, offset)
            content, offset = content[written:], offset + written

    def close(self) -> None:
        os.close(self._descriptor)
