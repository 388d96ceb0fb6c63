"""Settings and grids under arbitrary text and numbers: a valid value, or a mistake said in one line; never else."""

from __future__ import annotations

import json
import math
import os
import shlex
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st

from hpc_landscape.arguments import parse
from hpc_landscape.errors import UserError, printable
from hpc_landscape.grid import MOST, Axis, Grid
from hpc_landscape.kinds import DIRECTIONS, NORMALIZATIONS
from hpc_landscape.problems.registry import type_arguments
from hpc_landscape.schedule.strided import strided
from hpc_landscape.setting_groups import MOST as MOST_WHOLE
from hpc_landscape.setting_groups import MOST_SETS
from hpc_landscape.settings import OPTIONS, Settings

# The same examples every time; more of them for a search: HOSTILE_EXAMPLES=5000 python -m pytest tests/hostile
EXAMPLES = int(os.environ.get("HOSTILE_EXAMPLES", "150"))
thorough = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="HOSTILE_EXAMPLES" not in os.environ,
    database=None,
    phases=[
        Phase.explicit,
        Phase.generate,
    ],  # the first example that fails tells enough, and a smaller one takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# What has been trouble to someone: YAML's own syntax, Python's numbers, what steers a terminal.
ODD = ["", " ", "-", "--", "--x", "-1", "=", "null", "~", "none", "None", "true", "no", "1_000", "0x10", "1e3", "1.0"]
ODD += ["[1", "[]", "{}", "{a: 1}", "- a", "&a *a", "*a", "!!python/object/apply:os.abort []", "!!int x", "|", "%", "@"]
ODD += ["'", '"', "`", "a: b # c", "\n", "a\nb", "\0", "\x1b[2J", "\u2028", "\ud800", "٣", "𝟗", "größe 模型.pt", "👩‍🔬"]
ODD += ["9" * 30, "9" * 5000, "-" + "9" * 30, "0:1:" + "9" * 400, "0:1:" + "9" * 5000, "-1e308:1e308:3", "nan:1:2"]
ODD += [
    "5e-324:1e-323:9",
    "1:1.0000000000000002:9",
    "1e308:1e308:1",
    "0:1:1e3",
    "0:1: 3",
    "٠:١:٣",
    ",",
    ",,",
    "a,(b",
    "a(,)",
]
TEXT = st.one_of(st.sampled_from(ODD), st.text(max_size=30), st.from_regex(r"-?[0-9.e+-]{1,9}(:-?[0-9.e+-]{1,9}){1,3}"))


def outcome(words: list[str]) -> Settings | None:
    """What the command line means; None where it is refused, in one line, or asks for help."""
    try:
        return parse(words, "prog")[0]
    except UserError as error:
        text = str(error)
        assert text and len(text.splitlines()) == 1 and printable(text) == text
    except SystemExit as left:
        assert not left.code and {"-h", "--help"} & set(words)
    return None


# Any text anywhere


@thorough
@given(st.sampled_from([*OPTIONS, "config", "problem.a", "problem.", "print_config"]), TEXT, st.booleans())
def test_any_text_as_an_option(name, text, equals):
    found = outcome([f"--{name}={text}"] if equals else [f"--{name}", text])
    if found is not None:
        found.check()
        shlex.split(found.to_command())


@thorough
@given(st.lists(TEXT | st.sampled_from([f"--{name}" for name in OPTIONS]), max_size=4))
def test_any_words(capsys, words):
    outcome(words)


KEY = st.sampled_from([*OPTIONS, "problem.a", "problem.a b", "sede"])
LINES = st.lists(st.tuples(KEY, TEXT).map(lambda pair: f"{pair[0]}: {pair[1]}\n"), max_size=3).map("".join)
ENCODED = (LINES | st.text(max_size=60)).map(lambda text: text.encode("utf-8", "surrogatepass"))


@thorough
@given(ENCODED | st.binary(max_size=60))
@example(b"x: &a [*a]")
@example(b"problem.a: &a {b: *a}")
@example(b"metrics: " + b"[" * 3000)
@example(b"metrics: " + b"[" * 3000 + b"]" * 3000)
@example(b"problem.a: " + b"{a: " * 400 + b"}" * 400)
@example(
    b"a: &a [x,x,x,x,x,x,x,x]\n"
    + b"".join(b"%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c]\n" % (i + 1, i + 1, *[i] * 6) for i in range(97, 120))
)
@example(b"problem: {name: [1, 2]}")
@example(b"problem: {? [1]: 2}")
@example(b"problem: {5: 3}")
@example(b"? {a: b}\n: c")
@example(b"include: [a, {b: c}]")
@example(b"--- a\n--- b")
@example(b"output: !!binary aGVsbG8=")
@example(b'output: "a\\nb\\0"')
def test_any_file_as_a_configuration(tmp_path, content):
    (tmp_path / "c.yaml").write_bytes(content)
    outcome(["--config", str(tmp_path / "c.yaml")])


def test_a_configuration_is_data(tmp_path):
    trace = tmp_path / "it_ran"
    for text in (f"!!python/object/apply:os.mkdir ['{trace}']", f"!!python/object/new:os.mkdir ['{trace}']"):
        for key in ("output", "problem.a", "seed", "metrics"):
            (tmp_path / "c.yaml").write_text(f"{key}: {text}\n")
            outcome(["--config", str(tmp_path / "c.yaml")])
    assert not trace.exists()


# Round trips

NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=20).filter(
    lambda text: text.strip() and text not in ("null", "~", "--")  # not given, not given, argparse's own
)
FLOATS = st.floats(-1e6, 1e6)
AXES = st.builds(Axis, FLOATS, FLOATS, st.integers(1, 10**6)).map(str)


def _valid(text: str) -> bool:
    try:
        return Axis.parse(text) is not None
    except UserError:
        return False


def _value(name: str) -> st.SearchStrategy[Any]:
    """Any value of this setting's type."""
    hint = OPTIONS[name].type
    kinds = {*get_args(hint), hint}
    if name in ("x", "y", "z"):
        return st.none() | AXES.filter(_valid)
    if name == "directions":
        return st.sampled_from(DIRECTIONS.names())
    if name == "ensemble":
        return st.none() | st.integers(2, MOST_SETS)
    if name == "bn":
        return st.sampled_from([*NORMALIZATIONS.names(), "größe 模型.py:Policy"])
    choices = [c for part in kinds for c in get_args(part) if isinstance(c, str)]
    values = st.sampled_from(choices) if choices else st.nothing()
    values |= st.integers(0 if name == "seed" else 1, MOST_WHOLE) if int in kinds else st.nothing()
    values |= st.floats(1e-9, 1) if float in kinds else st.nothing()  # resident: a share; grace: positive
    values |= st.booleans() if bool in kinds else st.nothing()
    values |= NAMES if str in kinds else st.nothing()
    return values | st.none() if type(None) in kinds else values


def _together(values: dict[str, Any]) -> Settings:
    """These values, but for those that do not go together."""
    if values["ensemble"]:
        values |= {"directions": "random", "refine": None, "extend": None, "shard": None, "trajectory": None}
    kind = values["directions"]
    values |= {"to": None, "direction_files": None}  # go with some directions alone
    values |= dict.fromkeys(DIRECTIONS.load(kind).needs, "a.pt,größe 模型.pt,c d.pt")  # for up to three axes
    if kind != "random":
        values["orthogonalize"] = False
    if values["orthogonalize"] or kind == "interpolation":
        values["normalization"] = "none"
    if values["tune"]:
        values |= {"channels_last": False, "compile": False, "block": None}
    if kind != "random" or values["orthogonalize"]:
        values["directions_memory"] = "host"
    if values["ensemble"]:
        values["directions_memory"] = "device"
    if values["shard"]:
        values |= {"channels_last": False, "compile": False, "block": None, "tune": False, "on_error": "fail"}
        values |= {"precision": "fp32", "device": "cuda", "directions_memory": "auto"}
    return Settings(**values)


ARGUMENTS = st.dictionaries(st.sampled_from(["a", "größe", "name", "x_1"]), NAMES, max_size=3)
VALUES = {name: _value(name) for name in OPTIONS} | {"problem_arguments": ARGUMENTS}
SETTINGS = st.fixed_dictionaries(VALUES).map(_together)


def _checked(wanted: Settings) -> Settings:
    try:
        wanted.check()
    except UserError:
        assume(False)
    return wanted


@thorough
@given(SETTINGS, st.recursive(NAMES, lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner), max_leaves=5))
def test_settings_through_yaml(tmp_path, wanted, nested):
    wanted = _checked(wanted.replaced(problem_arguments=wanted.for_problem.problem_arguments | {"nested": nested}))
    (tmp_path / "c.yaml").write_text(wanted.to_yaml(), encoding="utf-8")
    assert parse(["--config", str(tmp_path / "c.yaml")], "prog")[0] == wanted


@thorough
@given(SETTINGS)
def test_settings_through_a_command_line(wanted):
    # The command in a file is the one that goes on, in whatever job
    wanted = _checked(wanted).replaced(overwrite=False, dry_run=False, grace=None, retry_failed=False)
    python, dash_m, module, *words = shlex.split(wanted.to_command())
    assert (python, dash_m, module) == ("python", "-m", "hpc_landscape")
    assert parse(words, "prog")[0] == wanted


def takes(sizes: list[int] = [], names: dict[str, int] | None = None, word: str = "a") -> None:  # noqa: B006
    """A factory's signature."""


@thorough
@given(st.lists(st.integers()), st.dictionaries(NAMES, st.integers(), max_size=3), NAMES)
def test_arguments_of_the_problem_through_yaml_and_a_command_line(tmp_path, sizes, names, word):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"problem.sizes": sizes, "problem.names": names}))
    found = parse(["--config", str(tmp_path / "c.yaml"), f"--problem.word={word}"], "prog")[0]
    wanted = {"sizes": sizes, "names": names, "word": word}
    assert type_arguments(takes, found.for_problem.problem_arguments, "takes") == wanted
    again = parse(shlex.split(found.to_command())[3:], "prog")[0]
    assert type_arguments(takes, again.for_problem.problem_arguments, "takes") == wanted


@pytest.mark.parametrize("name", ["seed", "samples", "warmup_samples", "batch_size", "block"])
def test_whole_numbers_that_a_file_cannot_hold(name):
    assert parse([f"--{name}={2**63 - 1}"], "prog")[0].by_name()[name] == 2**63 - 1
    with pytest.raises(UserError, match=f"--{name} {2**63}: .*less than 2"):
        parse([f"--{name}={2**63}"], "prog")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--output", ""], "--output: must not be empty"),
        (["--problem="], "--problem: must not be empty"),
        (["--output", "a\nb.h5"], r"--output a\nb.h5: holds a control character"),
        (["--output", "\x1b[2Ja.h5"], r"--output \x1b[2Ja.h5: holds a control character"),
        (["--output", "\udcff.h5"], r"--output \udcff.h5: holds a control character, or is not UTF-8"),
        (["--problem.a b=3"], "--problem.a b: 'a b' cannot be the name of an argument"),
        (["--normalization", "fliter"], "--normalization fliter: expected one of filter, layer, model, none"),
        (["--x", "-1e308:1e308:3"], "--x -1e308:1e308:3: MIN and MAX are too large"),
        (["--x", "1:1.000000000000001:9"], "9 different numbers do not fit between MIN and MAX; lower N"),
        (["--x", "0:1:" + "9" * 400], "N is too large"),
    ],
)
def test_what_is_said(words, said):
    with pytest.raises(UserError) as error:
        parse(words, "prog")
    assert said in str(error.value)


# Grids

ANY_AXES = st.builds(Axis, st.floats(allow_nan=False), st.floats(allow_nan=False), st.integers(1, 300))


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # linspace, between the largest numbers
@thorough
@given(ANY_AXES.filter(lambda axis: _valid(str(axis))))
@example(Axis(1e307, 2e307, 3))
@example(Axis(1, 1e13, 3))
@example(Axis(1e-13, 1, 3))
@example(Axis(5e-324, 1e-320, 2))
@example(Axis(1, math.nextafter(1, 2), 1))
def test_an_axis(axis):
    assert Axis.parse(str(axis)) == axis
    values = axis.coordinates
    assert values.dtype == np.float64 and len(values) == axis.n and np.isfinite(values).all()
    assert (values >= axis.low).all() and (values <= axis.high).all() and (np.diff(values) > 0).all()
    if axis.n > 1:
        scale = axis.high - axis.low
        np.testing.assert_allclose(values, np.linspace(axis.low, axis.high, axis.n), rtol=0, atol=1e-12 * scale)


@thorough
@given(st.floats(1e-300, 1e300), st.integers(0, 500))
def test_an_odd_axis_holds_its_centre(half, pairs):
    values = Axis.parse(f"{-half}:{half}:{2 * pairs + 1}").coordinates
    assert values[pairs] == 0.0 and not np.signbit(values[pairs])
    np.testing.assert_allclose(values, -values[::-1], rtol=0, atol=1e-15 * half)


@thorough
@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.data())
def test_flat_index_and_point(shape, data):
    grid = Grid(*(Axis(-1.5, 2, n) for n in shape))
    assert grid.size == math.prod(shape)
    index = data.draw(st.integers(0, grid.size - 1))
    point = grid.point(index)
    assert point == tuple(c[i] for c, i in zip(grid.coordinates, np.unravel_index(index, shape), strict=True))
    assert grid.nearest(point) == index


@thorough
@given(st.sets(st.integers(0, 10**6), max_size=200), st.integers(1, 300))
def test_ranks_take_each_point_once(points, ranks):
    points = np.array(sorted(points), dtype=np.int64)
    parts = [strided(points, rank, ranks).tolist() for rank in range(ranks)]
    assert sorted(sum(parts, [])) == points.tolist()
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@thorough
@given(TEXT)
@example(f"0:1:{MOST}")
def test_any_text_as_an_axis(text):
    try:
        axis = Axis.parse(text)
    except UserError as error:
        assert str(error).startswith("--x ")
        return
    assert Axis.parse(str(axis)) == axis and axis.n <= MOST and axis.low <= axis.high


def test_json_is_what_a_command_holds_of_a_list(tmp_path):
    (tmp_path / "c.yaml").write_text("problem.a: ['it''s', 2]\n")
    found = parse(["--config", str(tmp_path / "c.yaml")], "prog")[0]
    assert json.loads(shlex.split(found.to_command())[3].partition("=")[2]) == ["it's", "2"]


def test_what_is_escaped():
    """A text that steers nothing is printed as it is."""
    for text in ("größe 模型.pt", "👩‍🔬", "a b", "\\n"):
        assert printable(text) == text
    assert printable("a\u202eb\u2066c") == r"a\u202eb\u2066c"  # which turn what follows around
    assert printable("a\nb\x1b\u2028\udcff\0") == r"a\nb\x1b\u2028\udcff\x00"
    assert printable("a\nb\tc", keep="\n") == "a\nb\\tc"
