"""Settings from the command line and from YAML. Imports no torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from .config import read_yaml
from .errors import UserError, printable
from .settings import PROBLEM, Settings


def parse(arguments: Sequence[str], prog: str, epilog: str = "") -> tuple[Settings, bool]:
    """(settings, whether --print_config was given) from a command line; what --config files say comes first.

    Raises UserError for anything that is not an option, or no value for it; SystemExit(0) after --help.
    """
    try:
        words, problem_arguments, print_config = _split(list(arguments))
        namespace = _parse(_parser(prog, epilog), words)
        settings = Settings(**namespace, problem_arguments=problem_arguments)
        settings.check()
    except UserError as error:
        raise UserError(printable(str(error))) from None
    return settings, print_config


def _parser(prog: str, epilog: str) -> Any:
    import argparse

    import jsonargparse

    parser = jsonargparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [run] [options] | plot FILE | info FILE | export FILE -o OUT",
        description="Compute a loss landscape. With no options: of the built-in digits problem.",
        epilog=epilog,
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", action="append", type=str, metavar="FILE.yaml", help="settings as YAML, by name")
    parser.add_argument("--print_config", action="store_true", help="print the settings as YAML and stop")
    hints = get_type_hints(Settings)
    for option in fields(Settings):
        if not option.metadata:
            continue
        keywords = {"default": option.default, "help": _help(option)}
        if hints[option.name] is bool and option.default is False:
            parser.add_argument(f"--{option.name}", action="store_true", **keywords)
        else:
            if option.metadata["metavar"]:
                keywords["metavar"] = option.metadata["metavar"]
            kind = hints[option.name]
            kind = str if kind == str | None else kind  # read as YAML, '#1.pt' would be no text at all
            parser.add_argument(f"--{option.name}", type=kind, **keywords)
    return parser


def _help(option: Any) -> str:
    text = option.metadata["help"]
    return text if option.default is None or option.default is False else f"{text} (default: {option.default})"


def _parse(parser: Any, words: list[str]) -> dict[str, Any]:
    import argparse

    try:
        namespace = parser.parse_args(words)
    except argparse.ArgumentError as error:
        raise UserError(_one_line(error, words)) from None
    names = [option.name for option in fields(Settings) if option.metadata]
    return {name: None if (value := getattr(namespace, name)) == "null" else value for name in names}


def _one_line(error: Exception, words: list[str]) -> str:
    """argparse's or jsonargparse's message as one line that names the option."""
    text = " ".join(str(error).split())
    if text.startswith("unrecognized arguments: "):
        unknown = text.removeprefix("unrecognized arguments: ").split()[0]
        return f"there is no option {unknown.split('=')[0]}{_suggest(unknown)}; see --help"
    if text.startswith('Parser key "'):
        name, _, rest = text.removeprefix('Parser key "').partition('":')
        hints = get_type_hints(Settings)
        choices = _choices(hints.get(name))
        given = next((w.partition("=")[2] for w in reversed(words) if w.startswith(f"--{name}=")), None)
        if given is None:
            given = next((b for a, b in zip(words, words[1:], strict=False) if a == f"--{name}"), "")
        wanted = (
            f"one of {', '.join(choices)}"
            if choices
            else {"bool": "true or false", "int": "a whole number"}.get(_plain_type(hints.get(name)), "another value")
        )
        return f"--{name} {given}: expected {wanted}"
    if text.endswith(": expected one argument"):
        return text.removeprefix("argument ").replace(": expected one argument", " needs a value")
    return text


def _choices(hint: Any) -> list[str]:
    """The words that a setting of this type may be; of one that may be nothing, too."""
    return [c for part in (hint, *get_args(hint)) for c in get_args(part) if isinstance(c, str)]


def _plain_type(hint: Any) -> str:
    kinds = [t for t in getattr(hint, "__args__", (hint,)) if t is not type(None)]
    return kinds[0].__name__ if kinds and isinstance(kinds[0], type) else ""


def _suggest(unknown: str) -> str:
    names = [option.name for option in fields(Settings) if option.metadata] + ["config", "print_config", "help"]
    close = difflib.get_close_matches(unknown.split("=")[0].lstrip("-").replace("-", "_"), names, 1)
    return f"; did you mean --{close[0]}?" if close else ""


def _split(arguments: list[str]) -> tuple[list[str], dict[str, Any], bool]:
    """Command-line words for the parser with the config files' settings put first, and the problem's arguments.

    Two traps of argparse are taken out: a value that begins with a minus (``--x -1:1:51``), and ``--problem.KEY``
    beside ``--problem``. Several ``--trajectory`` are one value, with semicolons between.
    """
    words: list[str] = []
    from_files: list[str] = []
    problem_arguments: dict[str, Any] = {}
    from_command: dict[str, Any] = {}
    trajectories: list[str] = []
    print_config = False
    hints = get_type_hints(Settings)
    flags = {name for name, hint in hints.items() if hint is bool and getattr(Settings, name, None) is False}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        if option in ("--x", "--y", "--z", "--config", "--trajectory") or option.startswith(f"--{PROBLEM}"):
            if not equals:
                if not rest:
                    raise UserError(f"{option} needs a value")
                value = rest.pop(0)
            if option == "--config":
                _read_config(value, from_files, problem_arguments)
            elif option.startswith(f"--{PROBLEM}"):
                from_command[option.removeprefix(f"--{PROBLEM}")] = value
            elif option == "--trajectory":
                trajectories.append(value)
            else:
                words.append(f"{option}={value}")
        elif word == "--print_config":
            print_config = True
        elif equals and option[2:] in flags and value.lower() in ("true", "false"):
            words.extend([option] if value.lower() == "true" else [])
        else:
            words.append(word)
    words += [f"--trajectory={';'.join(trajectories)}"] if trajectories else []
    return from_files + words, problem_arguments | from_command, print_config


def _read_config(path: str, words: list[str], problem_arguments: dict[str, Any]) -> None:
    """Add what a YAML file says: settings as words, ``problem.KEY`` entries as the problem's arguments."""
    content = read_yaml(path)
    hints = get_type_hints(Settings)
    known = [option.name for option in fields(Settings) if option.metadata]
    for key, value in content.items():
        if str(key).startswith(PROBLEM):
            problem_arguments[key.removeprefix(PROBLEM)] = value
        elif key == "problem" and isinstance(value, Mapping):
            problem_arguments |= {k: v for k, v in value.items() if k != "name"}
            if not isinstance(name := value.get("name", "digits"), str):
                raise UserError(f"--config {path}: the problem's name takes one value")
            words.append(f"--problem={name}")
        elif key not in known:
            raise UserError(f"--config {path}: there is no setting '{key}'{_suggest(str(key))}")
        elif isinstance(value, Mapping):
            raise UserError(f"--config {path}: {key} takes one value")
        elif key == "trajectory" and isinstance(value, list) and any(isinstance(item, list) for item in value):
            words.append(f"--{key}={';'.join(_path(item, path) for item in value)}")
        elif isinstance(value, list):
            if not all(isinstance(item, str) for item in value):
                raise UserError(f"--config {path}: {key} takes one value, or a list of them")
            words.append(f"--{key}={','.join(map(str, value))}")
        elif value in ("", "null", "~"):
            continue  # as if it were not there
        elif hints[key] is bool and getattr(Settings, key) is False:
            if value.lower() not in ("true", "false"):
                raise UserError(f"--config {path}: {key}: {value}: expected true or false")
            words.extend([f"--{key}"] if value.lower() == "true" else [])
        else:
            words.append(f"--{key}={value}")


def _path(item: Any, path: str) -> str:
    """One of a trajectory's paths: a file, a glob or a directory, or a list of them."""
    items = item if isinstance(item, list) else [item]
    if not all(isinstance(text, str) for text in items):
        raise UserError(f"--config {path}: trajectory takes one value, a list of them, or a list of lists")
    return ",".join(items)
