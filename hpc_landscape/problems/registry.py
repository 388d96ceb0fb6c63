"""Problems by name, and how a factory that makes one is called."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import Stopped, UserError, user_traceback
from ..kinds import PROBLEMS
from ..objects import left, script_alone
from ..options import as_type
from .problem import Problem

# Names of factories that are no name of what they make: make_problem, get_model, main.
_SAYS_NOTHING = re.compile(r"main|setup|((make|get|build|create|load|new)_?)?(problem|factory|model|task|landscape)?")


def load_problem(spec: str, arguments: Mapping[str, Any]) -> Problem:
    """Find the factory that ``spec`` names and call it; UserError says what is wrong with it, or where it raised."""
    factory = PROBLEMS.load(spec)
    arguments = type_arguments(factory, arguments, spec)
    try:
        with script_alone(PROBLEMS.built_in.get(spec, spec).rpartition(":")[0]):
            problem = factory(**arguments)
    except (UserError, Stopped):
        raise
    except SystemExit as exit_:
        raise UserError(f"--problem {spec}: the factory {left(exit_)}") from None
    except Exception as error:
        raise UserError(f"--problem {spec}: the factory raised {user_traceback(error)}") from None
    if not isinstance(problem, Problem):
        raise UserError(
            f"--problem {spec}: the factory returned a {type(problem).__name__}, "
            "not hpc_landscape.Problem(model, loss, data)"
        )
    problem.arguments = _with_defaults(factory, arguments)
    problem.check()
    problem.name = problem.name or _name(spec.rpartition(":")[2], problem)
    return problem


def _name(factory: str, problem: Problem) -> str:
    """What titles call a problem that does not say: as its factory, or its model's class where that says nothing."""
    return problem.wrapper.class_name if _SAYS_NOTHING.fullmatch(factory) else factory


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
            annotation: Any = Any
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
