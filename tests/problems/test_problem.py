"""Factories: found by module or file, called with typed arguments; each mistake is one clear line."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from torch import nn

from hpc_landscape.errors import UserError
from hpc_landscape.model.wrapper import wrap_model
from hpc_landscape.objects import find_object
from hpc_landscape.problems.problem import Problem
from hpc_landscape.problems.registry import load_problem, type_arguments

HEADER = """
import torch
from hpc_landscape import Problem
DATA = (torch.zeros(4, 3), torch.zeros(4, dtype=torch.long))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of the user's, the current one; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - set(before):
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def said(spec: str, arguments: dict[str, Any] | None = None) -> str:
    with pytest.raises(UserError) as error:
        load_problem(spec, arguments or {})
    return str(error.value)


def one_line(spec: str, arguments: dict[str, Any] | None = None) -> str:
    text = said(spec, arguments)
    assert "\n" not in text
    return text


GOOD = HEADER + "def make(width=3):\n    return Problem(torch.nn.Linear(width, 2), torch.nn.CrossEntropyLoss(), DATA)\n"


# Found


@pytest.mark.parametrize("spec", ["mine.py:make", "./mine.py:make", "{here}/mine.py:make", "mine:make"])
def test_by_file_and_by_module(here, spec):
    (here / "mine.py").write_text(GOOD)
    problem = load_problem(spec.format(here=here), {"width": "5"})
    assert problem.model.in_features == 5 and problem.name == "Linear"


@pytest.mark.parametrize(
    ("factory", "given", "name"),
    [
        ("resnet20", "", "resnet20"),
        ("problem", "", "Linear"),
        ("make_problem", "", "Linear"),
        ("get_model", "", "Linear"),
        ("main", "", "Linear"),
        ("make_cake", "", "make_cake"),
        ("problem", ", name='my net'", "my net"),
    ],
)
def test_it_is_called_as_it_says_else_as_its_factory_else_as_its_model(here, factory, given, name):
    parts = f"torch.nn.Linear(3, 2), torch.nn.CrossEntropyLoss(), DATA{given}"
    (here / "mine.py").write_text(f"{HEADER}def {factory}():\n    return Problem({parts})\n")
    assert load_problem(f"mine.py:{factory}", {}).name == name


def test_by_package(here):
    (here / "pack").mkdir()
    (here / "pack" / "__init__.py").write_text("")
    (here / "pack" / "inner.py").write_text("from .helper import make\n")
    (here / "pack" / "helper.py").write_text(GOOD)
    assert load_problem("pack.inner:make", {}).model.in_features == 3


def test_a_file_finds_what_lies_beside_it(here):
    (here / "sub").mkdir()
    (here / "sub" / "mine_beside.py").write_text("from beside_it import make\n")
    (here / "sub" / "beside_it.py").write_text(GOOD)
    assert load_problem("sub/mine_beside.py:make", {}).model.in_features == 3


def test_data_loading_workers_find_the_file_by_its_name(here):
    (here / "by_name.py").write_text(GOOD)
    factory = find_object("by_name.py:make", "--problem")
    assert factory.__module__ == "by_name" and sys.modules["by_name"].make is factory
    assert find_object("by_name.py:make", "--problem") is factory  # imported once


@pytest.mark.parametrize("name", ["random", "statistics", "queue", "torch"])
def test_a_file_with_the_name_of_another_module(here, name):
    import random

    (here / f"{name}.py").write_text(GOOD)
    stays = sys.modules.get(name)
    try:
        assert load_problem(f"{name}.py:make", {"width": 4}).model.in_features == 4
        assert sys.modules["random"] is random and sys.modules["torch"] is torch
    finally:
        if stays is not None:
            assert sys.modules[name] is stays


def test_a_path_that_is_no_identifier(here):
    (here / "my problem-1.py").write_text(GOOD)
    (here / "größe.py").write_text(GOOD, encoding="utf-8")
    assert load_problem("my problem-1.py:make", {}).name == load_problem("größe.py:make", {}).name == "Linear"


def test_the_built_in_problem():
    problem = load_problem("digits", {"width": "2", "epochs": "1"})
    assert problem.name == "digits" and len(problem.data[0]) == 1437 and problem.train is not None
    again = load_problem("digits", {"width": 2})
    assert all(torch.equal(a, b) for a, b in zip(problem.model.parameters(), again.model.parameters(), strict=True))


def test_a_name_of_the_problem_s_own(here):
    (here / "named.py").write_text(GOOD.replace("DATA)", "DATA, name='Mine')"))
    assert load_problem("named.py:make", {}).name == "Mine"


# Not found


@pytest.mark.parametrize("spec", ["digit", "mine.py", ":make", "mine.py:", "", ":"])
def test_not_a_factory_s_name(here, spec):
    text = one_line(spec)
    assert text.startswith(f"--problem {spec}:") and "package.module:factory" in text and "digits" in text


def test_no_such_file(here):
    assert one_line("none.py:make") == "--problem none.py:make: there is no file none.py"


@pytest.mark.parametrize("where", ["no_such_module", "no_such.module", "json.no_such", "hpc_landscape.no.such"])
def test_no_such_module(here, where):
    assert "there is no module" in one_line(f"{where}:make")


def test_no_such_function(here):
    (here / "other.py").write_text(GOOD + "import json\nVALUE = 3\n")
    for name in ("made", "VALUE", "Problems"):
        text = one_line(f"other.py:{name}")
        assert f"has no function '{name}'" in text and "it has make" in text


def test_a_module_that_needs_another_one(here):
    """The missing module is not the one that was asked for: its traceback says where."""
    (here / "needs.py").write_text("import not_installed_at_all\n")
    for spec in ("needs.py:make", "needs:make"):
        text = said(spec)
        assert "importing needs" in text and text.count("Traceback") == 1 and text.count("not_installed_at_all") <= 3
        assert "hpc_landscape" not in text.split("Traceback")[1]
        sys.modules.pop("needs", None)


@pytest.mark.parametrize(
    ("code", "kind"), [("1/0", "ZeroDivisionError"), ("def f(:", "SyntaxError"), ("raise SystemExit(3)", "SystemExit")]
)
def test_a_file_that_raises(here, code, kind):
    (here / "raises.py").write_text(code + "\n")
    for _ in range(2):  # the second time too: it is not half imported
        text = said("raises.py:make")
        assert text.startswith(f"--problem raises.py:make: importing raises.py raised {kind}:")
        assert text.count("Traceback") <= 1 and "raises.py" in text and "problem.py" not in text


def test_a_factory_that_raises(here):
    (here / "fails.py").write_text("def inner():\n    raise KeyError('the reason')\n\ndef make():\n    inner()\n")
    text = said("fails.py:make")
    assert text.startswith("--problem fails.py:make: the factory raised KeyError:")
    assert text.count("Traceback") == 1 and text.count("the reason") == 2  # the line of code, and the message
    assert 'fails.py", line 5, in make' in text and "load_problem" not in text


def test_a_factory_s_own_user_error(here):
    (here / "speaks.py").write_text("import hpc_landscape\ndef make():\n    raise hpc_landscape.UserError('do this')\n")
    assert one_line("speaks.py:make") == "do this"


# What a factory returns


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        ("None", "returned a NoneType, not hpc_landscape.Problem"),
        ("(1, 2)", "returned a tuple"),
        ("Problem(None, torch.nn.MSELoss(), DATA)", "model is a NoneType"),
        ("Problem(lambda x: x, torch.nn.MSELoss(), DATA)", "model is a function"),
        ("Problem(torch.nn.Linear(3, 2), 'mse', DATA)", "loss is a str"),
        ("Problem(torch.nn.Linear(3, 2), torch.nn.MSELoss(), DATA, reduction='total')", "'total'"),
        ("Problem(torch.nn.Linear(3, 2), lambda: torch.ones(()), DATA)", "leave out the data"),
        ("Problem(torch.nn.Linear(3, 2), torch.nn.MSELoss(reduction='none'), DATA)", "reduction='none'"),
        ("Problem(torch.nn.Linear(3, 2), torch.nn.MSELoss(), None)", "has no data"),
        ("Problem(torch.nn.ReLU(), torch.nn.MSELoss(), DATA)", "nothing to move"),
        ("Problem(torch.nn.LazyLinear(2), torch.nn.MSELoss(), DATA)", "lazy"),
    ],
)
def test_what_is_wrong_with_a_problem(here, returned, text):
    (here / "wrong.py").write_text(HEADER + f"def make():\n    return {returned}\n")
    try:
        assert text in one_line("wrong.py:make")
    finally:
        sys.modules.pop("wrong", None)


# Arguments


def typed(signature: str, arguments: dict[str, Any], future: bool = False) -> dict[str, Any]:
    source = "from __future__ import annotations\n" * future + "from typing import *\n"
    namespace: dict[str, Any] = {}
    exec(f"{source}def make({signature}): pass", namespace)
    return type_arguments(namespace["make"], arguments, "mine.py:make")


@pytest.mark.parametrize("future", [False, True])
@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        ("int", "5", 5),
        ("int", "-3", -3),
        ("float", "0.5", 0.5),
        ("float", "1e-3", 1e-3),
        ("float", "3", 3.0),
        ("bool", "true", True),
        ("bool", "false", False),
        ("bool", "False", False),
        ("str", "text", "text"),
        ("str", "5", "5"),
        ("str", "true", "true"),
        ("str", "null", "null"),
        ("str", "1e3", "1e3"),
        ("str", "a: b", "a: b"),
        ("str", "[x", "[x"),
        ("str", "", ""),
        ("Optional[int]", "5", 5),
        ("Optional[int]", "null", None),
        ("int | None", "7", 7),
        ("Literal['a', 'b']", "b", "b"),
        ("Literal[1, 2]", "2", 2),
        ("list[int]", "[1, 2]", [1, 2]),
        ("list[int]", ["1", "2"], [1, 2]),  # as YAML's text arrives
        ("list[str]", "[a, b]", ["a", "b"]),
        ("List[float]", "[1, 2.5]", [1.0, 2.5]),
        ("dict[str, int]", "{a: 1}", {"a": 1}),
        ("Any", "5", 5),
        ("int", 5, 5),
        ("bool", True, True),
        ("Union[str, None]", "null", None),
        ("Union[str, None]", "#5", "#5"),
        ("Union[int, str]", "5", 5),
        ("Union[str, int]", "5", "5"),
        ("Annotated[int, 'metres']", "5", 5),
        ("Sequence[int]", "[1, 2]", [1, 2]),
        ("tuple[int, str]", ["1", "2"], (1, "2")),
        ("tuple[float, ...]", "[1, 2]", (1.0, 2.0)),
        ("set[int]", "[1, 1]", {1}),
        ("list", "[1, [a]]", [1, ["a"]]),
        ("Mapping[str, list[int]]", {"a": ["1"]}, {"a": [1]}),
        ("Callable[..., Any]", "math.sin", math.sin),
        ("type[Exception]", "ValueError", ValueError),
    ],
)
def test_annotated(annotation, text, value, future):
    found = typed(f"key: {annotation}", {"key": text}, future)["key"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("default", "text", "value"),
    [
        ("", "5", 5),
        ("", "text", "text"),
        ("", "[1, 2]", [1, 2]),
        ("=3", "5", 5),
        ("=3", "0.5", 0.5),
        ("=None", "true", True),
        ("=None", "null", None),
        ("='name'", "5", "5"),
        ("='name'", "true", "true"),
        ("=1e-3", "1e-4", 1e-4),  # YAML 1.1 reads 1e-4 as text
        ("=1e-3", "1.0e-4", 1e-4),
        ("", "1:30", "1:30"),  # and 1:30 as 90
        ("", "2020-01-01", "2020-01-01"),  # and this as a day
        ("", "0x10", 16),
        ("", "no", False),
        ("", "'5'", "'5'"),
        ("", "[x", "[x"),
        ("", "{a: }", {"a": None}),
        ("", "#5", "#5"),
        ("", "~", None),
        ("=None", "-1:1:51", "-1:1:51"),
    ],
)
def test_not_annotated(default, text, value):
    found = typed(f"key{default}", {"key": text})["key"]
    assert found == value and type(found) is type(value)


def test_any_keyword():
    assert typed("**rest", {"a": "5", "b": "x", "c": ["1"]}) == {"a": 5, "b": "x", "c": ["1"]}
    assert typed("a: str, **rest", {"a": "5", "b": "5"}) == {"a": "5", "b": 5}


def test_keyword_only_and_defaults():
    assert typed("a=1, *, b: int = 2", {"b": "3"}) == {"b": 3}


@pytest.mark.parametrize(
    ("annotation", "text", "expected"),
    [
        ("int", "x", "expected int, got 'x'"),
        ("int", "1.5", "expected int, got '1.5'"),
        ("float", "x", "expected float"),
        ("bool", "maybe", "expected bool"),
        ("Literal['a', 'b']", "c", "'a'"),
        ("Optional[int]", "x", "int"),
        ("list[int]", "[a]", "list"),
        ("list[int]", "5", "list"),
        ("tuple[int, int]", "[1]", "tuple"),
        ("int", True, "int"),
        ("Literal[1]", True, "1"),
        ("Callable[..., Any]", "math.absent", "Callable"),
        ("Iterator[int]", "[1]", "Iterator"),
    ],
)
def test_an_argument_of_another_type(annotation, text, expected):
    with pytest.raises(UserError) as error:
        typed(f"key: {annotation}", {"key": text})
    assert str(error.value).startswith("--problem.key: expected ") and expected in str(error.value)
    assert "\n" not in str(error.value)


def test_an_argument_that_is_not_taken():
    with pytest.raises(UserError, match=r"--problem.wdith: mine.py:make takes no 'wdith'.*m.width, --problem.n"):
        typed("width, n=3", {"wdith": "3"})
    with pytest.raises(UserError, match="it takes: none"):
        typed("", {"a": "3"})


def test_an_argument_that_is_missing():
    with pytest.raises(UserError, match=r"mine.py:make needs --problem.width VALUE, --problem.n VALUE$"):
        typed("width, n: int, rest=1, *more, **others", {})


@pytest.mark.parametrize("future", [False, True])
def test_a_class_is_a_factory_too(here, future):
    (here / "classy.py").write_text(
        "from __future__ import annotations\n" * future
        + HEADER
        + "class Mine(Problem):\n    def __init__(self, width: int = 3):\n"
        "        super().__init__(torch.nn.Linear(width, 2), torch.nn.CrossEntropyLoss(), DATA)\n"
    )
    try:
        assert load_problem("classy.py:Mine", {"width": "6"}).model.in_features == 6
    finally:
        sys.modules.pop("classy", None)


# What a problem does with a batch


def test_pairs_and_batches_of_other_kinds():
    model = nn.Linear(3, 2)
    pair = (torch.ones(4, 3), torch.zeros(4))
    plain = Problem(model, nn.MSELoss(), None).on([pair])
    assert torch.equal(plain.output(wrap_model(model), pair), model(pair[0]))
    assert plain.target(pair) is pair[1] and plain.items(pair) == 4
    batch = {"x": torch.ones(4, 3), "tokens": 17}
    problem = Problem(model, nn.MSELoss(), None, forward=lambda m, b: m(b["x"]) * 2, count=lambda b: b["tokens"])
    other = problem.on([batch])
    assert torch.equal(other.output(wrap_model(model), batch), model(batch["x"]) * 2)
    assert other.target(batch) is batch and other.items(batch) == 17
