"""Directions from files: a landscape of ours, or tensors by parameter name in one file per direction."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..model.archives import check_archive, check_room
from ..model.checkpoint import read_tensors
from ..model.checkpoint_file import first_few
from ..model.state_dict import by_model_names
from ..store import layout
from ..store.probe import opened

OPTION = "--direction_files"


def read_directions(paths: list[str], weights: Mapping[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """count directions, with all the names of the weights, in their dtypes and layouts.

    A landscape file (.h5) holds one direction for each axis, of which the first are taken; a .npz, .pt, .pth or
    .safetensors file holds one, by parameter name. A parameter that it lacks does not move. UserError where a file
    cannot be read, holds code, unknown names, other shapes, values that are not finite or nothing but zeros, and where
    the files hold too few directions or are too many.
    """
    directions: list[dict[str, Tensor]] = []
    for path in paths:
        where = f"{OPTION} {path}"
        if len(directions) == count:
            raise UserError(f"{where}: the files before it hold as many directions as there are axes; leave it out")
        for tensors in islice(_read(path, where), count - len(directions)):
            directions.append(_fitted(tensors, weights, where))
    if len(directions) < count:
        found = f"{OPTION} {','.join(paths)}: directions found: {len(directions)}, needed: {count}"
        raise UserError(f"{found}, one for each axis; name more files, or leave out an axis")
    return directions


def _read(path: str, where: str) -> Iterator[dict[str, Tensor]]:
    """The directions in one file, one after the other."""
    if not os.path.isfile(path):
        raise UserError(f"{where}: there is no such file")
    if path.endswith(".h5") or h5py.is_hdf5(path):
        yield from _read_landscape(path, where)
    elif path.endswith(".npz"):
        yield _read_npz(path, where)
    else:
        yield read_tensors(path, OPTION, "save a dictionary of tensors by parameter name, no more")


def _read_landscape(path: str, where: str) -> Iterator[dict[str, Tensor]]:
    try:
        stored = layout.read(path)  # refuses what is damaged
    except UserError as error:
        raise UserError(f"{OPTION} {error}") from None
    if not stored.has_directions:
        raise UserError(f"{where}: it was stored without its directions; run it again with --save_directions true")
    for axis in stored.grid.names:
        check_room(_bytes(path, layout.ALONG.format(axis)), where)
        try:
            arrays = layout.read_arrays(path, layout.ALONG.format(axis))
        except KeyError as error:
            raise UserError(f"{where}: holds {error.args[0]}") from None
        yield _from_numpy(arrays, where)


def _bytes(path: str, group: str) -> int:
    """What a group's arrays take when they are read; 0 where there are none."""
    with suppress(KeyError, OSError, AttributeError), opened(path) as file:
        return sum(getattr(array, "nbytes", 0) for array in file[group].values())
    return 0


def _read_npz(path: str, where: str) -> dict[str, Tensor]:
    check_archive(path, where)
    try:
        # Opened here: of an archive that is cut short NumPy leaves its own open.
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = dict(file)
    except Exception as error:  # a damaged archive may raise anything
        said = " ".join(str(error).split("\n")[0].split())
        raise UserError(f"{where}: cannot be read as .npz: {type(error).__name__}: {said}") from None
    return _from_numpy(arrays, where)


def _from_numpy(arrays: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    if bad := [f"{name} {array.dtype}" for name, array in arrays.items() if array.dtype.kind not in "fiuc"]:
        raise UserError(f"{where}: holds arrays that are not of real numbers: {first_few(bad)}")
    kinds = {name: _kind(array.dtype) for name, array in arrays.items()}
    check_room(sum(kinds[name].itemsize * a.size for name, a in arrays.items() if a.dtype != kinds[name]), where)
    return {name: torch.from_numpy(np.asarray(array, kinds[name])) for name, array in arrays.items()}


def _kind(given: np.dtype) -> np.dtype:
    """What PyTorch takes, and holds every value: the same where it can be, which costs no second copy."""
    if given in (np.float32, np.complex64):
        return given
    return np.dtype(np.complex128 if given.kind == "c" else np.float64)


def _fitted(tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The direction as the weights are: checked, every name, their dtypes and layouts."""
    tensors = by_model_names(tensors, weights)
    if unknown := [name for name in tensors if name not in weights]:
        raise UserError(f"{where}: the model has no parameter {first_few(unknown)}; leave out all but its parameters")
    if shapes := [
        f"{name} {tuple(t.shape)} instead of {tuple(weights[name].shape)}"
        for name, t in tensors.items()
        if t.shape != weights[name].shape
    ]:
        raise UserError(f"{where}: other shapes than the model's: {first_few(shapes)}")
    if odd := [name for name, t in tensors.items() if t.is_complex() and not weights[name].is_complex()]:
        raise UserError(f"{where}: holds arrays that are not of real numbers: {first_few(odd)}; the model's are")
    if odd := [name for name, t in tensors.items() if t.layout != torch.strided or t.is_meta]:
        raise UserError(f"{where}: holds tensors that are not dense ones of real numbers: {first_few(odd)}")
    direction = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for name, tensor in tensors.items():
        direction[name].copy_(tensor)
    if bad := [name for name, d in direction.items() if not bool(d.isfinite().all())]:
        raise UserError(f"{where}: values that are not finite, in the model's precision: {first_few(bad)}")
    if not any(bool(d.any()) for d in direction.values()):
        raise UserError(f"{where}: the direction is zero for every parameter, so that it leads nowhere")
    return direction
