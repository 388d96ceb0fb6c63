"""Kinds that an installed package brings by entry points: they work through the program, and a broken one is said."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import h5py
import numpy as np
import pytest
from programs import PROBLEMS, ROOT, TINY, environment, run_program

from hpc_landscape.directions.registry import kind_in_file
from hpc_landscape.kinds import KINDS

PLUGIN = '''
import torch
from hpc_landscape import Problem
from hpc_landscape.directions.base import DirectionKind, Directions
from hpc_landscape.metrics import Metric
from hpc_landscape.view.base import NO, YES, Picture


class Axes(DirectionKind):
    """Along single weights, the first of which is at an offset."""

    axis = "0:1:3"
    axis_label = "weight {number}"
    models = ("start",)

    def __init__(self, offset: int = 0):
        self.offset = offset

    def make(self, settings, origin):
        vectors = []
        for axis in range(origin.count):
            vector = {name: torch.zeros_like(w) for name, w in origin.weights.items()}
            next(iter(vector.values())).view(-1)[self.offset + axis] = 1
            vectors.append(vector)
        return Directions(vectors)


class WeightNorm(Metric):
    """The p-norm of all weights."""

    shape = ()

    def __init__(self, p: float = 2.0):
        super().__init__()
        self.p = p

    def __call__(self, model_wrapper):
        return torch.cat([w.detach().reshape(-1) for w in model_wrapper.parameters()]).double().norm(self.p)


def line(width: int = 3) -> Problem:
    """A linear model with weights 0, 1, 2, ..."""
    model = torch.nn.Linear(width, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.arange(width))
    return Problem(model, torch.nn.MSELoss(), (torch.eye(width), torch.zeros(width, 1)))
'''
PICTURE = '''

class Histogram(Picture):
    """How often which value occurs."""

    def __init__(self, bins: int = 5):
        self.bins = bins

    def suits(self, shape):
        return YES if len(shape) == 2 else NO

    def draw(self, shown):
        from matplotlib.figure import Figure

        figure = Figure(layout="constrained")
        figure.add_subplot().hist(shown.fields[0].finite, bins=self.bins)
        figure.axes[0].set_xlabel(f"{shown.fields[0].label} in {self.bins} bins")
        return figure
'''
ENTRY_POINTS = """
[hpc_landscape.directions]
axes = toy_plugin:Axes
lost = toy_plugin_missing:Lost
random = toy_plugin_missing:Random
[hpc_landscape.metrics]
weight_norm = toy_plugin:WeightNorm
absent = toy_plugin:Absent
[hpc_landscape.problems]
line = toy_plugin:line
[hpc_landscape.views]
histogram = toy_plugin:Histogram
gone = toy_plugin_missing:Gone
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the package, as pip would leave it."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "toy_plugin.py").write_text(PLUGIN + PICTURE)
    info = folder / "toy_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


def look_again():
    """As a process that has just begun: what is installed is looked up once in each."""
    for registry in KINDS:
        vars(registry).pop("_plugins", None)


@pytest.fixture
def installed(site, monkeypatch):
    """The package is there, for this process."""
    monkeypatch.syspath_prepend(str(site))
    look_again()
    yield
    monkeypatch.undo()
    look_again()


def test_all_three_through_the_program(installed, program, tmp_path):
    """The values are NumPy's: of the point's loss and of the norm."""
    finished = program(
        *("--problem", "line", "--problem.width", "4", "--directions", "axes(offset=1)"),
        *("--metrics", "loss,weight_norm(p=1)"),
    )
    assert finished.code == 0, finished
    with h5py.File(tmp_path / "landscape.h5") as file:
        assert file.attrs["directions"] == "axes(offset=1)" and file["loss"].shape == (3, 3)
        values, norms, direction = file["loss"][()], file["weight_norm"][()], file["directions/along_y/weight"][()]
    np.testing.assert_array_equal(direction, [[0, 0, 1, 0]])
    x, y = np.meshgrid([0, 0.5, 1], [0, 0.5, 1], indexing="ij")
    np.testing.assert_allclose(values, ((1 + x) ** 2 + (2 + y) ** 2 + 9) / 4, rtol=1e-6)
    np.testing.assert_allclose(norms, 6 + x + y, rtol=1e-6)
    again = program(*("--problem", "line", "--problem.width", "4", "--directions", "axes(offset=2)"))
    assert again.code == 2 and "direction recipe (axes(offset=1)" in again.err, again
    info = program("info", "landscape.h5")
    assert info.code == 0 and "axes(offset=1)" in info.out, info


def test_pictures_know_it_and_do_without_it(installed, site, program, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    options = ("--problem", "line", "--directions", "axes", "--plot", "false")
    assert program(*options).code == 0
    assert program("plot", "landscape.h5", "-o", "with.svg").code == 0
    assert program("plot", "landscape.h5", "-o", "own.svg", "--kind", "histogram(bins=4)").code == 0
    assert "loss in 4 bins" in (tmp_path / "own.svg").read_text()
    broken = program("plot", "landscape.h5", "--kind", "gone")
    assert broken.code == 2 and "--kind gone, of the package toy-plugin" in broken.err, broken
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(site)])
    look_again()
    assert program("plot", "landscape.h5", "-o", "without.svg").code == 0
    with_it, without = ((tmp_path / name).read_text() for name in ("with.svg", "without.svg"))
    assert "weight 1" in with_it and "weight 1" not in without and "direction 1" in without


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--directions", "lost"), ["--directions lost, of the package toy-plugin", "toy_plugin_missing"]),
        (("--metrics", "loss,absent"), ["--metrics absent, of the package toy-plugin", "Absent"]),
        (
            ("--directions", "axis"),
            ["there is no such direction", "random, interp", "axes, lost", "did you mean axes?"],
        ),
        (("--metrics", "weight_nrom"), ["there is no such metric", "weight_norm"]),
        (("--problem", "lyne"), ["there is no such problem", "digits, line, or", "did you mean line?"]),
        (("--directions", "axes(ofset=1)"), ["--directions axes(ofset=1)", "ofset"]),
        (("--directions", "axes(1)"), ["expected name(key=value"]),
        (("--directions", "toy_plugin:WeightNorm"), ["gives a WeightNorm, not a hpc_landscape.directions"]),
    ],
)
def test_what_is_broken_or_unknown_is_said(installed, program, tmp_path, options, words):
    problem = () if options[0] == "--problem" else ("--problem", TINY)
    finished = program(*problem, *options)
    assert finished.code == 2, finished
    assert all(word in finished.err for word in words), finished
    assert not (tmp_path / "landscape.h5").exists()


def test_what_is_broken_harms_no_other(installed, program):
    """A built-in name stays what it is."""
    finished = program("--problem", TINY, "--directions", "random", "--x=-1:1:2", "--y", "none")
    assert finished.code == 0, finished


def test_help_names_what_is_broken(site, tmp_path):
    """Each in a line; a process of its own, on whose path the package is."""
    shown = run_program("--help", folder=tmp_path, env=environment(PYTHONPATH=f"{ROOT}{os.pathsep}{site}"))
    lines = [line for line in shown.out.splitlines() if "cannot be loaded" in line]
    assert shown.code == 0 and len(lines) == 3, shown
    assert "--directions lost" in lines[0] and "toy-plugin: ModuleNotFoundError" in lines[0]
    assert any("--metrics absent" in line and "Absent" in line for line in lines)


def test_help_of_plot_names_its_own(installed, program):
    shown = program("plot", "--help")
    assert "histogram" in shown.out and "--kind gone cannot be loaded" in " ".join(shown.out.split()), shown


def test_a_kind_in_a_file_of_the_users(program, tmp_path):
    (tmp_path / "toy_in_a_file.py").write_text(PLUGIN)
    finished = program(
        *(
            "--problem",
            "toy_in_a_file.py:line",
            "--directions",
            "toy_in_a_file.py:Axes",
            "--metrics",
            "toy_in_a_file.py:WeightNorm",
        )
    )
    assert finished.code == 0, finished
    with h5py.File(tmp_path / "landscape.h5") as file:
        assert file["weight_norm"].shape == (3, 3)


POLICY = """
from hpc_landscape.evaluate.normalization import Running, WarmUp

class Same(Running):
    name, help = "same", "as running"

class Twice(WarmUp):
    name, help = "twice", "statistics of twice the variance"

    def estimate(self, executor):
        super().estimate(executor)
        for buffer in executor.statistics()[1::2]:
            buffer.mul_(2)

nothing = 3
"""


def test_a_policy_for_batch_normalization_in_a_file(program, tmp_path):
    """Another way to estimate statistics, in every mode; and no file of the one is gone on with as the other."""
    (tmp_path / "policies.py").write_text(POLICY)
    command = ("--problem", f"{PROBLEMS / 'small_problem_for_tests.py'}:images", "--x=-1:1:3", "--y=none")

    def losses(bn, *more):
        done = program(*command, "--bn", bn, *more, "--overwrite")
        assert done.code == 0, done
        with h5py.File(tmp_path / "landscape.h5") as file:
            return file["loss"][()], file.attrs["bn"]

    running, same = losses("running"), losses("policies.py:Same")
    assert same[1] == "same" and same[0].tobytes() == running[0].tobytes()
    twice, stacked = losses("policies.py:Twice"), losses("policies.py:Twice", "--block=2")
    np.testing.assert_allclose(stacked[0], twice[0], rtol=2e-5)
    assert abs(twice[0] - losses("warmup")[0]).max() > 1e-3
    refused = program(*command, "--bn", "policies.py:Twice")
    assert refused.code == 2 and "bn" in refused.err, refused
    refused = program(*command, "--bn", "policies.py:nothing", "--overwrite")
    assert refused.code == 2 and refused.err.count("\n") == 1, refused


def test_a_file_s_kind_is_a_name_and_is_never_run(tmp_path):
    """What a file says is data: a kind that it names by module or file is not imported."""
    (tmp_path / "evil.py").write_text("raise SystemExit('run')")
    for spec in (f"{tmp_path}/evil.py:Kind", "os:system", "os:system(command='true')", "gone(", "", 3, None):
        kind = kind_in_file(spec)
        assert kind.label(0) == "direction 1"


PAGE = ROOT / "docs" / "kinds.md"


def test_what_the_page_says_works(tmp_path):
    """Its files, its commands and its tests, as they stand there."""
    pytest.importorskip("matplotlib")
    blocks = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    code = [text for kind, text in blocks if kind == "python"]
    for text in code:
        (tmp_path / text.split('"""')[1]).write_text(text)
    (commands,) = [text for kind, text in blocks if kind == "bash"]
    env = environment(PATH=os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]))
    commands += "python -m pytest -q -p no:cacheprovider test_my_kinds.py\n"
    done = subprocess.run(["bash", "-e"], input=commands, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "3 passed" in done.stdout, done
    assert (tmp_path / "histogram.png").exists()
    named = re.findall(r'^\w+ = "my_kinds:(\w+)"$', PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    groups = re.findall(r'entry-points\."([\w.]+)"', PAGE.read_text(encoding="utf-8"))
    assert sorted(groups) == sorted(registry.group for registry in KINDS) and all(
        f" {name}(" in code[0] for name in named
    )
