"""Settings: the command line and YAML, and what importing the package costs."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import yaml
from programs import ROOT

from hpc_landscape.arguments import parse
from hpc_landscape.cli import main
from hpc_landscape.errors import UserError
from hpc_landscape.registry import KindOption
from hpc_landscape.settings import GROUPS, OPTIONS, Settings


def settings(*words: str) -> Settings:
    return parse(words, "prog")[0]


def mistake(*words: str) -> str:
    with pytest.raises(UserError) as error:
        parse(words, "prog")
    text = str(error.value)
    assert "\n" not in text and text
    return text


def from_yaml(tmp_path, text: str, *words: str) -> Settings:
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    return settings("--config", str(tmp_path / "c.yaml"), *words)


# The command line


def test_defaults():
    found = settings()
    assert found == Settings()
    expected = {
        "output": "landscape.h5",
        "overwrite": False,
        "problem": "digits",
        "seed": 0,
        "directions": "random",
        "distribution": "normal",
        "normalization": None,
        "ignore": "biasbn",
        "bn": "warmup",
        "precision": "fp32",
        "device": "auto",
        "writer": "auto",
        "weights_only": True,
        "orthogonalize": False,
        "dry_run": False,
        "checkpoint": None,
        "samples": None,
        "warmup_samples": None,
        "metrics": None,
        "save_directions": None,
    }
    values = found.by_name()
    assert {name: values[name] for name in expected} == expected


@pytest.mark.parametrize("words", [("--x", "-1:1:51"), ("--x=-1:1:51",), ("--x", "0:1:5", "--x", "-1:1:51")])
def test_a_value_that_begins_with_a_minus(words):
    assert settings(*words).for_grid.x == "-1:1:51"


def test_axes():
    found = settings("--x", "-1e-3:1:5", "--y=-2:2:3", "--z", "-3:3:2")
    assert found.grid().shape == (5, 3, 2)
    assert settings("--y", "none").grid().shape == (51,)
    assert settings("--y", "none").grid(["-1:1:31"] * 3).shape == (31,)
    assert settings("--x", "0:1:4").grid(["-1:1:31"] * 3).shape == (4, 31)


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (("--seed", "7"), "seed", 7),
        (("--seed=7",), "seed", 7),
        (("--samples", "100"), "samples", 100),
        (("--overwrite",), "overwrite", True),
        (("--dry_run",), "dry_run", True),
        (("--weights_only", "false"), "weights_only", False),
        (("--save_directions", "false"), "save_directions", False),
        (("--save_directions", "true"), "save_directions", True),
        (("--bn", "running"), "bn", "running"),
        (("--ignore", "none"), "ignore", "none"),
        (("--normalization", "none"), "normalization", "none"),
        (("--metrics", "loss"), "metrics", "loss"),
        (("--metrics", "loss, accuracy"), "metrics", "loss, accuracy"),
        (("--output", "größe 1.h5"), "output", "größe 1.h5"),
        (("--output", "5"), "output", "5"),
        (("--output", "true"), "output", "true"),
        (("--checkpoint", "1e3"), "checkpoint", "1e3"),
        (("--checkpoint", "null.pt"), "checkpoint", "null.pt"),
        (("--checkpoint", "null"), "checkpoint", None),
        (("--output", "null"), "output", "null"),
        (("--checkpoint", "#1.pt"), "checkpoint", "#1.pt"),
        (("--checkpoint", "{a"), "checkpoint", "{a"),
        (("--checkpoint", "-1.pt"), "checkpoint", "-1.pt"),
        (("--checkpoint=--a.pt",), "checkpoint", "--a.pt"),
        (("--overwrite", "true"), "overwrite", True),
        (("--overwrite", "--seed", "3"), "overwrite", True),
        (("--overwrite=False",), "overwrite", False),
        (("--plot", "no"), "plot", False),
        (("--compile",), "compile", True),
        (("--compile", "--tune=false"), "compile", True),
        (("--compile", "true"), "compile", True),
        (("--compile=false",), "compile", False),
        (("--compile", "reduce-overhead"), "compile", "reduce-overhead"),
        (("--samples", "1_000"), "samples", 1000),
        (("--grace", "3"), "grace", 3.0),
        (("--resident", "5e-1"), "resident", 0.5),
    ],
)
def test_values(words, name, value):
    found = settings(*words).by_name()[name]
    assert found == value and type(found) is type(value)


def test_metric_names():
    assert settings("--metrics", "loss, accuracy").for_evaluation.metric_names == ["loss", "accuracy"]
    assert settings().for_evaluation.metric_names == []


@pytest.mark.parametrize("order", [1, -1])
def test_problem_arguments(order):
    pairs = [("--problem", "mine.py:make"), ("--problem.width", "5"), ("--problem.name", "-x"), ("--problem.a=b=c",)]
    found = settings(*[word for pair in pairs[::order] for word in pair])
    assert found.for_problem.problem == "mine.py:make" and found.for_problem.problem_arguments == {
        "width": "5",
        "name": "-x",
        "a": "b=c",
    }


# YAML


def test_yaml_and_the_command_line_agree(tmp_path):
    text = """
    output: a.h5
    problem: mine.py:make
    problem.width: 5
    x: -1:1:51
    y: none
    seed: 3
    overwrite: true
    dry_run: false
    weights_only: false
    metrics: [loss, accuracy]
    samples: null
    checkpoint:
    save_directions: true
    """
    words = [
        "--output",
        "a.h5",
        "--problem",
        "mine.py:make",
        "--problem.width",
        "5",
        "--x",
        "-1:1:51",
        "--y",
        "none",
        "--seed",
        "3",
        "--overwrite",
        "--weights_only",
        "false",
        "--metrics",
        "loss,accuracy",
        "--save_directions",
        "true",
    ]
    assert from_yaml(tmp_path, text) == settings(*words)


@pytest.mark.parametrize("quote", ["", "'", '"'])
@pytest.mark.parametrize("axis", ["-1:1:51", "1:2:30", "0:59:59", "-0.5:0.5:11"])
def test_the_sexagesimal_trap(tmp_path, axis, quote):
    """YAML 1.1 reads 1:2:30 as 3750."""
    assert yaml.safe_load("x: 1:2:30") == {"x": 3750}
    assert from_yaml(tmp_path, f"x: {quote}{axis}{quote}").for_grid.x == axis
    assert from_yaml(tmp_path, f"problem.span: {axis}").for_problem.problem_arguments == {"span": axis}


def test_the_command_line_wins(tmp_path):
    text = "x: -1:1:5\nseed: 3\nproblem.a: 1\nproblem.b: 2\n"
    found = from_yaml(tmp_path, text, "--seed", "4", "--problem.b", "5")
    assert (found.for_grid.x, found.for_directions.seed, found.for_problem.problem_arguments) == (
        "-1:1:5",
        4,
        {"a": "1", "b": "5"},
    )
    (tmp_path / "d.yaml").write_text("seed: 9\n")
    found = from_yaml(tmp_path, text, "--config", str(tmp_path / "d.yaml"))
    assert (found.for_grid.x, found.for_directions.seed) == ("-1:1:5", 9)
    found = settings("--seed", "4", f"--config={tmp_path / 'c.yaml'}")  # wherever the file is named
    assert found.for_directions.seed == 4


def test_problem_as_a_mapping(tmp_path):
    found = from_yaml(tmp_path, "problem:\n  name: mine.py:make\n  width: 5\n  layers: [1, 2]\n")
    assert found.for_problem.problem == "mine.py:make" and found.for_problem.problem_arguments == {
        "width": "5",
        "layers": ["1", "2"],
    }


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "---\n"])
def test_an_empty_file(tmp_path, text):
    assert from_yaml(tmp_path, text) == Settings()


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--x", "-1:1:51", "--y", "none", "--seed", "9", "--overwrite", "--weights_only", "false"),
        ("--problem", "größe.py:make", "--problem.a", "5", "--problem.b", "null", "--problem.c", "1:30"),
        ("--output", "yes", "--checkpoint", "5", "--save_directions", "false", "--metrics", "loss"),
        ("--output", "a: b # c.h5", "--checkpoint", "'quoted'"),
        ("--checkpoint", "#1.pt", "--problem.a", "#2"),
        ("--compile",),
        ("--compile", "reduce-overhead"),
    ],
)
def test_print_config_round_trip(tmp_path, words):
    found, print_config = parse([*words, "--print_config"], "prog")
    assert print_config and not parse(words, "prog")[1]
    assert from_yaml(tmp_path, found.to_yaml()) == found == settings(*words)


# Mistakes: one line that names the option


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--sed", "3"), "there is no option --sed; did you mean --seed?"),
        (("--sed=3",), "there is no option --sed; did you mean --seed?"),
        (("--dry-run",), "there is no option --dry-run; did you mean --dry_run?"),
        (("--see", "3"), "did you mean --seed?"),  # no abbreviations
        (("--over",), "there is no option --over"),
        (("--qqqqqqqq",), "there is no option --qqqqqqqq; see --help"),
        (("stray",), "stray"),
        (("--seed", "x"), "--seed x: expected a whole number"),
        (("--seed", "1.5"), "--seed 1.5: expected a whole number"),
        (("--seed", "-1"), "--seed -1: must not be negative"),
        (("--seed",), "--seed needs a value"),
        (("--x",), "--x needs a value"),
        (("--config",), "--config needs a value"),
        (("--problem.width",), "--problem.width needs a value"),
        (("--samples", "0"), "--samples 0: must be at least 1"),
        (("--samples", "x"), "--samples x: expected a whole number"),
        (("--warmup_samples", "-5"), "--warmup_samples -5: must be at least 1"),
        (("--batch_size", "0"), "--batch_size 0: must be at least 1"),
        (("--bn", "wramup"), "--bn wramup: expected one of warmup, running, batch"),
        (("--bn=x",), "--bn x: expected one of"),
        (("--device", "gpu"), "--device gpu: expected one of auto, cpu, cuda, mps"),
        (("--precision", "fp16"), "--precision fp16: expected one of"),
        (("--writer", "both"), "--writer both: expected one of auto, gather, parallel"),
        (("--weights_only", "maybe"), "--weights_only maybe: expected true or false"),
        (("--save_directions", "maybe"), "--save_directions maybe: expected true or false"),
        (("--x", "1:-1:5"), "--x 1:-1:5: MIN must be less than MAX"),
        (("--y", "-1:1:0"), "--y -1:1:0: N is the number of points"),
        (("--z", "5"), "--z 5: expected MIN:MAX:N"),
        (("--x", "none"), "--x none: the first axis is needed"),
        (("--y", "none", "--z", "-1:1:5"), "--z needs --y"),
        (("--metrics", "loss,loss"), "a metric is named twice"),
        (("--checkpoint", "--tune"), "--checkpoint needs a value"),
        (("--compile", "fast"), "--compile fast: expected one of true, false, reduce-overhead"),
        (("--resident", "half"), "--resident half: expected a number"),
        (("--resident", "nan"), "--resident nan: expected a number"),
        (("--print_config", "3"), "--print_config 3: expected true or false"),
        (("--help", "hesian"), "--help hesian: there is no kind of this name; see --help"),
        (("--help=hesian",), "--help hesian: there is no kind of this name; see --help"),
    ],
)
def test_mistakes_on_the_command_line(words, said):
    assert said in mistake(*words)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sed: 3", "there is no setting 'sed'; did you mean --seed?"),
        ("problem_arguments: 3", "there is no setting 'problem_arguments'"),
        ("config: other.yaml", "there is no setting 'config'"),
        ("seed: x", "--seed x: expected a whole number"),
        ("bn: never", "--bn never: expected one of"),
        ("overwrite: maybe", "--overwrite maybe: expected true or false"),
        ("x: 5", "--x 5: expected MIN:MAX:N"),
        ("x: {a: 1}", "x takes one value"),
        ("seed: [1]", "seed takes one value"),
        ("- a\n- b", "expected 'name: value' lines"),
        ("just text", "expected 'name: value' lines"),
        ("0", "expected 'name: value' lines"),
        ("a: [", "not YAML"),
        ("a: b: c", "not YAML"),
        ("\tx: 1", "not YAML"),
        ("x: !!python/object/apply:os.system ['false']", ""),
        ("[1, 2]: 3", ""),
        ("overwrite: [true]", "overwrite"),
    ],
)
def test_mistakes_in_yaml(tmp_path, text, said):
    (tmp_path / "c.yaml").write_text(text)
    assert said in mistake("--config", str(tmp_path / "c.yaml"))


def test_a_config_that_cannot_be_read(tmp_path):
    assert "there is no such file" in mistake("--config", str(tmp_path / "none.yaml"))
    assert "there is no such file" in mistake("--config", str(tmp_path))
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00x: 1")
    assert "not YAML" in mistake("--config", str(tmp_path / "c.yaml"))


# The groups


def test_the_groups():
    assert list(GROUPS) == ["grid", "problem", "directions", "evaluation", "speed", "ranks", "output"]
    names = [option.name for options in GROUPS.values() for option in options]
    assert sorted(names) == sorted(OPTIONS) == sorted({*Settings().by_name()} - {"problem_arguments"})
    found = settings(
        "--x", "0:1:5", "--problem.width", "5", "--seed", "3", "--bn", "batch", "--block", "2", "--plot=no"
    )
    assert found.for_grid.x == "0:1:5" and found.for_problem.problem_arguments == {"width": "5"}
    assert found.for_directions.seed == 3 and found.for_evaluation.bn == "batch" and found.for_speed.block == 2
    assert found.for_output.plot is False and found.for_ranks.device == "auto"


def test_a_setting_that_there_is_not():
    with pytest.raises(TypeError, match="there is no setting sede"):
        Settings(seed=3, sede=4)
    assert copy.deepcopy(Settings(seed=3)) == pickle.loads(pickle.dumps(Settings(seed=3))) == Settings(seed=3)


def test_settings_but_for_some():
    found = settings("--seed", "3", "--problem.width", "5")
    changed = found.replaced(seed=4, block=2)
    assert changed.by_name() == found.by_name() | {"seed": 4, "block": 2}
    assert found == settings("--seed", "3", "--problem.width", "5") != changed
    with pytest.raises(FrozenInstanceError):
        found.for_directions.seed = 5
    with pytest.raises(FrozenInstanceError):
        found.seed = 5


@pytest.mark.parametrize(("value", "mode"), [(False, None), (True, "default"), ("reduce-overhead", "reduce-overhead")])
def test_the_mode_of_compile(value, mode):
    assert Settings(compile=value).for_speed.compile_mode == mode


# --help


def help_text(capsys, *words: str, kinds: Sequence[Any] = ()) -> str:
    with pytest.raises(SystemExit) as left:
        parse(words, "prog", "exit codes: 0", kinds)
    assert not left.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [80, 120])
def test_help(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = help_text(capsys, "--help")
    lines = text.splitlines()
    assert [line[:-1] for line in lines if line[:1].isalpha() and line.endswith(":")] == ["options", *GROUPS]
    assert lines[0].startswith("usage: prog") and text.endswith("exit codes: 0")
    assert columns - 15 < max(map(len, lines)) <= columns
    assert help_text(capsys, "--seed", "x", "-h") == text  # wherever it stands


def test_help_tells_of_every_setting_and_says_its_default_once(capsys):
    told = {}
    for part in help_text(capsys, "--help").split("\n  --")[1:]:
        words = part.partition("\n\n")[0].split()
        told[words[0]] = " ".join(words)
    for name, option in OPTIONS.items():
        assert option.help and option.help in told[name]
        has_default = bool(option.otherwise) or (option.default is not None and option.default is not False)
        assert told[name].count("default") == has_default, told[name]


class Fake:
    """A registry."""

    def __init__(self, option: str, **kinds: tuple[str, list[KindOption]]) -> None:
        self.option, self.kinds = option, kinds

    def names(self) -> list[str]:
        return [*self.kinds]

    def describe(self, name: str, settings: Mapping[str, Any]) -> tuple[str, list[Any]]:
        text, options = self.kinds[name]
        return text, [*options, *([settings["to"]] if name == "interpolation" else [])]


KINDS = [
    Fake(
        "--metrics",
        hessian_trace=(
            "The trace of the Hessian.",
            [KindOption("samples", "int", "100", "how many"), KindOption("k", "int")],
        ),
        path=("How long it is.", []),
    ),
    Fake("--directions", interpolation=("To other models.", []), path=("Along a path.", [])),
]


def test_help_names_the_kinds(capsys):
    lines = help_text(capsys, "--help", kinds=KINDS).splitlines()
    assert "  --metrics             hessian_trace, path" in lines
    assert "  --directions          interpolation, path" in lines
    assert help_text(capsys, "--help", "--seed", kinds=KINDS).splitlines() == lines


def test_help_of_one_kind(capsys):
    assert help_text(capsys, "--help", "hessian_trace", kinds=KINDS).splitlines() == [
        "--metrics hessian_trace:",
        "  The trace of the Hessian.",
        "  samples               how many (int, default: 100)",
        "  k                     (int)",
    ]
    text = help_text(capsys, "-h", "interpolation", kinds=KINDS)  # goes by an option of the program's
    assert text.splitlines()[:2] == ["--directions interpolation:", "  To other models."]
    assert "  --to FILE,...         interpolation: the checkpoints of" in text
    text = help_text(capsys, "--help", "path", kinds=KINDS)  # two have this name
    assert "--metrics path:\n  How long" in text and "--directions path:\n  Along" in text


def test_help_of_a_kind_that_there_is_not():
    with pytest.raises(UserError, match="--help hessian_trac: there is no kind of this name; did you mean hessian_tra"):
        parse(["--help", "hessian_trac"], "prog", kinds=KINDS)


def test_help_of_a_command(capsys):
    assert main(["--help", "plot"]) == main(["plot", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.count("usage: python -m hpc_landscape plot") == 2
    assert main(["--help", "plto"]) == 2
    assert "--help plto: there is no kind of this name" in capsys.readouterr().err


# What an import costs


def python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )
    return done.stdout


HEAVY = ("torch", "mpi4py", "matplotlib", "h5py", "scipy", "yaml", "tqdm")


def test_import_is_cheap():
    loaded = python(f"import sys, hpc_landscape; print([m for m in {HEAVY} if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_help_needs_no_torch():
    code = (
        "import sys, runpy\nsys.argv[1:] = ['--help']\n"
        "try: runpy.run_module('hpc_landscape', run_name='__main__')\n"
        "except SystemExit as e: print('code', e.code)\n"
        "print([m for m in ('torch', 'mpi4py', 'matplotlib', 'h5py', 'yaml') if m in sys.modules])"
    )
    *text, code, loaded = python(code).splitlines()
    assert "usage:" in text[0] and code == "code 0" and loaded == "[]"


def test_a_wrong_option_needs_no_torch():
    code = (
        "import sys\nfrom hpc_landscape.cli import main\nprint(main(['--sed', '3']), "
        "[m for m in ('torch', 'matplotlib', 'h5py') if m in sys.modules])"
    )
    assert python(code).strip() == "2 []"
