"""Whether a file's points come from runs whose processors and kernels are unlike: then equal means nearly equal."""

from __future__ import annotations

import os

from .layout import MIXED
from .probe import opened


def is_mixed(path: str) -> bool:
    """As ``set_mixed`` has noted; True of a file that has no place for it."""
    with opened(path) as file:
        return MIXED not in file or bool(file[MIXED][0])


def set_mixed(path: str) -> None:
    """Note that points of another kind of run are to come: one byte, past HDF5."""
    with opened(path) as file:
        offset = file[MIXED].id.get_offset() if MIXED in file else None
    if offset is not None:
        descriptor = os.open(path, os.O_RDWR)
        try:
            os.pwrite(descriptor, b"\x01", offset)
        finally:
            os.close(descriptor)
