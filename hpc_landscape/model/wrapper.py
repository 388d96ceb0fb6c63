"""The model, or the agent, as a metric sees it: something to call, some of whose parameters are perturbed."""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

from ..errors import UserError, few
from .eager import check_eager
from .modes import EVAL, check_mode
from .norms import Norms
from .numbers import can_move
from .parameters import ModelParameters

DEPTH = 3  # of lists, dicts and objects in which an agent may keep its modules
LONG = 1000


class ModelWrapper(abc.ABC):
    """Hides how a model is called, and which of its modules are perturbed: the rest of it stays put.

    modules: the perturbed ones. model: what they belong to, an ``nn.Module`` or any object, an agent, say, with modules
    in its attributes, or in lists, dicts and objects there; None: the modules are all there is. Subclasses say how it
    is called: ``forward``.

    mode: how the modules are at points: ``eval``, or ``train_without_dropout`` for a model whose loss exists in train
    mode only.
    """

    mode = EVAL
    norms: Norms | None = None  # which statistics are re-estimated, once that has been found out

    def __init__(self, modules: Sequence[nn.Module], model: Any = None):
        self.modules = list(modules)
        if not self.modules or not all(isinstance(module, nn.Module) for module in self.modules):
            raise TypeError("a ModelWrapper needs a list of the torch.nn.Modules that are perturbed")
        self.model = model
        self.root = _root(self.modules, model)
        check_eager(self.root)
        self.only: set[str] | None = None

    @abc.abstractmethod
    def forward(self, x: Any) -> Any:
        """The model's output, or the agent's action."""

    def __call__(self, x: Any) -> Any:
        return self.forward(x)

    def called_by(self, forward: Callable[[Any, Any], Any], batch: Any) -> Any:
        """What another call of the model gives, ``forward(model, batch)``."""
        return forward(self.get_model(), batch)

    def get_model(self) -> Any:
        """The model, or the agent, itself."""
        return self.root if self.model is None else self.model

    @property
    def class_name(self) -> str:
        """What the model's, or the agent's, class is called: of a model under torch.compile its own."""
        model = self.get_model()
        return type(getattr(model, "_orig_mod", model)).__name__

    def get_modules(self) -> list[nn.Module]:
        """The modules whose parameters are perturbed."""
        return self.modules

    def get_module_parameters(self) -> ModelParameters:
        """The parameters that are perturbed: the tensors themselves, not copies."""
        return ModelParameters(self.parameters())

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that are perturbed, by their names in the whole model, tied ones once."""
        perturbed = {id(p) for module in self.modules for p in module.parameters()}
        named = ((name, p) for name, p in self.root.named_parameters() if id(p) in perturbed)
        return named if self.only is None else (pair for pair in named if pair[0] in self.only)

    def named_moving(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of them that can move: real and complex numbers, no integers."""
        return ((name, p) for name, p in self.named_parameters() if can_move(p))

    def restrict(self, include: str | None = None, exclude: str | None = None, trainable: bool = False) -> ModelWrapper:
        """Let only those parameters be perturbed that patterns choose; UserError where they choose none that can move.

        trainable: only those that are trained, ``requires_grad``; without it frozen ones are perturbed like the others.
        """
        there = {name: p for name, p in self.named_parameters() if p.requires_grad or not trainable}
        if not there:
            raise UserError(
                "--trainable: every parameter is frozen (requires_grad=False), none would move: leave it out"
            )
        chosen = select(list(there), include, exclude)
        if not any(can_move(there[name]) for name in chosen):
            kinds = [f"{name} ({str(there[name].dtype).removeprefix('torch.')})" for name in chosen]
            given = {"include": include, "exclude": exclude}
            options = " ".join(f"--{option} {text}" for option, text in given.items() if text) or "--trainable"
            raise UserError(f"{options}: none of the parameters that are left can move: {few(kinds)}")
        self.only = set(chosen)
        return self

    def in_mode(self, mode: str) -> ModelWrapper:
        """The same wrapper with another mode at points; this one stays as it is."""
        other = copy.copy(self)
        other.mode = check_mode(mode)
        return other

    def parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for _, parameter in self.named_parameters())

    def train(self, mode: bool = True) -> ModelWrapper:
        self.root.train(mode)
        return self

    def eval(self) -> ModelWrapper:
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> ModelWrapper:
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def zero_grad(self) -> ModelWrapper:
        self.root.zero_grad()
        return self


class SimpleModelWrapper(ModelWrapper):
    """A model that is called as modules are, all of it perturbed."""

    def __init__(self, model: nn.Module):
        super().__init__([model], model)

    def forward(self, x: Any) -> Any:
        return self.model(x)


class GeneralModelWrapper(ModelWrapper):
    """A model or an agent with its own call, ``forward_fn(model, x)``, of which these modules are perturbed."""

    def __init__(self, model: Any, modules: Sequence[nn.Module], forward_fn: Callable[[Any, Any], Any]):
        super().__init__(modules, model)
        self.forward_fn = forward_fn

    def forward(self, x: Any) -> Any:
        return self.forward_fn(self.model, x)


def wrap_model(model: nn.Module | ModelWrapper) -> ModelWrapper:
    """The wrapper itself, or one around a module."""
    if isinstance(model, ModelWrapper):
        return model
    if isinstance(model, nn.Module):
        return SimpleModelWrapper(model)
    raise TypeError(
        f"the model is a {type(model).__name__}: give a torch.nn.Module, or GeneralModelWrapper(model, modules, "
        "forward_fn) that says which of its modules are perturbed and how it is called"
    )


def _root(modules: list[nn.Module], model: object) -> nn.Module:
    """One module that holds all: the model where it is one, else its own modules under the names that it gives them."""
    if isinstance(model, nn.Module):
        foreign = {id(p) for m in modules for p in m.parameters()} - {id(p) for p in model.parameters()}
        if foreign:
            raise ValueError("a perturbed module has parameters that are none of the model's")
        return model
    if model is None and len(modules) == 1:
        return modules[0]
    known: set[Any] = set()
    root = _held(_attributes(model), DEPTH, known)
    for i, module in enumerate(modules):
        if module not in known:
            _add(root, f"module{i}", module, known)
    return root


def _held(things: Mapping[Any, Any], depth: int, known: set[Any]) -> nn.Module:
    """A module that holds the modules among things, and those in their lists, dicts and objects."""
    holder, others = nn.Module(), {}
    for name, thing in things.items():
        if not isinstance(thing, nn.Module):
            others[name] = thing
        elif thing not in known:
            _add(holder, name, thing, known)
    for name, thing in others.items() if depth else ():  # afterwards, so that a module has its shortest name
        if id(thing) not in known:
            known.add(id(thing))
            held = _held(_attributes(thing), depth - 1, known)
            if held._modules:
                _add(holder, name, held, known)
    return holder


def _add(holder: nn.Module, name: object, module: nn.Module, known: set[Any]) -> None:
    name = str(name).replace(".", "_") or "_"
    while hasattr(holder, name):  # also what every module has: forward, train
        name += "_"
    holder.add_module(name, module)
    known.update(module.modules())


def _attributes(thing: object) -> Mapping[Any, Any]:
    """What a thing holds: a list's or dict's items, unless it is long (a replay buffer); an object's attributes."""
    if isinstance(thing, (list, tuple, dict)):
        items = thing if isinstance(thing, dict) else dict(enumerate(thing))
        return items if len(items) <= LONG else {}
    if isinstance(thing, (type, ModuleType, FunctionType, Tensor)):
        return {}
    slots = [vars(kind).get("__slots__", ()) for kind in type(thing).__mro__]
    names = [name for group in slots for name in ((group,) if isinstance(group, str) else group)]
    return {name: getattr(thing, name) for name in names if hasattr(thing, name)} | getattr(thing, "__dict__", {})


def select(names: Sequence[str], include: str | None = None, exclude: str | None = None) -> list[str]:
    """The parameter names that patterns choose: comma-separated names of parameters or modules, or globs.

    UserError where a pattern fits no name, or nothing is left.
    """
    chosen = set(names) if include is None else _fitting(names, include, "include")
    if exclude is not None:
        chosen -= _fitting(names, exclude, "exclude")
    if not chosen:
        raise UserError(f"--include {include} --exclude {exclude}: no parameter is left that moves")
    return [name for name in names if name in chosen]


def _fitting(names: Sequence[str], patterns: str, option: str) -> set[str]:
    fitting = set()
    for pattern in filter(None, map(str.strip, patterns.split(","))):
        found = {name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")}
        if not found:
            some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise UserError(f"--{option} {pattern}: fits no parameter that can move; there are {some}")
        fitting |= found
    return fitting
