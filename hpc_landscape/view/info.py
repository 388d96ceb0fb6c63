"""What a stored file says, on one screen."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterable, Mapping
from typing import Any

import h5py
import numpy as np

from ..directions.registry import kind_in_file
from ..errors import printable
from ..progress import duration, size
from ..store import layout
from ..store.earlier import EXTENDED, EXTENDED_CREATED, EXTENDED_POINTS
from ..store.exactness import told
from ..store.layout import Stored
from ..store.lock import holder, lock_of
from ..store.probe import opened
from .ensemble import ensemble_numbers
from .field import Field, components, default_metric, ordered, read_field, read_trajectories, setting
from .numbers import choose
from .scale import number
from .tables import text

_WIDTH = 100
_MOST_ROWS = 12  # of metrics
_VERSIONS = {
    "program": "hpc_landscape",
    "torch": "PyTorch",
    "numpy": "NumPy",
    "h5py": "h5py",
    "hdf5": "HDF5",
    "mpi": "",
}
# How the points were measured: settings, or attributes, and how they read.
_MEASURED = {"loss_function": "loss {}", "bn": "BN {}", "batch_size": "batch size {}", "precision": "{}"}
# What a line of its own names; any other attribute is printed after those.
_TOLD = {
    "format",
    "format_version",
    "metrics",
    "settings",
    "command",
    "title",
    "problem",
    "created",
    "seed",
    "cosine",
    "ranks",
    "refined",
}
_TOLD |= {"direction_recipe", "directions", "distribution", "normalization", *_MEASURED}
_TOLD |= {f"{key}_version" for key in _VERSIONS} | {EXTENDED, EXTENDED_POINTS, EXTENDED_CREATED}


def info(path: str, stored: Stored | None = None) -> str:
    """A page of text on the file at path, which may be in use; UserError where it is not one of ours.

    stored: what it says of itself, where that has been read.
    """
    stored = stored or layout.read(path)
    attributes = stored.attributes
    rows = [
        ("file", f"{path}, {size(os.path.getsize(path))}"),
        *_grid(stored),
        ("points", _points(path, stored)),
        *_run(path, stored),
        *_metrics(path, stored),
        *_ensemble(path, stored),
        *_made(stored),
        *([("command", str(command))] if (command := setting(attributes, "command")) else []),
        ("stored", _parts(path)),
        *_mode(stored),
        *_refinement(stored),
        *_others(attributes),
        ("next", _next(path, stored)),
    ]
    return "\n".join(printable(f"{name:<11}{text}".rstrip()) for name, text in rows)


def _grid(stored: Stored) -> Iterable[tuple[str, str]]:
    shape = " x ".join(str(n) for n in stored.grid.plane.shape)
    shape = shape if stored.grid.sets is None else f"{stored.grid.sets} sets of {shape}"
    yield "grid", f"{shape} = {stored.grid.size} points" if len(stored.grid.dims) > 1 else f"{shape} points"
    for name, c in zip(stored.grid.names, stored.grid.coordinates, strict=True):
        step = f" in steps of {number((c[-1] - c[0]) / (len(c) - 1))}" if len(c) > 1 else ""
        yield "", f"{name} from {number(c[0])} to {number(c[-1])}{step}"


def _mode(stored: Stored) -> Iterable[tuple[str, str]]:
    """How far values may be from the plain mode's."""
    if off := told(stored.attributes, stored.grid.size):
        yield "execution", f"{stored.attributes.get('execution')}: {off}"


def _refinement(stored: Stored) -> Iterable[tuple[str, str]]:
    """How well it is known what was not evaluated."""
    for i, (metric, summary) in enumerate(stored.refined.items()):
        yield "" if i else "refinement", f"{metric} {summary}"


def _points(path: str, stored: Stored) -> str:
    """How complete the file is, and what its points cost."""
    done, total = int(stored.done.sum()), stored.done.size
    wanted = ", all that the refinement has wanted" if stored.complete else ""
    text = "all done" if done == total else f"{done} of {total} done ({_percent(done, total)}){wanted}"
    if (old := setting(stored.attributes, EXTENDED)) is not None:
        count, created = (_short(stored.attributes.get(name)) for name in (EXTENDED_POINTS, EXTENDED_CREATED))
        text += f", of which {count} are from {old} of {created} (--extend)"
    if stored.failed is not None and stored.failed.any():
        text += f", of which {int(stored.failed.sum())} raised an error and are NaN ('{layout.FAILED}' is 1 there)"
        text += "; the same command with --retry_failed computes them again"
    cost = layout.read_values(path, layout.WALL_TIME)[stored.done]
    cost = cost[np.isfinite(cost)]
    if not cost.size:
        return text
    text += f", {duration(cost.mean())} a point ({duration(cost.min())} to {duration(cost.max())})"
    if done < total and not stored.refined:
        ranks = stored.attributes.get("ranks")
        ranks = ranks if isinstance(ranks, int) and ranks > 0 else 1
        on = f"the {ranks} ranks that began it" if ranks > 1 else "one rank"
        rate = ranks / max(cost.mean(), 1e-9)
        text += f", {number(rate, 3)} points/s and {duration((total - done) / rate)} left on {on}"
    return text


def _run(path: str, stored: Stored) -> Iterable[tuple[str, str]]:
    """Whether a run is at an unfinished file now, as far as this machine can see; and when it was last written."""
    if stored.complete:
        return
    written = f"last written {duration(max(time.time() - os.path.getmtime(path), 0))} ago"
    if (pid := holder(path)) is not None:
        yield "run", f"process {pid} of this machine is at it; {written}"
    elif os.path.exists(lock_of(path)):
        yield "run", f"on another machine, or was killed: this machine sees none; {written}"
    else:
        yield "run", f"none is at it; {written}"


def _percent(done: int, total: int) -> str:
    """Never 100% before the end, nor 0% after the beginning."""
    return f"{min(max(100 * done / total, 0.1 if done else 0), 99.9):.1f}%"


def _metrics(path: str, stored: Stored) -> Iterable[tuple[str, str]]:
    """A table: the extremes of every scalar, where they are, its value at the trained model, what is not finite."""
    scalars = [[name for name, _ in components(quantity)] for quantity in ordered(stored)]
    some = max((n for n in range(1, _MOST_ROWS) if sum(min(n, len(s)) for s in scalars) <= _MOST_ROWS), default=1)
    names = [name for group in scalars for name in group[:some]] + [name for group in scalars for name in group[some:]]
    if not stored.done.any():
        yield "metrics", ", ".join(names[:_MOST_ROWS])
        return
    table: list[tuple[str, ...]] = [("", "min", "at", "max", "at", "at the model", "NaN", "inf")]
    table += [_metric(stored, read_field(path, stored, name)) for name in names[:_MOST_ROWS]]
    widths = [max(len(row[k]) for row in table) for k in range(len(table[0]))]
    for i, row in enumerate(table):
        yield "" if i else "metrics", "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
    if len(names) > _MOST_ROWS:
        yield "", f"and {len(names) - _MOST_ROWS} more"


def _metric(stored: Stored, field: Field) -> tuple[str, ...]:
    shown = []
    for largest in (False, True):
        index = field.extreme(largest)
        shown += ["-", "-"] if index is None else [number(field.values[index]), field.place(index)]
    origin = (0.0,) * len(stored.grid.axes)
    nearest = stored.grid.nearest(origin)
    centre = field.values.reshape(-1)[nearest] if np.allclose(stored.grid.point(nearest), origin) else np.nan
    shown.append(number(centre) if np.isfinite(centre) else "-")
    return (field.name, *shown, str(field.nans or "-"), str(field.infinities or "-"))


def _ensemble(path: str, stored: Stored) -> Iterable[tuple[str, str]]:
    """What all sets of directions say together, asked as ``info --numbers`` does where nothing is said."""
    field = read_field(path, stored, default_metric(stored)) if stored.grid.sets is not None else None
    if field is None or not field.finite.size or field.values.size == 1:
        return
    options = choose(path, stored, field)
    found = ensemble_numbers(path, stored, field, options.radius, options.level)
    for i, n in enumerate(n for n in found if n.value is not None):
        yield "" if i else "ensemble", f"{n.name.replace('_', ' ')} {text(n.value)}: {n.note}"


def _made(stored: Stored) -> Iterable[tuple[str, str]]:
    """How the landscape was made."""
    attributes = stored.attributes
    names = [_short(n) for n in (setting(attributes, "title"), setting(attributes, "problem")) if n]
    if names:
        yield "problem", names[0] if len(set(names)) == 1 else f"{names[0]} ({names[1]})"
    recipe = [setting(attributes, key) for key in ("directions", "distribution", "normalization")]
    parts = [_short(p) for p in (attributes.get("direction_recipe"),) if p is not None] or [
        _short(p) for p in recipe if p
    ]
    drawn = kind_in_file(setting(attributes, "directions")).seeded
    if drawn and (seed := setting(attributes, "seed")) is not None:
        parts.append(f"seed {seed}")
    if (cosine := attributes.get("cosine")) is not None:
        parts.append(f"cosine of the first two {_short(cosine)}")
    if parts:
        yield "directions", ", ".join(parts)
    values = {words: setting(attributes, key) for key, words in _MEASURED.items()}
    if measured := [words.format(_short(value)) for words, value in values.items() if value is not None]:
        yield "measured", ", ".join(measured)
    yield from _created(attributes)


def _created(attributes: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """When, by how many ranks, and with which versions."""
    made = [_short(attributes["created"])] if "created" in attributes else []
    if (ranks := setting(attributes, "ranks")) is not None:
        made.append(f"{_short(ranks)} rank" + ("" if ranks == 1 else "s"))
    if made:
        yield "created", ", ".join(made)
    versions = {name: setting(attributes, f"{key}_version") for key, name in _VERSIONS.items()}
    versions[""] = "no MPI" if versions[""] == "none" else versions[""]
    items = [f"{name} {_short(version)}".strip() for name, version in versions.items() if version]
    yield from _rows("with", items)


def _parts(path: str) -> str:
    """What the file holds beside the values."""
    with opened(path) as file:
        parts = []
        for name in ("directions", "model", "trajectory"):
            sizes: list[int] = []
            if isinstance(file.get(name), h5py.Group):
                file[name].visititems(lambda _, thing, sizes=sizes: sizes.append(getattr(thing, "nbytes", 0)))
                axes = f" {', '.join(n.removeprefix('along_') for n in file[name])}" if name == "directions" else ""
                ways = len(read_trajectories(path)) if name == "trajectory" else 1
                axes += f" of {ways} paths" if ways > 1 else ""
                parts.append(f"{name}{axes} ({size(sum(sizes))})")
            elif name != "trajectory":
                parts.append(f"no {name}")
    return ", ".join(parts)


def _others(attributes: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Every attribute not told above: the checksums, shortened, then the rest."""
    sums = {key: value for key, value in attributes.items() if key.startswith("sha256_")}
    yield from _rows("sha256", [f"{key.removeprefix('sha256_')} {str(value)[:12]}" for key, value in sums.items()])
    rest = [f"{k.replace('_', ' ')} {_short(v)}" for k, v in attributes.items() if k not in _TOLD and k not in sums]
    yield from _rows("also", rest)


def _short(value: object) -> str:
    """A value on one line, and not all of a long one."""
    if isinstance(value, np.ndarray):
        shown = [number(v, 3) if isinstance(v, float) else str(v) for v in value.reshape(-1)[:8].tolist()]
        value = ", ".join(shown) + (", ..." if value.size > 8 else "")
    text = " ".join(str(number(value, 6) if isinstance(value, float) else value).split())
    return text if len(text) <= 70 else text[:67] + "..."


def _rows(name: str, items: list[str]) -> Iterable[tuple[str, str]]:
    """The items, with commas between them, in as few rows as a screen's width allows; none for none."""
    lines: list[str] = []
    for item in items:
        if lines and len(lines[-1]) + len(item) + 2 <= _WIDTH - 11:
            lines[-1] += f", {item}"
        else:
            lines.append(item)
    for i, line in enumerate(lines):
        yield "" if i else name, line


def _next(path: str, stored: Stored) -> str:
    """The command that a reader would give now."""
    name = shlex.quote(path)
    if holder(path) is not None:
        return "wait for the run; this command tells how far it is, and does not disturb it"
    if not stored.complete:
        command = setting(stored.attributes, "command")
        return f"to go on, give the command that began it again: {command or f'... --output {name}'}"
    return f"python -m hpc_landscape plot {name}"
