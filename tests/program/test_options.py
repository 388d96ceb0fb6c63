"""Options: text as the type that is asked for, and what is said of a value."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from hpc_landscape.options import Option, as_type, read_text


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "kind", "meant"),
    [
        ("a/b", Path, Path("a/b")),
        ("RED", Colour, Colour.RED),
        ("RED", Colour | None, Colour.RED),
        ("null", Colour | None, None),
        ("~", None, None),
        (["1", "2"], frozenset[int], frozenset({1, 2})),
        ("[[1, 2], [3]]", list[list[int]], [[1, 2], [3]]),
        ({"a": "[1, 2]"}, Mapping[str, list[float]], {"a": [1.0, 2.0]}),
        ("true", bool | Literal["often"], True),
        ("often", bool | Literal["often"], "often"),
        ("1", Literal[True, 1], 1),
        ("1:30", int | str, "1:30"),
        ("5", object, 5),
        (5, Any, 5),
        (["1"], Any, ["1"]),
    ],
)
def test_a_value_of_a_type(value, kind, meant):
    found = as_type(value, kind)
    assert found == meant and type(found) is type(meant)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("BLUE", Colour),
        ("x", None),
        ("", None),
        ("#x", None),
        ("1", bool),
        ("2", bool | Literal["often"]),
        ("9" * 5000, int),
        ("[1, 2, 3]", tuple[int, int]),
        ("{a: 1}", list[str]),
        ("[1]", dict[str, int]),
        (5, Path),
    ],
)
def test_a_value_of_another_type(value, kind):
    with pytest.raises(ValueError):
        as_type(value, kind)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-1_000", -1000),
        ("-.inf", -math.inf),
        ("1.2.3", "1.2.3"),
        ("1e", "1e"),
        ("e5", "e5"),
        ("12:30:45", "12:30:45"),
        ("nan", "nan"),
        ("[1e-4, 1:30, no, 2020-01-01]", [1e-4, "1:30", False, "2020-01-01"]),
        ("a: [", "a: ["),
        ("!!int x", "!!int x"),
        ("!!python/object/apply:os.abort []", "!!python/object/apply:os.abort []"),
        ("[" * 3000, "[" * 3000),
        (" # nothing", " # nothing"),
    ],
)
def test_what_text_means_by_itself(text, meant):
    found = read_text(text)
    assert found == meant and type(found) is type(meant)


@pytest.mark.parametrize(
    ("kind", "choices", "is_switch", "expected"),
    [
        (bool, ["true", "false"], True, "true or false"),
        (bool | None, ["true", "false"], True, "true or false"),
        (bool | Literal["often"], ["true", "false", "often"], True, "one of true, false, often"),
        (Literal["a", "b"] | None, ["a", "b"], False, "one of a, b"),
        (int | None, [], False, "a whole number"),
        (float, [], False, "a number"),
        (str | None, [], False, "text"),
    ],
)
def test_what_is_said_of_an_option(kind, choices, is_switch, expected):
    option = Option("name", kind, None, "what it is")
    assert (option.choices, option.is_switch, option.expected) == (choices, is_switch, expected)
    assert option.is_text == (expected == "text")
