"""--tune: measures, takes what is fastest for the points to do, says so in the file, and keeps to it."""

from __future__ import annotations

import copy
import signal
import sys
import time
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from programs import PROBLEMS, read, run_program
from torch import nn

from hpc_landscape import Problem
from hpc_landscape.evaluate import tune
from hpc_landscape.evaluate.execution import PLAIN, ExecutionMode
from hpc_landscape.evaluate.normalization import WarmUp
from hpc_landscape.settings import Settings

IMAGES = f"{PROBLEMS / 'small_problem_for_tests.py'}:images"
JOB = ("--problem", IMAGES, "--x=-1:1:4", "--y=-1:1:3", "--plot=false")


def choice(path) -> tuple[int, ...]:
    with h5py.File(path) as file:
        return tuple(int(file.attrs[name]) for name in ("channels_last", "compile", "block"))


def test_the_choice_is_recorded_and_kept(program, tmp_path):
    assert program(*JOB, "--output=plain.h5").code == 0
    done = program(*JOB, "--tune")
    assert done.code == 0 and "tuned        " in done.out, done
    path = tmp_path / "landscape.h5"
    np.testing.assert_allclose(read(path, "loss"), read(tmp_path / "plain.h5", "loss"), rtol=2e-5)
    with h5py.File(path, "r+") as file:
        text, mode = file.attrs["tuned"], file.attrs["execution"]
        assert text.startswith(f"{mode}, for 12 points; seconds a point: ") and "plain" in text
        file["done"][2:] = 0
    before = read(path, "loss")
    again = program(*JOB, "--tune")
    assert again.code == 0 and "6 still to do" in again.out and "tuned" not in again.out, again
    assert read(path, "loss").tobytes() == before.tobytes()
    with h5py.File(path) as file:
        assert (file.attrs["tuned"], file.attrs["execution"]) == (text, mode)
        options = {"channels_last": bool, "compile": bool, "block": lambda k: k or None}
        recorded = Settings(**{name: kind(file.attrs[name]) for name, kind in options.items()})
        block, text = recorded.for_speed.block or "null", file.attrs["settings"]
        assert f"block: {block}\n" in text and "tune: false" in text


@pytest.mark.parametrize("recorded", [(1, 0, 0), (0, 0, 4)])
def test_a_run_goes_on_in_the_form_of_its_file(program, tmp_path, recorded):
    """Whatever would be measured now."""
    options = {(1, 0, 0): "--channels_last", (0, 0, 4): "--block=4"}
    assert program(*JOB, options[recorded]).code == 0
    assert choice(tmp_path / "landscape.h5") == recorded
    with h5py.File(tmp_path / "landscape.h5", "r+") as file:
        file["done"][1:] = 0
    before = read(tmp_path / "landscape.h5", "loss")
    done = program(*JOB, "--tune")
    assert done.code == 0 and "still to do" in done.out, done
    assert read(tmp_path / "landscape.h5", "loss").tobytes() == before.tobytes()


@pytest.mark.mpi_stack
def test_all_ranks_take_the_same(tmp_path):
    finished = run_program(*JOB, "--tune", folder=tmp_path, ranks=2)
    assert finished.code == 0 and finished.out.count("tuned  ") == 1, finished
    assert read(tmp_path / "landscape.h5", "done").all()


def test_it_chooses_alone(program):
    done = program(*JOB, "--tune", "--block=4")
    assert done.code == 2 and "--tune chooses" in done.err and done.err.count("\n") == 1, done


class Sets:
    evaluation, warmup, streamed = {}, None, False


class Builder:
    """What the tuner asks of one: here all that it is told."""

    speed, subject = Settings().for_speed, SimpleNamespace(own_forward=False)
    model, device = SimpleNamespace(root=None), torch.device("cuda")  # where channels last are as exact as others
    precision, normalization, is_additive, sets = "fp32", WarmUp, True, Sets()


def tuned(monkeypatch, points: int, seconds: dict[ExecutionMode, tuple[float, float]]) -> ExecutionMode:
    """The mode that is chosen where these are the times: mode -> (a point, what is paid once)."""

    def candidate_modes(speed, *_):
        compiled, stacked = "default" * speed.compile, speed.block or 1
        last = stacked == 1 if speed.channels_last is None else speed.channels_last
        return [ExecutionMode(channels_last=last, compiled=compiled, stacked=stacked)]

    monkeypatch.setattr(tune, "candidate_modes", candidate_modes)
    builder = copy.copy(Builder())
    builder.points = points
    tuner = tune._Tuner(builder, points)
    monkeypatch.setattr(tuner, "_shorten", lambda plain: tuner._measure(plain))
    monkeypatch.setattr(tuner, "_time", lambda mode: seconds[mode])
    settings, text = tuner.best()
    mode = candidate_modes(Settings(**settings).for_speed)[0]
    assert text.startswith(f"{mode}, for {points} points")
    return mode


LAST, COMPILED = ExecutionMode(channels_last=True), ExecutionMode(channels_last=True, compiled="default")
TWO, FOUR, EIGHT = (ExecutionMode(stacked=k) for k in (2, 4, 8))


def test_the_fastest_is_taken_and_what_compiling_costs_is_counted(monkeypatch):
    times = {LAST: (1.0, 9.0), PLAIN: (0.9, 0.0), TWO: (1.1, 0.0), COMPILED: (0.5, 40.0)}
    assert tuned(monkeypatch, 1000, times) == COMPILED
    assert tuned(monkeypatch, 90, times) == PLAIN  # 81 s against 85 s
    assert tuned(monkeypatch, 110, times) == COMPILED  # 99 s against 95 s
    assert tuned(monkeypatch, 10, {**times, COMPILED: (0.0, 0.0)}) == PLAIN  # not tried: there is too little to win


def test_blocks_grow_while_that_helps(monkeypatch):
    times = {LAST: (0.01, 0.0), PLAIN: (0.02, 0.0), TWO: (0.012, 0.0), FOUR: (0.004, 0.0), EIGHT: (0.005, 0.0)}
    assert tuned(monkeypatch, 20, times) == FOUR  # though two at a time are slower than one
    assert tuned(monkeypatch, 3, times) == LAST  # no more than the points there are
    slow = {mode: (100 * seconds, once) for mode, (seconds, once) in times.items()}
    assert tuned(monkeypatch, 20, slow) == LAST  # not tried: there is nothing to save


def test_a_few_percent_are_not_worth_another_form(monkeypatch):
    times = {LAST: (1.0, 0.0), PLAIN: (0.98, 0.0), TWO: (1.5, 0.0)}
    assert tuned(monkeypatch, 20, times) == LAST


def test_what_cannot_be_evaluated_is_not_taken(monkeypatch):
    assert tuned(monkeypatch, 20, {LAST: (0.01, 0.0), TWO: (0.005, 0.0), FOUR: (0.01, 0.0)}) == TWO


def test_time_that_is_up():
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(tune._OutOfTime), tune._until(time.monotonic() + 0.05):
        while True:
            pass
    assert signal.getsignal(signal.SIGALRM) is before
    with tune._until(time.monotonic() + 0.01):
        pass
    time.sleep(0.02)  # no alarm is left


class Bell(nn.Module):
    """Sends the alarm of tuning when its mode is set, as the model is given back."""

    rings = 0

    @property
    def training(self) -> bool:
        return self.__dict__["mode"]

    @training.setter
    def training(self, mode: bool) -> None:
        self.__dict__["mode"] = mode
        if mode and "tune" in str(getattr(signal.getsignal(signal.SIGALRM), "__module__", "")):
            Bell.rings += 1
            signal.raise_signal(signal.SIGALRM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_an_alarm_while_the_model_is_given_back_waits(program, monkeypatch):
    """At exactly that moment, time and again: what is measured may be given up, the model is as it was."""
    made = []

    def problem() -> Problem:
        torch.manual_seed(0)
        model = nn.Sequential(Bell(), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
        made.append((model, {name: t.clone() for name, t in model.state_dict().items()}))
        return Problem(model, nn.CrossEntropyLoss(), (torch.randn(64, 4), torch.arange(64) % 3))

    monkeypatch.setitem(sys.modules, "bell_for_tests", SimpleNamespace(problem=problem))
    monkeypatch.setattr(tune, "ENOUGH", 0.02)
    Bell.rings = 0
    done = program("--problem=bell_for_tests:problem", "--x=-1:1:4", "--y=-1:1:3", "--plot=false", "--tune")
    assert done.code == 0 and Bell.rings > 2, done
    model, before = made[-1]
    assert all(module.training for module in model.modules())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def test_a_weak_references_callback_is_not_broken_off():
    """What is raised there is lost."""
    theirs = eval(compile("(lambda: sys._getframe())()", torch.__file__, "eval"), {"sys": sys})
    assert tune._is_callback(theirs) and not tune._is_callback(sys._getframe())
