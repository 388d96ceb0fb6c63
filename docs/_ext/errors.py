"""Every message of a user's mistake, read from the code: what stands in each `UserError(...)`, in words."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hpc_landscape

ROOT = Path(hpc_landscape.__file__).parent
MOST = 8  # texts of one place in the code
DEPTH = 4  # of names that stand for names

# What helps in general, by what the messages are about: the titles of reference.ABOUT. Markdown.
REMEDIES = {
    "The command line and the settings": (
        "`--help` says what each option takes, `--help KIND` the arguments of one kind, and `--print_config` how the "
        "command was understood. Of a file that is named (`--config run.yaml`) mend the line that the message quotes. "
        "All [options](options.md) and [kinds](kinds.md)."
    ),
    "The problem, its loss and its data": (
        "Mend the factory. [What you may bring](../what_you_bring.md) has a row for each kind of loss and data, [a "
        "model of your own](../howto/own_model.md) what `forward`, `loss` and `count` receive. To see the fault "
        "without the program, call the factory, and its loss on one batch, in Python; "
        "`hpc_landscape.testing.check_problem` does."
    ),
    "The model and its checkpoints": (
        "Put the names in the file, `torch.load(path).keys()`, beside those of `model.state_dict()`: the factory has "
        "to build the network that was trained, with the same `--problem.ARGUMENT`s. Of several networks in a file "
        "[`--checkpoint_key`](#option-checkpoint_key) takes one; which parameters move is said by "
        "[`--include`](#option-include) and [`--exclude`](#option-exclude)."
    ),
    "Directions": (
        "[Choose directions](../howto/directions_and_size.md) says what each kind needs. Directions and other models "
        "have to be of parameters of the same names and shapes as the model's; random directions need nothing."
    ),
    "Metrics": (
        "[Metrics](metrics.md) have their arguments there, and in `--help METRIC`. Leave out the metric that is named, "
        "and the rest can be computed. One of your own is tried by `hpc_landscape.testing.check_metric` ([a kind of "
        "your own](../kinds.md)); where a loss has no second derivative, curvature cannot be had."
    ),
    "Evaluating points": (
        "What is said here shows at a single point already: find it with one process and `--x=0:0:1 --y none`. Seed "
        "what a factory draws; a batch of one sample goes away with another [`--batch_size`](#option-batch_size)."
    ),
    "The file that is written": (
        "A file that is not understood is never written to: choose another [`--output`](#option-output), or begin "
        "again by [`--overwrite`](#option-overwrite) where the file is of another run. Where room is missing, make "
        "some, choose another file system, or take fewer points. [What a run compares](../concepts/identity.md) and "
        "[what a fault costs](../howto/resume_and_faults.md)."
    ),
    "Ranks, GPUs and MPI": (
        "`info --environment`, started as the run was, says what each process has of MPI, GPUs and cores ([what to "
        "look at](../howto/report_a_bug.md)); [a cluster, step by step](../howto/cluster.md) has the usual causes. "
        "Without `mpirun`, and with `--device cpu`, the program needs neither MPI nor GPU."
    ),
    "Pictures, numbers and other formats": (
        "`info FILE` says which metrics and axes a file has, and what is done; `plot --help` and the others' say what "
        "each option takes ([commands](commands.md)). These commands never change a landscape file."
    ),
    "The library": (
        "First say where to go (`random_plane`, `interpolation`, `pca`, ...), then `warm_up` where it is wanted, then "
        "`compute`, then `save`: [the library](api.md) has the arguments of each."
    ),
}


@dataclass(frozen=True)
class Site:
    """A place in the code where the error is made: the module, below the package, its line, and what it can say.

    texts: empty where it passes on what another place has said.
    """

    module: str
    line: int
    texts: tuple[str, ...]


@functools.cache
def sites(error: str = "UserError") -> tuple[Site, ...]:
    """All places where this error is made, in the order of rooms, files and lines."""
    return tuple(site for path in sorted(ROOT.rglob("*.py")) for site in _of_module(path, error))


def _of_module(path: Path, error: str) -> Iterator[Site]:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for function, call in _calls(tree, None):
        if isinstance(call.func, ast.Name) and call.func.id == error:
            texts = _Reader(tree, function, module).texts(call.args[0]) if call.args else []
            said = dict.fromkeys(_in_one_line(text) for text in texts)
            yield Site(module, call.lineno, tuple(text for text in said if _has_words(text)))


def _calls(node: ast.AST, function: ast.AST | None) -> Iterator[tuple[Any, ast.Call]]:
    """Every call below a node, with the innermost function that it is in."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            yield function, child
        yield from _calls(child, child if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) else function)


def _in_one_line(text: str) -> str:
    return " ".join(text.split())


def _has_words(text: str) -> bool:
    """Whether it says something by itself, beside what stands in <brackets>."""
    return bool(re.search(r"[A-Za-z]{2}", re.sub(r"<[^<>]*>", "", text)))


class _Reader:
    """What an expression can come to, as texts; what is known only when the program runs is a word in <brackets>."""

    def __init__(self, tree: ast.AST, function: ast.AST | None, module: str, depth: int = DEPTH):
        self.tree, self.function, self.module, self.depth = tree, function, module, depth

    def texts(self, node: ast.expr) -> list[str]:
        """The texts, several where the code chooses."""
        return list(dict.fromkeys(self._texts(node)))[:MOST]

    def _texts(self, node: ast.expr) -> list[str]:
        match node:
            case ast.Constant(value=value):
                return [str(value)]
            case ast.JoinedStr(values=parts):
                return _joined(self.texts(part) for part in parts)
            case ast.FormattedValue(value=value):
                return self.texts(value)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return _joined([self.texts(left), self.texts(right)])
            case ast.BinOp(left=ast.JoinedStr() | ast.Constant(value=str()) as text, op=ast.Mult()):
                return _perhaps(self.texts(text))
            case ast.IfExp(body=body, orelse=orelse):
                texts = [*self.texts(body), *self.texts(orelse)]
                if "" in texts:
                    return _perhaps([text for text in texts if text])
                words = all(re.fullmatch(r"[a-z]+", text) for text in texts)
                return ["/".join(texts)] if words else texts  # axis/axes
            case ast.BoolOp(op=ast.And(), values=values):
                return _perhaps(self.texts(values[-1]))
            case ast.BoolOp(op=ast.Or(), values=values):
                return [text for value in values for text in self.texts(value)]
            case ast.Name(id=name):
                return self._named(name) or [f"<{_word(name)}>"]
            case ast.Call(func=ast.Name(id=name)) if name in SAID:
                return [f"<{SAID[name]}>"]
            case ast.Call(func=ast.Name(id="printable"), args=[text, *_]):
                return self.texts(text)
            case ast.Call(func=ast.Name(id=name)) if found := self._returned(name):
                return found
            case ast.Call(func=ast.Attribute(value=ast.Constant(value=glue), attr="join"), args=[items]):
                known = self._global(items.id) if isinstance(items, ast.Name) else None
                if isinstance(known, (list, tuple, dict)) and all(isinstance(item, str) for item in known):
                    return [glue.join(known)]
                return [f"<{_words(items)}>" + f"{glue}..." * bool(glue.strip())]
            case ast.Call(func=ast.Attribute(value=value, attr="format")) if texts := self.texts(value):
                return [re.sub(r"{(\w*)[^}]*}", lambda m: f"<{m[1] or 'value'}>", text) for text in texts]
        return [f"<{_words(node)}>"]

    def _named(self, name: str) -> list[str]:
        """What a name stands for: a text that this function, this module, or the one that it is from, gives it."""
        if self.depth == 0:
            return []
        deeper = _Reader(self.tree, self.function, self.module, self.depth - 1)
        for scope in (self.function, self.tree):
            nodes = ast.walk(scope) if scope is self.function and scope else getattr(scope, "body", ())
            values = [
                node.value
                for node in nodes
                if isinstance(node, (ast.Assign, ast.AugAssign, ast.NamedExpr)) and _is_of(name, node)
            ]
            found = [text for value in values for text in deeper.texts(value)]
            if found and all(map(_has_words, found)):
                return found
        there = self._global(name)
        return [re.sub(r"{(\w*)[^}]*}", r"<\1>", str(there))] if isinstance(there, (str, int, float)) else []

    def _global(self, name: str) -> Any:
        """What the module knows by this name, also where it is imported in a function."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.level and name in [alias.name for alias in node.names]:
                where = [*["hpc_landscape", *self.module.split(".")][: -node.level], *(node.module or "").split(".")]
                return getattr(importlib.import_module(".".join(filter(None, where))), name, None)
        return vars(_module(self.module)).get(name)

    def _returned(self, name: str) -> list[str]:
        """What a function of ours returns, where that is text."""
        function = inspect.unwrap(found) if callable(found := self._global(name)) else None
        if self.depth == 0 or not inspect.isfunction(function) or not function.__module__.startswith("hpc_landscape."):
            return []
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
        module = function.__module__.removeprefix("hpc_landscape.")
        reader = _Reader(ast.parse(inspect.getsource(_module(module))), tree, module, self.depth - 1)
        values = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return) and node.value]
        texts = [text for value in values for text in reader.texts(value) if text != "None"]
        return texts if texts and all(map(_has_words, texts)) else []


@functools.cache
def _module(name: str) -> Any:
    return importlib.import_module(f"hpc_landscape.{name}".removesuffix(".__init__"))


def _joined(parts: Iterable[list[str]]) -> list[str]:
    """The texts of an expression of several parts, each of which has some."""
    return ["".join(choice) for choice in itertools.islice(itertools.product(*parts), MOST)]


def _perhaps(texts: list[str]) -> list[str]:
    """Texts that are there only sometimes."""
    return [f"[{text}]" if text.strip() else text for text in texts]


def _is_of(name: str, node: ast.Assign | ast.AugAssign | ast.NamedExpr) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


def _words(node: ast.AST) -> str:
    """What an expression is called, in a word or two: the name in it that says most."""
    match node:
        case ast.Attribute(value=ast.Call(func=ast.Name(id="type")), attr="__name__"):
            return "type"
        case ast.Attribute(attr=attr):
            return _word(attr)
        case ast.Name(id=name):
            return _word(name)
        case ast.Call(func=ast.Name(id=name), args=args) if name in PASSED and args:
            return _words(args[0])
        case ast.Call(func=ast.Name(id=name)):
            return SAID.get(name, _word(name))
        case ast.Call(func=ast.Attribute(value=value)):
            return _words(value)
        case ast.Subscript(value=value):
            return _words(value)
        case ast.GeneratorExp(generators=[first, *_]) | ast.ListComp(generators=[first, *_]):
            return _words(first.iter)
        case ast.BinOp(left=left, right=right):
            return _words(right if isinstance(left, ast.Constant) else left)
        case ast.Starred(value=value):
            return _words(value)
        case ast.List(elts=[first, *_]) | ast.Tuple(elts=[first, *_]):
            return _words(first)
    return "value"


PASSED = ("str", "repr", "sorted", "list", "tuple", "len", "sum", "max")
SAID = {
    "user_traceback": "what was raised, and where",
    "first_line": "what was raised",
    "few": "names",
    "first_few": "names",
}


def _word(name: str) -> str:
    return name.strip("_").replace("_", " ")
