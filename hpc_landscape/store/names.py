"""Names of parameters as names in a file: any text. HDF5 takes a slash for a path, and no surrogate or NUL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

import h5py
import numpy as np

QUOTED = "quoted"  # an attribute of what has another name in the file: as in URLs
_EMPTY = "%"


def save_arrays(group: h5py.Group, arrays: Mapping[str, np.ndarray]) -> None:
    """Put the arrays into the group, by name."""
    for name, array in arrays.items():
        dataset = group.create_dataset(link := _link(name), data=array, track_times=False)
        if link != name:
            dataset.attrs[QUOTED] = 1


def load_arrays(group: h5py.Group) -> dict[str, Any]:
    """The arrays of the group, by name."""
    return {name: dataset[()] for name, dataset in find_arrays(group).items()}


def find_arrays(group: h5py.Group) -> dict[str, h5py.Dataset]:
    """The datasets of the group by name; in groups, as slashes have made them in older files, too."""
    found: dict[str, h5py.Dataset] = {}
    _find(group, "", found, set())
    return found


def _find(group: h5py.Group, before: str, found: dict[str, h5py.Dataset], seen: set[int]) -> None:
    """seen: groups, each looked into once: one may be in itself, and under several names."""
    if (address := h5py.h5o.get_info(group.id).addr) in seen:
        return
    seen.add(address)
    for link in group:
        if isinstance(group.get(link, getlink=True), h5py.HardLink):
            thing = group[link]
            if isinstance(thing, h5py.Dataset):
                name = _name(link) if QUOTED in thing.attrs else link
                found[before + name] = thing
            elif isinstance(thing, h5py.Group):
                _find(thing, f"{before}{link}/", found, seen)


def _link(name: str) -> str:
    """A name of its own for each."""
    if name in ("", "."):
        return _EMPTY if not name else quote(name).replace(".", "%2E")
    return re.sub("[%/\0\ud800-\udfff]", lambda found: quote(found[0], safe="", errors="surrogatepass"), name)


def _name(link: str) -> str:
    return "" if link == _EMPTY else unquote(link, errors="surrogatepass")
