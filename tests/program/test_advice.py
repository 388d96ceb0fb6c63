"""The plan says what --tune would save where that is worth a line, and known. Here all estimates are made up."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from programs import PROBLEMS
from torch import nn

from hpc_landscape.campaign import advice as module
from hpc_landscape.campaign.advice import advice, can_compile, saving, seconds_per_point
from hpc_landscape.data.prepare import TensorBatches
from hpc_landscape.data.sets import Sets
from hpc_landscape.progress import roughly
from hpc_landscape.setting_groups import SpeedSettings

HOUR = 3600.0


@pytest.mark.parametrize(
    "seconds, text",
    [
        (600, "10 min"),
        (43 * 60, "40 min"),
        (89 * 60, "90 min"),
        (90 * 60, "2 h"),
        (7.2 * HOUR, "7 h"),
        (47 * HOUR, "47 h"),
        (60 * HOUR, "2 d"),
        (1000 * HOUR, "42 d"),
    ],
)
def test_an_estimate_is_told_as_one(seconds, text):
    assert roughly(seconds) == text


def test_the_line_is_of_what_has_been_measured_and_of_nothing_else(monkeypatch):
    monkeypatch.setitem(module.COMPILED, "cpu", 1.4)
    assert saving(7 * HOUR, "cpu") == "--tune would save about 2 h of 7 h"
    assert saving(2099, "cpu") == "" and saving(2101, "cpu") == "--tune would save about 10 min of 40 min"
    assert saving(7000 * HOUR, "cuda") == ""  # not measured there


def batches(size: int, batch_size: int) -> TensorBatches:
    return TensorBatches((torch.zeros(size, 1),), batch_size)


def test_a_point_takes_its_passes():
    data, more = batches(105, 10), batches(30, 50)
    assert seconds_per_point(Sets({"": data}, data), False, {"": 2.0}) == pytest.approx(21.0)
    assert seconds_per_point(Sets({"": data}, data), True, {"": 2.0}) == pytest.approx(42.0)
    assert seconds_per_point(Sets({"": data}, more), True, {"": 2.0}) == pytest.approx(21.0 + 6.0)
    both = Sets({"train": data, "test": more}, more)  # a first batch of the second set is all of it
    assert seconds_per_point(both, False, {"train": 2.0, "test": 3.0}) == pytest.approx(21.0 + 3.0)
    assert seconds_per_point(both, True, {"train": 2.0, "test": 3.0}) == pytest.approx(21.0 + 3.0 + 3.0)
    assert seconds_per_point(both, True, {"train": 2.0}) == pytest.approx(21.0 + 6.0)
    assert seconds_per_point(both, True, {}) == 0  # no metric is over data


def test_what_has_no_size_is_not_estimated():
    stream = SimpleNamespace(size=None, batch_size=10)
    assert seconds_per_point(Sets({"": stream}, stream), True, {"": 2.0}) == 0


CONVOLUTIONAL = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def subject(root: nn.Module = CONVOLUTIONAL, **changes):
    values = {"precision": "fp32", "is_additive": True, "device": torch.device("cpu")}
    policy = SimpleNamespace(reads_data=True)
    return SimpleNamespace(model=SimpleNamespace(root=root), normalization=policy, **values | changes)


def advised(evaluator=None, speed: SpeedSettings | None = None, points: int = 1000, streamed: bool = False) -> str:
    data = batches(100, 10)
    data.streamed = streamed
    evaluator, sets = evaluator or subject(), Sets({"": data}, data)
    seconds = points * seconds_per_point(sets, evaluator.normalization.reads_data, {"": 2.0})
    return advice(evaluator, sets, seconds, speed or SpeedSettings())


@pytest.fixture
def compiler(monkeypatch):
    monkeypatch.setattr(module, "can_compile", lambda kind: True)
    monkeypatch.setattr(module, "COMPILED", {"cpu": 1.25})


def test_it_is_advised_where_it_would_pay(compiler):
    assert advised() == "--tune would save about 2 h of 11 h"  # 1,000 points of 2 passes over 10 batches of 2 s
    assert advised(points=50) == "" and advised(points=76) == "--tune would save about 10 min of 50 min"


@pytest.mark.parametrize("speed", [{"tune": True}, {"compile": True}, {"block": 2}, {"channels_last": True}])
def test_it_is_not_where_something_else_is_asked_for(compiler, speed):
    assert advised(speed=SpeedSettings(**speed)) == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"root": nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2))},
        {"root": nn.Conv2d(1, 2, 3)},
        {"root": nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False))},
        {"precision": "bf16"},
        {"precision": "fp64"},
        {"is_additive": False},
        {"device": torch.device("cuda")},
    ],
    ids=str,
)
def test_it_is_not_where_nothing_is_known_of_it(compiler, changes):
    assert advised(subject(**changes)) == ""
    assert advised(streamed=True) == ""


def test_it_is_not_where_nothing_can_be_compiled(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    assert not can_compile("cpu") and advised() == ""
    (tmp_path / "c++").write_text("")
    (tmp_path / "c++").chmod(0o755)
    (tmp_path / "Python.h").write_text("")
    monkeypatch.setattr(module.sysconfig, "get_path", lambda name: str(tmp_path))
    assert can_compile("cpu") and advised()
    (tmp_path / "Python.h").unlink()
    assert not can_compile("cpu") and can_compile("cuda")


def notes(said) -> list[str]:
    return [line for line in said.out.splitlines() if "--tune would save" in line]


def test_the_plan_has_it_once_and_not_where_a_file_is_gone_on_with(program, compiler, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "WORTH", 0.0)
    problem = f"{PROBLEMS / 'calls_problem_for_tests.py'}:calls"
    words = ("--problem", problem, f"--problem.log={tmp_path / 'log'}", "--x=0:1:2", "--y=none", "--plot=false")
    assert len(notes(program(*words, "--problem.images=true", "--output=a.h5", "--dry_run"))) == 1
    said = program(*words, "--problem.images=true", "--output=a.h5")
    assert said.code == 0 and [line[:12] for line in notes(said)] == ["note        "]
    assert said.out.index("--tune would save") < said.out.index("writer ")
    assert not notes(program(*words, "--problem.images=true", "--output=a.h5"))  # a complete file
    assert not notes(program(*words, "--output=b.h5"))  # no convolutions
    assert not notes(program(*words, "--problem.images=true", "--output=c.h5", "--tune"))
