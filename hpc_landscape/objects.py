"""A user's functions and classes, by the words that name them. Imports no torch."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NoReturn

from .errors import Stopped, UserError, user_traceback


def find_object(spec: str, option: str) -> Any:
    """What ``package.module:name`` or ``path/file.py:name`` means.

    Args:
        spec: these words; both parts are there.
        option: what they were given to, for messages.

    Returns:
        The function or class.

    Raises:
        UserError: where there is no such file, module or function, or importing it fails.
    """
    where, _, name = spec.rpartition(":")
    what = f"{option} {spec}"
    with imported(what, where):
        module = _import_file(where, what) if where.endswith(".py") else _import_module(where, what)
    found = getattr(module, name, None)
    if not callable(found):
        own = {k: v for k, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__}
        functions = [k for k, v in own.items() if inspect.isfunction(v)]
        classes = [k for k, v in own.items() if inspect.isclass(v)]
        public = functions if option == "--problem" else [*functions, *classes]
        have = f"; it has {', '.join(public)}" if public else ""
        raise UserError(f"{what}: {where} has no function '{name}'{have}")
    return found


@contextmanager
def imported(what: str, where: str) -> Iterator[None]:
    """A user's code is imported meanwhile: whatever it raises is a UserError that says where it did."""
    try:
        with script_alone(where):
            yield
    except (UserError, KeyboardInterrupt, Stopped):
        raise
    except SystemExit as exit_:
        raise UserError(f"{what}: importing {where} {left(exit_)}") from None
    except BaseException as error:
        raise UserError(f"{what}: importing {where} raised {user_traceback(error)}") from None


def _import_module(where: str, what: str) -> ModuleType:
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as python -m does; the console script does not
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name and (where == error.name or where.startswith(error.name + ".")):
            raise UserError(f"{what}: there is no module {error.name}") from None
        raise


def _import_file(where: str, what: str) -> ModuleType:
    """The file as a module of its own name, its folder on sys.path: data-loading workers import it again so."""
    if not os.path.isfile(where):
        raise UserError(f"{what}: there is no file {where}")
    folder, file = os.path.split(os.path.abspath(where))
    name = file[: -len(".py")]
    if folder not in sys.path:
        sys.path.insert(0, folder)
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == os.path.join(folder, file):
        return loaded
    spec = importlib.util.spec_from_file_location(name, os.path.join(folder, file))
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(name, module)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if sys.modules.get(name) is module:
            del sys.modules[name]
        raise
    return module


class _WantsArguments(SystemExit):
    """Raised where a script's argparse would print its usage and leave."""


@contextmanager
def script_alone(name: str) -> Iterator[None]:
    """A script that reads the command line meanwhile sees its own name alone: what is there is for this program."""

    def error(self: argparse.ArgumentParser, message: str) -> NoReturn:
        raise _WantsArguments(message)

    words, said = sys.argv, argparse.ArgumentParser.error
    sys.argv, argparse.ArgumentParser.error = [name], error  # type: ignore[method-assign]
    try:
        yield
    finally:
        sys.argv, argparse.ArgumentParser.error = words, said  # type: ignore[method-assign]


def left(exit_: SystemExit) -> str:
    """What ended the program, and what helps."""
    said = " ".join(str(exit_).split())
    main = 'under if __name__ == "__main__":'
    if isinstance(exit_, _WantsArguments):
        return (
            f"raised SystemExit: its argparse says '{said}'. It is shown its own name alone: give its arguments "
            f"defaults, or parse them {main}"
        )
    return f"raised SystemExit{f': {said}' if said else ''}, which ends a program: put what a script alone does {main}"
