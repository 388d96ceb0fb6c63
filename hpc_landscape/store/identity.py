"""What a thing that users bring is made of, as a checksum: two that compute the same, in two processes, have the same.

Of functions and classes their code counts, as it is written: the source without comments, docstrings and layout, so
that neither a Python version nor a file's place changes it; the bytecode where there is no source (exec, an interactive
session). With it count defaults, what a closure holds, and the globals that the code names. Of libraries (whatever is
installed, and this package) the name counts; of objects their attributes; of modules parameters and buffers too.
Addresses, line numbers and paths of files do not count, nor do things whose state says nothing: loggers, locks, files,
the time of the day. Of what users wrote, methods and attributes count that the code of a call names: a trainer whose
loss is a method of its own may hold when it was started and where it writes.
"""

from __future__ import annotations

import abc
import ast
import builtins
import enum
import functools
import hashlib
import inspect
import itertools
import linecache
import os
import site
import sysconfig
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, Generic, Protocol

import numpy as np
import torch
from torch import Tensor, nn

DEPTH = 12  # of things in things
PLAIN = (type(None), bool, int, float, complex, str, bytes)
SILENT = {"logging", "threading", "_thread", "_io", "io", "tempfile", "weakref", "queue", "_queue", "concurrent"}
SILENT |= {"multiprocessing", "datetime", "uuid", "wandb", "tqdm", "tensorboard", "tensorboardX"}
OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
INSTALLED = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
LIBRARIES = tuple(os.path.realpath(path) + os.sep for path in sorted({*INSTALLED, *site.getsitepackages()}))
PACKAGES = ("torch", "numpy", "hpc_landscape", "builtins")
OF_MODULES = ("_parameters", "_buffers", "_modules")
OF_EVERY_MODULE = frozenset(vars(nn.Module()))
OF_CLASSES = {"__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__firstlineno__"}
CONSTRUCTORS = {"__init__", "__new__", "__post_init__"}
NOT_CALLED = {*CONSTRUCTORS, "__repr__", "__str__", "__eq__", "__hash__", "__del__", "__getstate__", "__setstate__"}
BY_ANY_NAME = {"getattr", "vars", "__dict__", "asdict", "astuple", "attrgetter", "eval", "exec"}
OPEN = (object, nn.Module, abc.ABC, Generic, Protocol)  # bases that use nothing of a user's class by themselves
CLOCKS = (time.time, time.perf_counter, time.monotonic)
BEGAN = [clock() - 60 for clock in CLOCKS]


def checksum(thing: object, known: Iterable[Any] = (), neutral: Iterable[str] = ()) -> str:
    """Of a thing; known: objects in it that are told elsewhere, such as the model.

    neutral: names of what functions hold of a factory's arguments, and no value depends on.
    """
    known = list(known)
    return _Reader(known, _called([thing], known), neutral=neutral).read(thing, DEPTH)


def _called(things: Iterable[Any], known: Iterable[Any] = ()) -> set[str]:
    """All names in the code that runs where these things are called."""
    names, size = {"forward"}, 0
    while size < len(names):
        size, reader = len(names), _Reader(known, names, looking=True)
        for thing in things:
            reader.read(thing, DEPTH)
    return names


class _Reader:
    """Reads nests of things, each object once. names: that called code has; looking: only for more of these."""

    def __init__(self, known: Iterable[Any], names: set[str], looking: bool = False, neutral: Iterable[str] = ()):
        self.names, self.looking, self.neutral = names, looking, frozenset(neutral)
        self.seen: dict[int, str] = {id(thing): "told elsewhere" for thing in known}
        self.kinds: dict[type, str] = {}
        self.alive: list[Any] = []  # else another object might get an address anew

    def read(self, thing: Any, depth: int) -> str:
        """Its checksum; of one that is just being read, that it comes again."""
        if isinstance(thing, (*PLAIN, enum.Enum)):
            return _hash("a time") if _is_time(thing) else _hash(type(thing).__name__, _text(thing))
        if id(thing) in self.seen:
            return self.seen[id(thing)]
        if not depth:
            return _hash("deep", _name(type(thing)))
        self.seen[id(thing)] = "again"
        self.alive.append(thing)
        try:
            found = _hash(*self._parts(thing, depth - 1))
        except Exception:  # a thing may raise whatever it likes when it is looked at
            found = _hash("unreadable", _name(type(thing)))
        self.seen[id(thing)] = found
        return found

    def _parts(self, thing: Any, depth: int) -> Iterator[str]:
        kind = type(thing)
        if isinstance(thing, (Tensor, np.ndarray, np.generic)):
            yield from self._array(thing, depth)
        elif _is_plain(thing) and not any(map(_is_time, thing)):
            yield from (kind.__name__, repr(thing))
        elif isinstance(thing, os._Environ):
            yield "environment"
        elif isinstance(thing, (list, tuple)):
            yield from (kind.__name__, *(self.read(item, depth) for item in thing))
        elif isinstance(thing, (set, frozenset)):
            yield from (kind.__name__, *sorted(self.read(item, depth) for item in thing))
        elif isinstance(thing, Mapping) and not isinstance(thing, nn.Module):
            pairs = ((self.read(key, depth), self.read(value, depth)) for key, value in thing.items())
            yield from (kind.__name__, *itertools.chain.from_iterable(sorted(pairs)))
        elif isinstance(thing, PurePath):
            yield from ("path", str(thing))
        elif isinstance(thing, (torch.dtype, torch.device, np.dtype, range, slice, BuiltinFunctionType)):
            yield from (kind.__name__, str(getattr(thing, "__qualname__", thing)))
        elif isinstance(thing, ModuleType):
            yield from ("module", thing.__name__)
        elif isinstance(thing, type):
            self.names.add(thing.__name__)  # where it is named, it may be called
            yield from self._class(thing, depth)
        elif (inner := _uncompiled(thing)) is not None:
            yield from ("compiled", self.read(inner, depth))
        elif isinstance(thing, FunctionType):
            yield from self._function(thing, depth)
        elif isinstance(thing, MethodType):
            yield from ("method", self.read(thing.__func__, depth), self.read(thing.__self__, depth))
        elif isinstance(thing, (staticmethod, classmethod)):
            yield from (kind.__name__, self.read(thing.__func__, depth))
        elif isinstance(thing, property):
            yield from ("property", *(self.read(f, depth) for f in (thing.fget, thing.fset)))
        elif isinstance(thing, functools.partial):
            yield from ("partial", *(self.read(part, depth) for part in (thing.func, thing.args, thing.keywords)))
        else:
            yield from self._object(thing, depth)

    def _array(self, thing: Any, depth: int) -> Iterator[str]:
        if isinstance(thing, Tensor) and (thing.layout != torch.strided or thing.is_nested or thing.is_quantized):
            dense = thing.dequantize() if thing.is_quantized else thing
            values = dense.detach().unbind() if thing.is_nested else (dense.detach().to_dense(),)
            yield from (str(thing.layout), *(self.read(part, depth) for part in values))
            return
        yield f"{tuple(thing.shape)} {thing.dtype}"
        if self.looking:
            return
        if isinstance(thing, Tensor):
            if thing.device.type == "meta":
                return
            wide = thing.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
            thing = wide.view(torch.uint8).numpy()
        if thing.dtype.hasobject:
            yield self.read(thing.tolist(), depth)
        else:
            yield hashlib.sha256(np.ascontiguousarray(thing).tobytes()).hexdigest()

    def _class(self, thing: type, depth: int) -> Iterator[str]:
        yield from ("class", _name(thing))
        if _of_library(thing.__module__, thing):
            return
        yield from (self._kind(base, depth) for base in thing.__bases__)
        for name, value in sorted(vars(thing).items()):
            if name in OF_CLASSES or name.startswith(("_abc", "__annot", "__static_attr")):
                continue
            if self._runs(thing, name):
                yield from (name, self.read(value, depth))

    def _kind(self, thing: type, depth: int) -> str:
        """The class of an object that is there: nobody need call it."""
        if thing not in self.kinds:
            self.kinds[thing] = "again"
            self.kinds[thing] = _hash(*self._class(thing, depth))
        return self.kinds[thing]

    def _runs(self, kind: type, name: str) -> bool:
        """Whether a call may come to what a user's class calls so."""
        if name in CONSTRUCTORS and _is_open(kind):
            return kind.__name__ in self.names and not self.looking  # what it alone names, nothing uses
        return self._counts(kind, name) or (name[:2] == name[-2:] == "__" and name not in NOT_CALLED)

    def _counts(self, kind: type, name: str) -> bool:
        """Whether a call may come to an attribute of that name."""
        free = kind in (Namespace, SimpleNamespace) or _is_open(kind)
        return not free or name in self.names or not self.names.isdisjoint(BY_ANY_NAME) or name in OF_EVERY_MODULE

    def _function(self, thing: FunctionType, depth: int) -> Iterator[str]:
        inner = getattr(thing, "__wrapped__", None)
        if _of_library(thing.__module__, thing) and thing.__closure__ is None and inner is None:
            yield from ("function", _name(thing))
            return
        names = sorted(_names(thing.__code__))
        if self.looking:
            self.names.update(names)
        yield from ("function", _code(thing.__code__))
        yield from (self.read(part, depth) for part in (thing.__defaults__, thing.__kwdefaults__, inner))
        yield self.read({key: value for key, value in vars(thing).items() if key != "__wrapped__"}, depth)
        for name, cell in zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True):
            if name in self.neutral:
                continue
            try:
                yield self.read(cell.cell_contents, depth)
            except ValueError:  # still empty
                yield "empty"
        for name in names:
            if name not in thing.__globals__:
                continue
            value = thing.__globals__[name]
            yield from (name, self.read(value, depth))
            if isinstance(value, ModuleType) and not _of_library(value.__name__, value):
                parts = (part for part in names if part in vars(value))
                yield from (self.read((part, vars(value)[part]), depth) for part in parts)

    def _object(self, thing: object, depth: int) -> Iterator[str]:
        kind = type(thing)
        yield self._kind(kind, depth)
        if _is_silent(kind.__module__) or isinstance(thing, (torch.Generator, Iterator)):
            return
        if isinstance(thing, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
            yield str(getattr(thing, "code", ""))
        attributes = {name: value for name, value in _attributes(thing).items() if self._counts(kind, name)}
        for name, value in sorted(attributes.items()):
            if not isinstance(thing, nn.Module) or (name not in (*OF_MODULES, "training") and (value or _counts(name))):
                yield from (name, self.read(value, depth))
        for group in OF_MODULES if isinstance(thing, nn.Module) else ():
            for key, value in getattr(thing, group).items():
                yield from (key, self.read(value, depth))


def architecture(model: nn.Module) -> str:
    """What a model computes with its parameters: its modules' code, and the plain numbers and texts that they hold."""
    reader, parts = _Reader((), _called({type(module) for module in model.modules()})), []
    for name, module in model.named_modules():
        plain = {k: v for k, v in vars(module).items() if _is_plain(v) and _counts(k)}
        held = (f"{k}={reader.read(v, DEPTH)}" for k, v in sorted(plain.items()) if reader._counts(type(module), k))
        parts += [name, reader.read(type(module), DEPTH), *held]
    return _hash(*parts)


def _counts(attribute: str) -> bool:
    """Whether an attribute of a module is the user's: not whether it was last trained, nor PyTorch's own."""
    return attribute != "training" and not attribute.startswith("_")


def _is_open(kind: type) -> bool:
    """Whether no library's class, of which a user's may be made, calls what the user's code does not name."""
    return all(base in OPEN or not _of_library(base.__module__, base) for base in kind.__mro__)


def _is_silent(module: str) -> bool:
    streams = module.startswith("torch.utils.tensorboard") or module == "hpc_landscape.console"
    return streams or module.partition(".")[0] in SILENT


def _is_time(value: Any) -> bool:
    """Whether a clock has shown this number since the program began."""
    if type(value) is int:
        return BEGAN[0] < value < time.time() or BEGAN[0] < value / 1e9 < time.time()
    finer = type(value) is float and value != round(value, 3)  # than what one writes
    return finer and any(began < value < clock() for began, clock in zip(BEGAN, CLOCKS, strict=True))


def _uncompiled(thing: Any) -> Any:
    """What torch.compile was given."""
    if isinstance(thing, FunctionType):
        return vars(thing).get("_torchdynamo_orig_callable")
    return thing._orig_mod if type(thing).__name__ == "OptimizedModule" else None


def _is_plain(value: object) -> bool:
    return isinstance(value, PLAIN) or (isinstance(value, (tuple, list)) and all(map(_is_plain, value)))


def _hash(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:".encode() + part.encode(errors="surrogatepass"))
    return digest.hexdigest()


def _text(thing: object) -> str:
    return str(thing) if isinstance(thing, enum.Enum) else repr(thing)


def _name(thing: Any) -> str:
    """A file's own name is not counted: it may be moved."""
    module = thing.__module__ or ""
    return f"{module if _of_library(module, thing) else ''}.{thing.__qualname__}"


def _of_library(module: str | None, thing: Any) -> bool:
    """Whether it is installed, and not what a user has written here."""
    if (module or "").partition(".")[0] in PACKAGES:
        return True
    try:
        file = os.path.realpath(inspect.getfile(thing))
    except TypeError:  # built in; or of a session that has no file
        return module in ("builtins", None) or hasattr(builtins, getattr(thing, "__name__", ""))
    except OSError:
        return False
    return file.startswith((*LIBRARIES, OURS))


def _attributes(thing: object) -> dict[str, Any]:
    slots = [vars(kind).get("__slots__", ()) for kind in type(thing).__mro__]
    names = [name for group in slots for name in ((group,) if isinstance(group, str) else group)]
    held = {name: getattr(thing, name) for name in names if not name.startswith("__") and hasattr(thing, name)}
    return held | getattr(thing, "__dict__", {})


def _names(code: CodeType) -> set[str]:
    """All names that a piece of code, and what is defined in it, looks up."""
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _code(code: CodeType) -> str:
    """What is written, or what was made of it where that cannot be found."""
    linecache.checkcache(code.co_filename)
    written = [node for node in _written("".join(linecache.getlines(code.co_filename))) if _is_of(node, code)]
    if len(written) == 1:
        return ast.unparse(_Bare().visit(ast.parse(ast.unparse(written[0]))))
    consts = [_code(c) if isinstance(c, CodeType) else _const(c) for c in code.co_consts]
    doc = code.co_consts[:1] == (None,) or not isinstance(next(iter(code.co_consts), None), str)
    return _hash(code.co_code.hex(), *consts[0 if doc else 1 :], *code.co_names, *code.co_varnames)


def _const(value: object) -> str:
    return ",".join(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


@functools.cache
def _written(source: str) -> list[ast.AST]:
    """The functions and lambdas in a source."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))]


def _is_of(node: Any, code: CodeType) -> bool:
    """Whether code was made of these lines, and of this many arguments."""
    if isinstance(node, ast.Lambda):
        name, line = "<lambda>", node.lineno
    else:
        name, line = node.name, min([node.lineno, *(d.lineno for d in node.decorator_list)])
    arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    count = code.co_argcount + code.co_kwonlyargcount
    return (name, line, tuple(arguments)) == (code.co_name, code.co_firstlineno, code.co_varnames[:count])


class _Bare(ast.NodeTransformer):
    """Takes docstrings out."""

    def visit_FunctionDef(self, node: Any) -> Any:
        self.generic_visit(node)
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return node

    visit_AsyncFunctionDef = visit_ClassDef = visit_FunctionDef


__all__ = ["architecture", "checksum"]
