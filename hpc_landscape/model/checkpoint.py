"""Trained weights from files: found, and loaded as the model itself loads them."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from ..errors import UserError
from .checkpoint_file import MODELS, TRUST, first_few, is_one_model, read_content
from .choice import Chosen, choose
from .lazy import made
from .loading import Snapshot, copies_by_name, load
from .state_dict import mappings, pure

SUFFIXES = (".pt", ".pth", ".safetensors")  # of a directory's files


def load_checkpoint(
    path: str, model: nn.Module, weights_only: bool = True, key: str | None = None, option: str = "--checkpoint"
) -> Chosen:
    """Load what a file holds of the model into it, in place, by its own load_state_dict; what there is to say of it.

    A file of torch.save or safetensors, an index of shards, or a directory of save_pretrained or of
    torch.distributed.checkpoint; shards and the latter are read tensor by tensor. The state dict may be nested under
    any keys, and its names may have prefixes; of several networks that fit, ``key`` says which. UserError, which begins
    with the option's name, where the file cannot be read or does not fit: then the model is as it was.
    """
    where = f"{option} {path}"
    chosen = choose(read_content(path, weights_only, where), model, where, key)
    before = None if _only_copied(model, chosen) else Snapshot(model)
    try:
        _load(model, chosen, where)
    except BaseException:
        if before is not None:
            before.restore()
        raise
    return chosen


def _only_copied(model: nn.Module, chosen: Chosen) -> bool:
    """Whether nothing can refuse it, but a disk that fails meanwhile: no second copy of the model is needed then."""
    return chosen.exact and copies_by_name(model)


def _load(model: nn.Module, chosen: Chosen, where: str) -> None:
    verdict = load(model, chosen.tensors, chosen.whole)
    if verdict.fault or verdict.unexpected or (chosen.whole and verdict.missing):
        said = verdict.fault or f"it has no place for {first_few([*verdict.missing, *verdict.unexpected])}"
        raise UserError(f"{where}: the model's load_state_dict refuses it: {said}")


def read_parameters(
    path: str,
    model: nn.Module,
    names: Iterable[str],
    weights_only: bool = True,
    option: str = "--checkpoint",
    key: str | None = None,
    tell: Callable[[str, Chosen], None] | None = None,
) -> dict[str, Tensor]:
    """The parameters and buffers of these names, as the model has them, of a file.

    As they are after load_checkpoint, on the CPU, but in the file's precision where it has them under that name; the
    model stays as it is. tell: is given the path, and what there is to say of it.
    """
    where = f"{option} {path}"
    chosen = choose(read_content(path, weights_only, where), model, where, key)
    names = list(names)
    if tell is not None:
        tell(path, chosen)
    if _only_copied(model, chosen) and all(isinstance(chosen.tensors.get(name), Tensor) for name in names):
        return {name: made(chosen.tensors[name]) for name in names}
    before = Snapshot(model)
    try:
        _load(model, chosen, where)
        loaded = dict(model.named_parameters()) | dict(model.named_buffers())
        found = {name: _precise(loaded[name].detach().cpu(), chosen.tensors.get(name)) for name in names}
    finally:
        before.restore()
    return found


def _precise(loaded: Tensor, given: object) -> Tensor:
    """A copy of what was loaded, or what it was rounded from."""
    given = made(given)
    if isinstance(given, Tensor) and given.shape == loaded.shape and torch.equal(given.to(loaded), loaded):
        return given
    return loaded.clone()


def read_tensors(path: str, option: str, instead: str = TRUST) -> dict[str, Tensor]:
    """The mapping of names to tensors in a file, nested or not, on the CPU, unchecked; the only one there is.

    instead: what to do, for the UserError that tells of a pickle with code in it.
    """
    where = f"{option} {path}"
    content = read_content(path, True, where, instead)
    found = {".".join(keys) or ".": mapping for keys, mapping in mappings(content) if pure(mapping)}
    if len(found) != 1:
        what = f"several state dicts: {first_few(list(found))}; give one file for each" if found else "no state dict"
        raise UserError(f"{where}: holds {what}")
    return {key: made(tensor.detach()) for key, tensor in next(iter(found.values())).items()}


def find_paths(spec: str, option: str) -> list[list[str]]:
    """The checkpoints of each of the paths between which there is a semicolon."""
    specs = [spec] if os.path.exists(spec) else spec.split(";")  # one name may hold one
    return [find_checkpoints(one, option) for one in specs if one.strip() or len(specs) == 1]


def find_checkpoints(spec: str, option: str) -> list[str]:
    """The files that a comma-separated list of files, globs and directories names, each once.

    Files keep the list's order; those of a glob, and the .pt, .pth and .safetensors files of a directory, come in
    natural order: epoch2 before epoch10. A directory of save_pretrained is one checkpoint, and so are those in a
    directory, or of a glob. UserError, which begins with the option's name, where a part names no file.
    """
    parts = [spec] if os.path.exists(spec) else spec.split(",")  # one name may hold commas
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in parts)):
        for path in _files(part, f"{option} {part}"):
            found.setdefault(os.path.abspath(path), path)
    if not found:
        raise UserError(f"{option}: names no checkpoint; give files, a directory, or a pattern such as 'run/*.pt'")
    return list(found.values())


def _files(part: str, where: str) -> list[str]:
    if os.path.isfile(part):  # first: its name may look like a pattern
        return [part]
    if os.path.isdir(part):
        one = is_one_model(part)
        inside = glob.glob(os.path.join(glob.escape(part), "*"))
        found = [p for p in inside if is_one_model(p) or (not one and p.endswith(SUFFIXES))]
        found = found or [part] * one
        fault = f"the directory holds no {', '.join(SUFFIXES)} file; name others by a pattern such as '{part}/*.ckpt'"
    elif glob.has_magic(part):
        found = glob.glob(part, recursive=True)
        fault = "the pattern matches no file"
    else:
        raise UserError(f"{where}: there is no such file")
    found = [path for path in found if os.path.isfile(path) or is_one_model(path)]
    if not found:
        raise UserError(f"{where}: {fault}")
    return sorted(found, key=_natural)


def _natural(path: str) -> tuple[list[str | int], str]:
    """A key that sorts numbers by value; the path itself where these are the same."""
    return [int(piece) if piece.isdecimal() else piece for piece in re.split(r"(\d+)", path)], path


def labels(paths: Sequence[str]) -> list[str]:
    """A short name for each checkpoint: the part of its path in which they differ, in whole names of folders."""
    words = [os.path.normpath(path).split(os.sep) for path in _alike(paths)]
    first = len(os.path.commonprefix([w[:-1] for w in words]))
    last = len(os.path.commonprefix([w[first + 1 :][::-1] for w in words])) if len(set(paths)) > 1 else 0
    if len(paths) == 1 and words[0][-1] in MODELS and len(words[0]) > 1:
        first, last = len(words[0]) - 2, 1
    ends = [w[first : len(w) - last] for w in words]
    stems = [_stem(w, path) if not last else w for w, path in zip(ends, paths, strict=True)]
    return ["/".join(w) for w in (stems if len(set(map(tuple, stems))) == len(set(map(tuple, ends))) else ends)]


def _alike(paths: Sequence[str]) -> Sequence[str]:
    return list(map(os.path.abspath, paths)) if len({os.path.isabs(path) for path in paths}) > 1 else paths


def _stem(words: list[str], path: str) -> list[str]:
    return words if os.path.isdir(path) else [*words[:-1], os.path.splitext(words[-1])[0]]
