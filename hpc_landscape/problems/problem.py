"""A problem: model, loss and data; and how a factory that makes one is found and called."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import nn

from ..data.data import Data
from ..errors import Stopped, UserError, user_traceback
from ..metrics.base import Metric
from ..metrics.criterion import REDUCTIONS, takes_no_data, without_data
from ..model.modes import EVAL, check_mode
from ..model.numbers import can_move
from ..model.wrapper import ModelWrapper, wrap_model
from ..options import as_type

BUILT_IN = {"digits": "hpc_landscape.problems.digits:digits"}


@dataclass
class Problem:
    """What a factory returns.

    model: the network; or a wrapper that says how a model or an agent is called, and which of its modules move.
    loss: ``loss(output, target)``, a mean over the batch (a torch.nn loss, say), or several as a dict or tuple; without
    data ``loss()`` or ``loss(model)``.
    data: what the metrics are computed on: a pair of tensors, a Dataset or a DataLoader; or several such by name,
    ``{"train": ..., "test": ...}``.
    warmup_data: what batch normalization is re-estimated on; None: the data (of several, "train", else the first).
    forward, count: for batches that are not (input, target): ``forward(model, batch)`` gives the output, loss receives
    (output, batch), and ``count(batch)`` says over how many items the mean was taken.
    reduction: ``sum`` where the loss is a sum over the batch: it is added up over the batches then, and not averaged.
    train: makes the model what it should be, in place, where it does not come trained; runs on rank 0 only.
    score: says how good the trained model is, in a few words, on data that it was not trained on.
    axis: the default axis, MIN:MAX:N. name: for titles.
    metrics: metrics of its own, asked for by their names. env: of an agent, a Gymnasium environment, or its name.
    neutral: arguments of the factory that no value depends on, the name of a log, say: a run goes on with others.
    mode: how the modules are at points; ``train_without_dropout`` for a model whose loss exists in train mode only (a
    detector): all in train mode but dropout and what keeps running statistics.
    """

    model: nn.Module | ModelWrapper
    loss: Callable[..., Any] | None = None
    data: Any = None
    warmup_data: Any = None
    forward: Callable[[nn.Module, Any], Any] | None = None
    count: Callable[[Any], Any] | None = None
    train: Callable[[nn.Module], None] | None = None
    score: Callable[[nn.Module], str] | None = None
    axis: str = "-1:1:51"
    name: str = ""
    metrics: Sequence[Metric] = ()
    env: Any = None
    neutral: Sequence[str] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict, init=False, repr=False)  # that the factory was given
    mode: str = EVAL
    reduction: str | None = None

    def __post_init__(self) -> None:
        if self.data is None and self.forward is None and callable(self.loss) and takes_no_data(self.loss):
            self.data, self.forward = (
                (torch.zeros(1, device="cpu"),),
                without_data(self.loss),
            )  # one batch, which nobody looks at

    @cached_property
    def wrapper(self) -> ModelWrapper:
        """How metrics see the model."""
        wrapper = wrap_model(self.model)
        return wrapper if self.mode == EVAL else wrapper.in_mode(self.mode)

    @property
    def root(self) -> nn.Module:
        """All there is of the model."""
        return self.wrapper.root

    @property
    def sets(self) -> dict[str, Any]:
        """The data by name; the name of a single set is empty."""
        if self.data is None:
            return {}
        return dict(self.data) if isinstance(self.data, Mapping) else {"": self.data}

    def on(self, batches: Iterable[Any]) -> Data:
        """The batches as metrics read them."""
        return Data(batches, forward=self.forward, count=self.count)

    def check(self) -> None:
        """Raise UserError where a part is missing or of the wrong kind."""
        if not isinstance(self.model, (nn.Module, ModelWrapper)):
            raise UserError(
                f"the problem's model is a {type(self.model).__name__}, not a torch.nn.Module (an agent is wrapped: "
                "GeneralModelWrapper(agent, [agent.policy], lambda agent, x: agent.act(x)))"
            )
        check_mode(self.mode)
        if self.loss is not None and not callable(self.loss):
            raise UserError(
                f"the problem's loss is a {type(self.loss).__name__}: it must be callable, loss(output, target)"
            )
        self._check_loss()
        if self.data is None and not self.metrics and self.env is None:
            raise UserError(
                "the problem has no data: give Problem(model, loss, data) tensors, a Dataset or a DataLoader; or "
                "metrics of its own, or an env"
            )
        if self.data is not None and self.loss is None:
            raise UserError("the problem has data but no loss: give Problem(model, loss, data) a loss(output, target)")
        for name in self.sets:
            if name and not name.isidentifier():
                raise UserError(f"the problem's data has a set called '{name}': take letters, digits and underscores")
        self._check_parameters()

    def _check_loss(self) -> None:
        if self.reduction not in REDUCTIONS:
            raise UserError(f"the problem's reduction is {self.reduction!r}: it must be 'mean' or 'sum'")
        if self.reduction is None and getattr(self.loss, "reduction", "mean") == "none":
            raise UserError("the problem's loss has reduction='none': it must be one number, 'mean' or 'sum'")
        if self.loss is not None and self.forward is None and self.data is not None and takes_no_data(self.loss):
            raise UserError(
                "the problem has data, and its loss does not take (output, target): leave out the data, or let it "
                "take them"
            )

    def _check_parameters(self) -> None:
        parameters = list(self.root.parameters())
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in parameters):
            raise UserError("the problem's model has lazy layers without a shape yet: call it once in the factory")
        if not any(map(can_move, self.wrapper.parameters())):
            raise UserError("the problem's model has no floating-point parameters: there is nothing to move")


def load_problem(spec: str, arguments: Mapping[str, Any]) -> Problem:
    """Find the factory that ``spec`` names and call it; UserError says what is wrong with it, or where it raised."""
    factory = find_object(spec)
    arguments = type_arguments(factory, arguments, spec)
    try:
        with script_alone(_file_of(spec)):
            problem = factory(**arguments)
    except (UserError, Stopped):
        raise
    except SystemExit as left:
        raise UserError(f"--problem {spec}: the factory {_left(left)}") from None
    except Exception as error:
        raise UserError(f"--problem {spec}: the factory raised {user_traceback(error)}") from None
    if not isinstance(problem, Problem):
        raise UserError(
            f"--problem {spec}: the factory returned a {type(problem).__name__}, "
            "not hpc_landscape.Problem(model, loss, data)"
        )
    problem.arguments = _with_defaults(factory, arguments)
    problem.name = problem.name or spec.rpartition(":")[2]
    problem.check()
    return problem


class _WantsArguments(SystemExit):
    """Raised where a script's argparse would print its usage and leave."""


@contextmanager
def script_alone(name: str) -> Iterator[None]:
    """A script that reads the command line meanwhile sees its own name alone: what is there is for this program."""

    def error(parser: argparse.ArgumentParser, message: str) -> NoReturn:
        raise _WantsArguments(message)

    words, said = sys.argv, argparse.ArgumentParser.error
    sys.argv, argparse.ArgumentParser.error = [name], error
    try:
        yield
    finally:
        sys.argv, argparse.ArgumentParser.error = words, said


def _file_of(spec: str) -> str:
    """What a script that is named so is shown as its own name."""
    return BUILT_IN.get(spec, spec).rpartition(":")[0]


def _left(left: SystemExit) -> str:
    """What ended the program, and what helps."""
    said = " ".join(str(left).split())
    main = 'under if __name__ == "__main__":'
    if isinstance(left, _WantsArguments):
        return (
            f"raised SystemExit: its argparse says '{said}'. It is shown its own name alone: give its arguments "
            f"defaults, or parse them {main}"
        )
    return f"raised SystemExit{f': {said}' if said else ''}, which ends a program: put what a script alone does {main}"


def find_object(spec: str, option: str = "--problem") -> Callable[..., Any]:
    """The function or class that ``package.module:name``, ``path/file.py:name`` or a built-in problem's name means."""
    where, colon, name = BUILT_IN.get(spec, spec).rpartition(":")
    if not colon or not where or not name:
        raise UserError(
            f"{option} {spec}: expected package.module:factory, path/file.py:factory, or one of {', '.join(BUILT_IN)}"
        )
    try:
        with script_alone(where):
            module = (
                _import_file(where, f"{option} {spec}")
                if where.endswith(".py")
                else _import_module(where, f"{option} {spec}")
            )
    except (UserError, KeyboardInterrupt, Stopped):
        raise
    except SystemExit as left:
        raise UserError(f"{option} {spec}: importing {where} {_left(left)}") from None
    except BaseException as error:
        raise UserError(f"{option} {spec}: importing {where} raised {user_traceback(error)}") from None
    factory = getattr(module, name, None)
    if not callable(factory):
        own = {k: v for k, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__}
        classes = {k for k, v in own.items() if inspect.isclass(v) and issubclass(v, Metric)}
        public = [k for k, v in own.items() if inspect.isfunction(v) or (option == "--metrics" and k in classes)]
        have = f"; it has {', '.join(public)}" if public else ""
        raise UserError(f"{option} {spec}: {where} has no function '{name}'{have}")
    return factory


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
    module_spec = importlib.util.spec_from_file_location(name, os.path.join(folder, file))
    module = importlib.util.module_from_spec(module_spec)
    sys.modules.setdefault(name, module)
    try:
        module_spec.loader.exec_module(module)
    except BaseException:
        if sys.modules.get(name) is module:
            del sys.modules[name]
        raise
    return module


def type_arguments(factory: Callable[..., Any], arguments: Mapping[str, Any], spec: str) -> dict[str, Any]:
    """The arguments, text from the command line among them, as the types that the factory's signature asks for."""
    try:
        parameters = inspect.signature(factory, eval_str=True).parameters
    except NameError:  # an annotation that is imported for type checkers only
        parameters = inspect.signature(factory).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    typed = {}
    for key, value in arguments.items():
        if key not in parameters:
            if not takes_any:
                known = ", ".join(f"--problem.{name}" for name in parameters) or "none"
                raise UserError(f"--problem.{key}: {spec} takes no '{key}'; it takes: {known}")
            annotation = Any
        else:
            annotation = _annotation(parameters[key])
        try:
            typed[key] = as_type(value, annotation)
        except (ValueError, TypeError):  # TypeError: of an annotation that is no type
            kind = annotation.__name__ if type(annotation) is type else str(annotation).replace("typing.", "")
            raise UserError(f"--problem.{key}: expected {kind}, got {value!r}") from None
    missing = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name not in typed
    ]
    if missing:
        raise UserError(f"--problem {spec} needs {', '.join(f'--problem.{name} VALUE' for name in missing)}")
    return typed


def _with_defaults(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The same, those that were not given among them: one that is given its default is no other run."""
    bound = inspect.signature(factory).bind(**arguments)
    bound.apply_defaults()
    extra = {p.name for p in bound.signature.parameters.values() if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    return {key: value for key, value in bound.arguments.items() if key not in extra} | dict(arguments)


def _annotation(parameter: inspect.Parameter) -> Any:
    """The type to read an argument as; without one any, except that a string default keeps it a string."""
    if parameter.annotation is inspect.Parameter.empty or isinstance(parameter.annotation, str):
        return str if isinstance(parameter.default, str) else Any
    return parameter.annotation
