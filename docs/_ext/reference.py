"""The reference that is made from the code, as Markdown: options, commands, kinds, exit codes, messages, the file."""

from __future__ import annotations

import argparse
import inspect
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import errors

from hpc_landscape import cli, commands
from hpc_landscape.arguments import OTHERS
from hpc_landscape.errors import COMPLETE, FAILED, INTERRUPTED, STOPPED, USER_ERROR
from hpc_landscape.help import _text, _usage
from hpc_landscape.kinds import DIRECTIONS, METRICS, NORMALIZATIONS, PROBLEMS, VIEWS
from hpc_landscape.registry import KindOption, Registry
from hpc_landscape.settings import GROUPS, OPTIONS, Settings

LABELS = {"problem": PROBLEMS, "direction": DIRECTIONS, "metric": METRICS, "bn": NORMALIZATIONS, "picture": VIEWS}


def plain(text: str) -> str:
    """Text that says in Markdown what it says; code in backticks stays code."""
    parts = re.split(r"(``.+?``|`[^`]+`)", text)
    return "".join(part if part[:1] == "`" else re.sub(r"([\\`*_{}\[\]<>$|~#])", r"\\\1", part) for part in parts)


def options() -> str:
    """Every option of a run, in the groups of --help."""
    rooms = get_type_hints(Settings)
    groups = [("Help, and settings in a file", "", OTHERS)]
    groups += [(name.capitalize(), rooms[f"for_{name}"].__doc__ or "", group) for name, group in GROUPS.items()]
    parts = []
    for title, text, group in groups:
        rows = [(option.name, _usage(option), _text(option)) for option in group]
        parts.append(f"## {title}\n\n{plain(text)}\n\n{_described('run', 'option', rows)}")
    return "".join(parts).replace("as listed below", "[as listed](kinds.md)")


def _described(program: str, label: str, rows: Iterable[tuple[str, str, str]]) -> str:
    """Options that can be linked to: their names, how they are given, and what they do."""
    return f"```{{program}} {program}\n```\n\n" + "".join(
        f"({label}-{name})=\n````{{option}} {usage}\n{plain(text)}\n````\n\n" for name, usage, text in rows
    )


def the_commands() -> str:
    """The commands that read stored files, from the parser of each."""
    return "".join(_command(name) for name in commands.NAMES)


def _command(name: str) -> str:
    module = commands.command(name)
    parser = argparse.ArgumentParser(f"{cli.PROG} {name}", add_help=False, formatter_class=_Wide)
    module.add_options(parser)
    rows = []
    for action in parser._actions:
        usage = ", ".join(f"{word}{_value(action)}" for word in action.option_strings) or action.metavar or action.dest
        text = (action.help or "") % {**vars(action), "prog": parser.prog}
        rows.append((action.option_strings[-1].lstrip("-") if action.option_strings else action.dest, usage, text))
    usage = parser.format_usage().removeprefix("usage: ")
    said = f"(command-{name})=\n## {name}\n\n{plain(module.DESCRIPTION)}\n\n```text\n{usage}```\n\n"
    return said + _described(name, name, rows)


class _Wide(argparse.HelpFormatter):
    """Of a width that the terminal of whoever builds the site does not decide."""

    def __init__(self, prog: str):
        super().__init__(prog, width=100)


def _value(action: argparse.Action) -> str:
    """What comes after an option's name."""
    if action.nargs == 0:
        return ""
    choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    return f" {action.metavar or choices}"


def kinds(label: str) -> str:
    """Every kind of a registry: its text, and its options."""
    registry, sign = LABELS[label], "##" if label == "metric" else "###"
    return "".join(f"({label}-{name})=\n{sign} {name}\n\n{_kind(registry, name)}\n" for name in registry.built_in)


def _kind(registry: Registry, name: str) -> str:
    """Its text, its arguments, the program's settings that it uses, and what else its docstring says."""
    text, found = registry.describe(name, {option: KindOption(option, type=option) for option in OPTIONS})
    attribute = registry.built_in[name].rpartition(":")[2]
    more = (inspect.getdoc(registry.load(name)) or "").split("\n\n")[1:] if registry is METRICS else []
    lines = [
        plain(text) + f" In the library: {{py:class}}`hpc_landscape.metrics.{attribute}`." * (registry is METRICS),
        "",
    ]
    for option in (option for option in found if option.type != option.name):
        known = [f"`{option.type}`"] * bool(option.type) + _default(option)
        brackets = f" ({', '.join(known)})" * bool(known)
        lines.append(f"- `{option.name}`{brackets}" + f": {plain(option.help)}" * bool(option.help and not more))
    settings = [f"[`--{option.name}`](#option-{option.name})" for option in found if option.type == option.name]
    lines += ["", f"Goes by {', '.join(settings)}."] * bool(settings)
    return "\n".join([*lines, *(f"\n{plain(paragraph)}" for paragraph in more), ""])


def _default(option: KindOption) -> list[str]:
    return [f"default: `{option.default}`"] if option.default else []


def exit_codes() -> str:
    """What each exit code of a run means, and what comes next."""
    rows = {
        COMPLETE: ("complete", "nothing is left to do"),
        FAILED: ("failed", "the last lines say why: the machine, or code of yours; mended, the same command goes on"),
        USER_ERROR: ("a mistake to mend", "one line says what, where, and what to do; what was in the file stays"),
        STOPPED: ("stopped by SIGTERM, SIGUSR1, SIGHUP or SIGXCPU", "the same command goes on; templates requeue it"),
        INTERRUPTED: ("stopped by Ctrl-C", "the same command goes on"),
    }
    lines = [f"| {code} | {what} | {then} |" for code, (what, then) in rows.items()]
    return "\n".join(["| code | what it means | what comes next |", "|---|---|---|", *lines, ""])


def messages() -> str:
    """Every message of a user's mistake, by what it is about, after what helps there."""
    said: dict[str, dict[str, None]] = {title: {} for title in ABOUT}
    for site in errors.sites():
        said[topic(site.module)] |= dict.fromkeys(site.texts)
    return "".join(
        f"## {title}\n\n{errors.REMEDIES[title]}\n\n"
        + "".join(f"- {_code(text)}\n" for text in sorted(texts, key=_sorting))
        + "\n"
        for title, texts in said.items()
    )


# What messages are about, and the rooms, or modules, that they come from.
ABOUT = {
    "The command line and the settings": "arguments cli config grid help objects options registry settings "
    "setting_groups",
    "The problem, its loss and its data": "problems data",
    "The model and its checkpoints": "model",
    "Directions": "directions",
    "Metrics": "metrics",
    "Evaluating points": "evaluate campaign schedule",
    "The file that is written": (
        "store campaign.prepare campaign.phases campaign.plan campaign.capacity campaign.recheck campaign.extend"
    ),
    "Ranks, GPUs and MPI": "ranks evaluation campaign.teams campaign.keeping",
    "Pictures, numbers and other formats": "view commands",
    "The library": "campaign.landscape landscape",
}


def topic(module: str) -> str:
    """The title under which a module's messages come."""
    for name in (module, module.split(".")[0]):
        for title, rooms in ABOUT.items():
            if name in rooms.split():
                return title
    raise KeyError(f"docs/_ext/reference.py: the messages of {module} have no title")


def _sorting(text: str) -> str:
    return text.lstrip("-<['").lower()


def _code(text: str) -> str:
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def file() -> str:
    """What is in a small file of every kind of content: its arrays and groups."""
    import h5py
    import numpy as np

    from hpc_landscape.grid import Axis, Grid
    from hpc_landscape.store import layout

    quantities = [layout.Quantity("loss"), layout.Quantity("curvature", (2,), ("eigenvalue",))]
    weight = {"0.weight": np.zeros((3, 2), "f4")}
    path = layout.Trajectory(np.zeros((4, 2)), np.zeros(4), list("abcd"))
    with tempfile.TemporaryDirectory() as folder:
        name = str(Path(folder, "small.h5"))
        grid = Grid(Axis(-1, 1, 5), Axis(-1, 1, 4))
        layout.create(name, grid, quantities, {}, {"x": weight, "y": weight}, weight, path)
        with h5py.File(name, locking=False) as found:
            rows = [_row(thing) for thing in _walk(found)]
    return "\n".join(["| name | type | shape |", "|---|---|---|", *rows, ""])


def _walk(group: Any) -> Iterator[Any]:
    """What is in a group but for the arrays of VTK: its arrays, then its groups, each followed by what is in it."""
    things = [thing for thing in group.values() if not thing.name.endswith("Data")]
    yield from (thing for thing in things if not hasattr(thing, "values"))
    for inner in (thing for thing in things if hasattr(thing, "values")):
        yield inner
        yield from _walk(inner)


def _row(thing: Any) -> str:
    name = thing.name[1:]
    if hasattr(thing, "values"):
        return f"| `{name}/` | group | |"
    kind = "text" if thing.dtype.hasobject else str(thing.dtype)
    return f"| `{name}` | {kind} | {' x '.join(map(str, thing.shape))} |"
