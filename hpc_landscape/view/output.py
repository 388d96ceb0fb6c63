"""Where a picture or an export goes: never onto a landscape, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import h5py

from ..errors import UserError
from ..store import layout
from ..store.probe import opened
from ..store.temporary import clear, whole


def checked(path: str, output: str, suffixes: Sequence[str]) -> str:
    """output's suffix, in lower case; UserError where output cannot be, or must not be, written."""
    suffix = os.path.splitext(output)[1].lower()
    if suffix not in suffixes:
        what = f"unknown suffix '{suffix}'" if suffix else "no suffix"
        raise UserError(f"{output}: {what}; the suffix chooses the format: {', '.join(suffixes)}")
    folder = os.path.dirname(output) or "."
    if not os.path.isdir(folder):
        raise UserError(f"cannot write {output}: there is no directory {folder}")
    if os.path.isdir(output):
        raise UserError(f"cannot write {output}: it is a directory")
    if os.path.exists(output):
        if not os.path.isfile(output):
            raise UserError(f"cannot write {output}: it is no regular file")
        if os.path.samefile(path, output) or _is_landscape(output):
            raise UserError(f"{output} is a landscape file and is not overwritten; choose another output")
        if not os.access(output, os.W_OK):
            raise UserError(f"cannot write {output}: no permission")
    return suffix


def _is_landscape(path: str) -> bool:
    """Whether path is one of this program's files; a damaged HDF5 file counts as one."""
    if not os.path.isfile(path) or not h5py.is_hdf5(path):
        return False
    try:
        with opened(path) as file:
            return file.attrs.get("format") == layout.FORMAT
    except OSError:
        return True


def write_whole(output: str, write: Callable[[str], object]) -> None:
    """Let ``write(name to open)`` fill a new file, then give it output's name; UserError where that cannot be done."""
    clear(output)
    try:
        with whole(output) as (name, _):
            write(name)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror or error}") from None
