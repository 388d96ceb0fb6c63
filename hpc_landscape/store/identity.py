"""What a thing that users bring is made of, as a checksum: two that compute the same, in two processes, have the same.

Of functions and classes their code counts, as it is written: the source without comments, docstrings and layout, so
that neither a Python version nor a file's place changes it; the bytecode where there is no source (exec, an interactive
session). With it count defaults, what a closure holds, and the globals that the code names. Of libraries (whatever is
installed, and this package) the name counts; of objects their attributes; of modules parameters and buffers too.
Addresses, line numbers and paths of files do not count, nor do things whose state says nothing: loggers, locks, files.
"""

from __future__ import annotations

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
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

DEPTH = 12  # of things in things
PLAIN = (type(None), bool, int, float, complex, str, bytes)
SILENT = ("logging", "threading", "_thread", "_io", "io", "weakref", "torch.utils.tensorboard", "wandb", "tqdm")
OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
INSTALLED = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
LIBRARIES = tuple(os.path.realpath(path) + os.sep for path in sorted({*INSTALLED, *site.getsitepackages()}))
PACKAGES = ("torch", "numpy", "hpc_landscape", "builtins")
OF_MODULES = ("_parameters", "_buffers", "_modules")
OF_CLASSES = {"__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__firstlineno__"}


def checksum(thing: Any, known: Iterable[Any] = ()) -> str:
    """Of a thing; known: objects in it that are told elsewhere, such as the model."""
    return _Reader(known).read(thing, DEPTH)


class _Reader:
    """Reads nests of things, each object once."""

    def __init__(self, known: Iterable[Any] = ()):
        self.seen: dict[int, str] = {id(thing): "told elsewhere" for thing in known}
        self.kept: list[Any] = []  # else another object might get an address anew

    def read(self, thing: Any, depth: int) -> str:
        """Its checksum; of one that is just being read, that it comes again."""
        if isinstance(thing, (*PLAIN, enum.Enum)):
            return _hash(type(thing).__name__, _text(thing))
        if id(thing) in self.seen:
            return self.seen[id(thing)]
        if not depth:
            return _hash("deep", _name(type(thing)))
        self.seen[id(thing)] = "again"
        self.kept.append(thing)
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
        elif _is_plain(thing):
            yield from (kind.__name__, repr(thing))
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
            yield from self._class(thing, depth)
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
        yield from (self.read(base, depth) for base in thing.__bases__)
        for name, value in sorted(vars(thing).items()):
            if name not in OF_CLASSES and not name.startswith(("_abc", "__annot", "__static_attr")):
                yield from (name, self.read(value, depth))

    def _function(self, thing: FunctionType, depth: int) -> Iterator[str]:
        inner = getattr(thing, "__wrapped__", None)
        if _of_library(thing.__module__, thing) and thing.__closure__ is None and inner is None:
            yield from ("function", _name(thing))
            return
        yield from ("function", _code(thing.__code__))
        yield from (self.read(part, depth) for part in (thing.__defaults__, thing.__kwdefaults__, inner))
        yield self.read({key: value for key, value in vars(thing).items() if key != "__wrapped__"}, depth)
        for cell in thing.__closure__ or ():
            try:
                yield self.read(cell.cell_contents, depth)
            except ValueError:  # still empty
                yield "empty"
        names = sorted(_names(thing.__code__))
        for name in names:
            if name not in thing.__globals__:
                continue
            value = thing.__globals__[name]
            yield from (name, self.read(value, depth))
            if isinstance(value, ModuleType) and not _of_library(value.__name__, value):
                parts = (part for part in names if part in vars(value))
                yield from (self.read((part, vars(value)[part]), depth) for part in parts)

    def _object(self, thing: Any, depth: int) -> Iterator[str]:
        kind = type(thing)
        yield self.read(kind, depth)
        if kind.__module__.startswith(SILENT) or isinstance(thing, (torch.Generator, Iterator)):
            return
        if isinstance(thing, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
            yield str(getattr(thing, "code", ""))
        attributes = _attributes(thing)
        for name, value in sorted(attributes.items()):
            if not isinstance(thing, nn.Module) or (name not in (*OF_MODULES, "training") and (value or _counts(name))):
                yield from (name, self.read(value, depth))
        for group in OF_MODULES if isinstance(thing, nn.Module) else ():
            for key, value in getattr(thing, group).items():
                yield from (key, self.read(value, depth))


def architecture(model: nn.Module) -> str:
    """What a model computes with its parameters: its modules' code, and the plain numbers and texts that they hold."""
    reader, parts = _Reader(), []
    for name, module in model.named_modules():
        held = [f"{k}={v!r}" for k, v in sorted(vars(module).items()) if _is_plain(v) and _counts(k)]
        parts += [name, reader.read(type(module), DEPTH), *held]
    return _hash(*parts)


def _counts(attribute: str) -> bool:
    """Whether an attribute of a module is the user's: not whether it was last trained, nor PyTorch's own."""
    return attribute != "training" and not attribute.startswith("_")


def _is_plain(value: Any) -> bool:
    return isinstance(value, PLAIN) or (isinstance(value, (tuple, list)) and all(map(_is_plain, value)))


def _hash(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:".encode() + part.encode(errors="surrogatepass"))
    return digest.hexdigest()


def _text(thing: Any) -> str:
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


def _attributes(thing: Any) -> dict[str, Any]:
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


def _const(value: Any) -> str:
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
