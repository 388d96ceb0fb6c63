"""Whatever people bring: the right value, or one line that says what is missing; by the program and by the library."""

from __future__ import annotations

import re
import warnings

import pytest
from case import AXES, Case, assert_right, cases, stored

import hpc_landscape
from hpc_landscape import UserError
from hpc_landscape.metrics import Data, Loss

pytestmark = pytest.mark.filterwarnings("default")  # what people bring may warn, and goes on

ALL = list(cases())


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in ALL])
def test_the_program(case: Case, program, tmp_path):
    if case.prepare:
        case.prepare(tmp_path)
    output = tmp_path / "landscape.h5"
    run = program(*case.words(output))
    if case.refused:
        assert run.code == 2, run
        assert re.search(case.refused, run.err), run
        assert "Traceback" not in run.err and not output.exists(), run
        return
    assert run.code == 0, run
    for text in case.said:
        assert re.search(text, run.out + run.err), f"{text} is not said: {run}"
    assert_right(case, *stored(output))


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in ALL if case.library is not False])
def test_the_library(case: Case, alone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if case.prepare:
        case.prepare(tmp_path)
    problem = case.make()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        refused = case.refused if case.library_refused is None else case.library_refused
        if refused:
            with pytest.raises((UserError, TypeError, ValueError), match=refused):
                _compute(case, problem)
            return
        line, values = _compute(case, problem)
    for text in case.library_said:
        assert any(re.search(text, str(w.message)) for w in caught), f"{text} is not said: {[*map(str, caught)]}"
    assert_right(case, [line.coordinates], line.directions, {"loss": values})


def _compute(case, problem):
    line = hpc_landscape.LinearLossLandscape(problem.model, 3, mode=problem.mode)
    line.random_line(distance=2, seed=0)
    metric = case.library(problem) if case.library else Loss(problem.loss, _data(problem))
    if case.warm_up:
        line.warm_up(metric)
    return line, line.compute(metric)


def _data(problem) -> Data:
    """As one writes it: two tensors are a batch, a loader is a loader."""
    data = problem.data
    if isinstance(data, tuple) and len(data) == 2:
        return Data(*data, forward=problem.forward, count=problem.count)
    return Data(data, forward=problem.forward, count=problem.count)


def test_the_axes_are_those_of_the_library():
    assert AXES[1] == "-1:1:3"
