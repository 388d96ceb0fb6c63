"""The library in the reference: every public name, by autodoc, and what our docstrings look like to it."""

from __future__ import annotations

import importlib
import inspect
import re
from contextlib import suppress
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import hpc_landscape
from hpc_landscape import metrics, testing
from hpc_landscape.directions.base import DirectionKind, Directions, Origin
from hpc_landscape.evaluate.normalization import Normalization
from hpc_landscape.view.base import Picture, Shown

ITEM = re.compile(r"( *)((?:\w+, )*\w+): (?=\S)")
CONTRACTS = (DirectionKind, Directions, Origin, Normalization, Picture, Shown)
GIVEN = [  # by open, numbers and compare
    "hpc_landscape.view.dataset.Landscape",
    "hpc_landscape.view.dataset.Arrays",
    "hpc_landscape.view.numbers.Numbers",
    "hpc_landscape.view.compare.Comparison",
]
SECTIONS = {"Args": "Arguments", "Attributes": "Attributes", "Returns": "Returns", "Raises": "Raises"}
CHECKS = ("check_metric", "check_problem", "check_direction")


def api() -> str:
    """Directives for every public name, under the name that it is imported by."""
    names = {name: f"hpc_landscape.{name}" for name in hpc_landscape._FROM}
    stored = [name for name, module in hpc_landscape._FROM.items() if module.startswith("view.")]
    parts = {
        "Landscapes, problems, models": [full for name, full in names.items() if name not in stored],
        "Stored landscapes": [*(names[name] for name in stored), *GIVEN],
        "Metrics": [f"{metrics.__name__}.{name}" for name in metrics.__all__],
        "For a kind of your own": [f"{kind.__module__}.{kind.__name__}" for kind in CONTRACTS],
        "Checks for tests of your own": [f"{testing.__name__}.{name}" for name in CHECKS],
    }
    return "".join(
        f"## {title}\n\n````{{eval-rst}}\n{''.join(map(_directive, found))}````\n\n" for title, found in parts.items()
    )


def _directive(name: str) -> str:
    """autodoc's words for it."""
    module, _, attribute = name.rpartition(".")
    try:
        thing = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        thing = None  # autodoc says so
    if not inspect.isclass(thing):
        return f".. autofunction:: {name}\n\n"
    inherited = "   :inherited-members:\n" if "LossLandscape" in attribute else ""
    return f".. autoclass:: {name}\n   :members:\n{inherited}\n"


def as_lists(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Our docstrings as reStructuredText: the parts of SECTIONS become fields, and lines `name: what it is` lists.

    Such lines are those of a section, and those that begin with the names of arguments or attributes.
    """
    known, found, indent, listed = _names(thing), [], "", False
    for line in [part for whole in lines for part in _apart(whole, known)]:
        item = ITEM.match(line)
        if line.endswith(":") and line[:-1] in SECTIONS:
            indent, listed = "    ", False
            found += ["", f":{SECTIONS[line[:-1]]}:"]
        elif item and item[1] == indent and (indent or set(item[2].split(", ")) <= known):
            names = ", ".join(f"``{name}``" for name in item[2].split(", "))
            found += [*[""] * (not listed), f"{indent}- {names}: {line[item.end() :]}"]
            listed = True
        else:
            indent = "" if line.strip() and not line.startswith(" ") else indent
            listed = listed and bool(line.strip())
            found.append(f"{indent}  {line.strip()}" if listed else line)
    lines[:] = found


def _apart(line: str, known: set[str]) -> list[str]:
    """A line that goes on after a sentence with `name: what it is`, in two."""
    for item in re.finditer(r"(?<=[.;] )((?:\w+, )*\w+): (?=\S)", line):
        if line[0] != " " and set(item[1].split(", ")) <= known:
            return [line[: item.start()].rstrip(), *_apart(line[item.start() :], known)]
    return [line]


def _names(thing: Any) -> set[str]:
    """Of its arguments and, of a class, its attributes."""
    names = {*dir(thing), *getattr(thing, "__annotations__", ())} if inspect.isclass(thing) else set()
    with suppress(ValueError, TypeError):  # of an exception, say
        names |= set(inspect.signature(thing).parameters)
    return names


def find(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element) -> nodes.Element | None:
    """A name of ours is documented where it is imported from, and not where it is written."""
    python, target = env.domains["py"], node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    for name in python.objects:
        if name.rpartition(".")[2] == target.rpartition(".")[2] and target.startswith("hpc_landscape."):
            return python.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, content)
    return None


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", as_lists)
    app.connect("missing-reference", find)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
