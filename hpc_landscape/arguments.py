"""Settings from the command line and from YAML. Imports no torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from .config import read_yaml
from .errors import UserError, printable
from .help import help_of_all, help_of_kind
from .options import Option
from .registry import Registry
from .setting_groups import PROBLEM
from .settings import GROUPS, OPTIONS, Settings

HELP = {"-h", "--help"}
OTHERS = [
    Option("help", bool, False, "print this and stop, or what one kind does, and its options", "KIND"),
    Option("config", str, None, "settings as YAML, by name; the command line's win", "FILE.yaml"),
    Option("print_config", bool, False, "print the settings as YAML and stop"),
    Option("cite", bool, False, "print what a run with these settings is to cite, as BibTeX, and stop"),
]
INSTEAD = ("print_config", "cite")  # of a run
KNOWN = OPTIONS | {option.name: option for option in OTHERS}


def parse(
    arguments: Sequence[str], prog: str, epilog: str = "", kinds: Sequence[Registry] = ()
) -> tuple[Settings, str]:
    """The settings that a command line asks for, those of --config files among them.

    Args:
        arguments: the words. --help counts wherever it stands; the word after it names a kind.
        prog, epilog: of --help.
        kinds: the registries that --help tells of.

    Returns:
        The settings, checked, and what is to be printed instead of a run: "print_config", "cite" or "".

    Raises:
        UserError: for anything that is not an option, or no value for it.
        SystemExit: after --help.
    """
    words = list(arguments)
    try:
        if asks_help(words):
            print(_help(words, prog, epilog, kinds), end="")
            raise SystemExit(0)
        given, files = _split(words)
        instead = [name for name in INSTEAD if _typed(KNOWN[name], given.pop(name, "false"))]
        if len(instead) > 1:
            raise UserError(f"--{' and --'.join(instead)}: only one of them at a time")
        values = {name: value for path in files for name, value in _read_config(path).items()} | given
        problem_arguments = {name.removeprefix(PROBLEM): values.pop(name) for name in [*values] if name not in OPTIONS}
        settings = Settings(
            **{name: _typed(OPTIONS[name], value) for name, value in values.items()},
            problem_arguments=problem_arguments,
        )
        settings.check()
        return settings, "".join(instead)
    except UserError as error:
        raise UserError(printable(str(error))) from None


def asks_help(words: Sequence[str]) -> bool:
    """Whether one of the words of a command line is --help, with or without a kind."""
    return any(word.partition("=")[0] in HELP for word in words)


def _help(words: list[str], prog: str, epilog: str, kinds: Sequence[Registry]) -> str:
    """Of the kind that is named after --help, or of everything."""
    while not asks_help(words[:1]):
        words = words[1:]
    kind = words[0].partition("=")[2] or " ".join(words[1:2])
    if kind and not kind.startswith("-"):
        return help_of_kind(kind, kinds, OPTIONS)
    usage = f"usage: {prog} [run] [options]\n       {prog} plot FILE ... | info [FILE]\n"
    usage += f"       {prog} compare FILE FILE | export FILE -o OUT\n\n"
    usage += "Compute a loss landscape. With no options: of the built-in digits problem.\n\n"
    return usage + help_of_all({"options": OTHERS} | GROUPS, kinds) + f"\n{epilog}"


def _split(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The options' values as text by name, ``problem.KEY`` among them; and the --config files.

    A value may begin with one minus (``--x -1:1:51``), with two only after an equals sign. Several ``--trajectory`` are
    one value, with semicolons between.
    """
    given: dict[str, str] = {}
    files: list[str] = []
    while words:
        option, equals, value = words.pop(0).partition("=")
        name = option.removeprefix("--")
        if name == option or (name not in KNOWN and not name.startswith(PROBLEM)):
            raise UserError(f"there is no option {option}{_suggest(name)}; see --help")
        if not equals:
            if words and not words[0].startswith("--"):
                value = words.pop(0)
            elif name in KNOWN and KNOWN[name].is_switch:
                value = "true"
            else:
                raise UserError(f"{option} needs a value")
        if name == "config":
            files.append(value)
        else:
            given[name] = f"{given[name]};{value}" if name == "trajectory" and name in given else value
    return given, files


def _typed(option: Option, value: str) -> Any:
    try:
        return option.read(value)
    except ValueError:
        raise UserError(f"--{option.name} {value}: expected {option.expected}") from None


def _suggest(name: str) -> str:
    close = difflib.get_close_matches(name.replace("-", "_"), KNOWN, 1)
    return f"; did you mean --{close[0]}?" if close else ""


def _read_config(path: str) -> dict[str, Any]:
    """What a YAML file says, as from the command line; of ``problem.KEY`` lists and mappings stay what they are."""
    values: dict[str, Any] = {}
    for key, value in read_yaml(path).items():
        if str(key).startswith(PROBLEM):
            values[key] = value
        elif key == "problem" and isinstance(value, Mapping):
            if not isinstance(name := value.get("name", "digits"), str):
                raise UserError(f"--config {path}: the problem's name takes one value")
            values |= {f"{PROBLEM}{k}": v for k, v in value.items() if k != "name"} | {"problem": name}
        elif key not in OPTIONS:
            raise UserError(f"--config {path}: there is no setting '{key}'{_suggest(str(key))}")
        elif key == "trajectory" and isinstance(value, list) and any(isinstance(item, list) for item in value):
            values[key] = ";".join(_path(item, path) for item in value)
        elif isinstance(value, Mapping) or (isinstance(value, list) and not OPTIONS[key].is_text):
            raise UserError(f"--config {path}: {key} takes one value")
        elif isinstance(value, list):
            if not all(isinstance(item, str) for item in value):
                raise UserError(f"--config {path}: {key} takes one value, or a list of them")
            values[key] = ",".join(value)
        elif value not in ("", "null", "~"):  # as if it were not there
            values[key] = value
    return values


def _path(item: Any, path: str) -> str:
    """One of a trajectory's paths: a file, a glob or a directory, or a list of them."""
    items = item if isinstance(item, list) else [item]
    if not all(isinstance(text, str) for text in items):
        raise UserError(f"--config {path}: trajectory takes one value, a list of them, or a list of lists")
    return ",".join(items)
