"""What a run's values are made of: it goes on with a file only where all of that is the same; and one point is seen."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from programs import Finished, assert_same_landscape, environment, listing, run_program

GRID = ("--x=-1:1:3", "--y=none", "--plot=false")
HEAD = """
import functools
import torch
from torch import nn
from torch.nn import functional as F
from hpc_landscape import Problem
from hpc_landscape.metrics import Metric

def made(loss=F.cross_entropy, model=None, **more):
    g = torch.Generator().manual_seed(0)
    model = model or nn.Linear(4, 3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
    return Problem(model, loss, (torch.randn(20, 4, generator=g), torch.randint(0, 3, (20,), generator=g)), **more)
"""


@pytest.fixture
def run(program: Callable[..., Finished], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Finished]:
    """Runs a problem file of that text, as a new process would."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def run(text: str, *options: object) -> Finished:
        (tmp_path / "brought.py").write_text(HEAD + text)
        sys.modules.pop("brought", None)
        try:
            return program("--problem", "brought.py:problem", *GRID, *options)
        finally:
            sys.modules.pop("brought", None)

    return run


FUNCTION = '''
def loss(o, t):
    """Of smoothed targets."""
    return F.cross_entropy(o, t, label_smoothing=0.10)  # a little

def problem(): return made(loss)
'''
GLOBAL = """
AMOUNT = 0.1
def helper(o, t): return F.cross_entropy(o, t, label_smoothing=AMOUNT)
def loss(o, t): return helper(o, t)
def problem(): return made(loss)
"""
CLOSURE = """
def problem(): return made(make(0.1))
def make(amount):
    weights = {"a": [torch.tensor([1.0, 1.0, 2.0]), amount]}
    return lambda o, t: F.cross_entropy(o, t, label_smoothing=weights["a"][1])
"""
PARTIAL = "def problem(): return made(functools.partial(F.cross_entropy, label_smoothing=0.1))"
CLASS = """
class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.power = nn.CrossEntropyLoss(label_smoothing=0.1), {"k": 1.0}
        self.register_buffer("scale", torch.tensor(2.0))
    def forward(self, o, t): return self.scale * self.inner(o, t) ** self.power["k"]
def problem(): return made(Loss())
"""
CALLABLE = """
class Loss:
    factor = 1.0
    def __init__(self): self.amount = 0.1
    def __call__(self, o, t): return self.factor * F.cross_entropy(o, t, label_smoothing=self.amount)
def problem(): return made(Loss())
"""
FORWARD = """
def problem(): return made(lambda o, b: F.cross_entropy(o, b[1]), forward=lambda m, b: 1.0 * m(b[0]), count=count)
def count(batch): return len(batch[0]) * 1
"""
METRIC = """
class Norm(Metric):
    name = "norm"
    def __init__(self, p=2): self.p = p
    def __call__(self, model): return sum(float(p.detach().norm(self.p)) for p in model.parameters()) * 1.0
def problem(): return made(metrics=[Norm()])
"""
MODEL = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.slope = 0.1
    def forward(self, x): return F.leaky_relu(self.layer(x), self.slope)
def problem(): return made(model=Net())
"""
DECORATED = """
def scaled(by):
    def wrap(f):
        @functools.wraps(f)
        def inner(*a): return by * f(*a)
        return inner
    return wrap
@scaled(2.0)
def loss(o, t): return F.cross_entropy(o, t)
def problem(): return made(loss)
"""
SET = """
SKIPPED = {"a", "b", "c", "d"}
def loss(o, t): return F.cross_entropy(o, t) + len(SKIPPED)
def problem(): return made(loss)
"""
# What a problem holds beside what its loss uses: when it was made, where it writes, what has been counted.
TRAINER = """
import argparse, datetime, tempfile, time
BEGAN, TIMES = time.perf_counter(), []
class Net(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)
        self.made = time.time()
class Trainer:
    def __init__(self):
        self.args = argparse.Namespace(smooth=0.1, folder=tempfile.mkdtemp())
        self.name, self.began, self.model = f"run-{datetime.datetime.now()}", time.time_ns(), Net()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=time.time() % 1)
    def fit(self): print(self.name, self.began, self.optimizer)
    def smoothed(self): return self.args.smooth
    def loss(self, o, t):
        TIMES.append(time.perf_counter() - BEGAN)
        return F.cross_entropy(o, t, label_smoothing=self.smoothed())
def problem():
    trainer = Trainer()
    return made(trainer.loss, trainer.model)
"""
HELD = """
import datetime, os, tempfile, threading, time, weakref
class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.lock, self.when, self.folder = threading.Lock(), datetime.datetime.now(), tempfile.mkdtemp()
        self.file, self.last, self.pid, self.amount = tempfile.TemporaryFile(), time.time(), os.getpid(), 0.1
        weakref.finalize(self, self.file.close)
    def forward(self, o, t):
        with self.lock, open(os.devnull, "w") as nowhere:
            print(time.time() - self.last, self.when, file=nowhere)
        return F.cross_entropy(o, t, label_smoothing=self.amount)
def problem(): return made(Loss())
"""
COMPILED = "def problem(): return made(torch.compile(nn.CrossEntropyLoss(label_smoothing=0.1), backend='eager'))"
OTHERS = {
    "body of a function": (FUNCTION, "0.10", "0.20", "the loss (its code"),
    "a global number": (GLOBAL, "AMOUNT = 0.1", "AMOUNT = 0.2", "the loss (its code"),
    "a helper's body": (GLOBAL, "return F.cross", "return 2 * F.cross", "the loss (its code"),
    "a number in a closure": (CLOSURE, "make(0.1)", "make(0.2)", "the loss (its code"),
    "a tensor in a closure": (CLOSURE, "1.0, 2.0]", "1.0, 3.0]", "the loss (its code"),
    "a partial's argument": (PARTIAL, "0.1", "0.2", "the loss (its code"),
    "a module's attribute": (CLASS, '"k": 1.0', '"k": 2.0', "the loss (its code"),
    "a module's buffer": (CLASS, "tensor(2.0)", "tensor(3.0)", "the loss (its code"),
    "a module in a module": (CLASS, "smoothing=0.1", "smoothing=0.2", "the loss (its code"),
    "an object's attribute": (CALLABLE, "self.amount = 0.1", "self.amount = 0.2", "the loss (its code"),
    "a class's attribute": (CALLABLE, "factor = 1.0", "factor = 2.0", "the loss (its code"),
    "a decorator's argument": (DECORATED, "scaled(2.0)", "scaled(3.0)", "the loss (its code"),
    "a set": (SET, '"d"', '"e"', "the loss (its code"),
    "forward": (FORWARD, "1.0 * m", "2.0 * m", "the problem's forward (its code"),
    "count": (FORWARD, "* 1", "* 2", "the problem's count (its code"),
    "an own metric's body": (METRIC, "* 1.0", "* 2.0", "the code of the metric norm"),
    "an own metric's number": (METRIC, "p=2", "p=3", "the code of the metric norm"),
    "the model's body": (MODEL, "leaky_relu", "elu", "the model's code"),
    "the model's number": (MODEL, "self.slope = 0.1", "self.slope = 0.2", "the model's code"),
    "what a trainer's loss uses": (TRAINER, "smooth=0.1", "smooth=0.2", "the loss (its code"),
    "a method that a loss calls": (TRAINER, "return self.args.smooth", "return 0.2", "the loss (its code"),
    "among what is held": (HELD, "os.getpid(), 0.1", "os.getpid(), 0.2", "the loss (its code"),
    "in a compiled loss": (COMPILED, "smoothing=0.1", "smoothing=0.2", "the loss (its code"),
    "by any name": (CALLABLE.replace("self.factor", 'getattr(self, "fac" + "tor")'), "= 1.0", "= 2.0", "the loss (its"),
    "a class that a call makes": (
        CALLABLE + "\ndef problem(): return made(lambda o, t: Loss()(o, t))",
        "0.1",
        "0.2",
        "the",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_run_does_not_go_on_with_other_code(run: Callable[..., Finished], tmp_path: Path, case: str) -> None:
    text, old, new, named = OTHERS[case]
    metrics = ("--metrics=loss,norm",) if "norm" in text and "Norm" in text else ()
    assert run(text, *metrics).code == 0
    before = listing(tmp_path)
    finished = run(text.replace(old, new), *metrics)
    assert finished.code == 2 and finished.err.count("\n") == 1, finished
    assert f"is of another run: {named}" in finished.err, finished
    after = listing(tmp_path)
    assert after["landscape.h5"] == before["landscape.h5"]


ALIKE = {
    "comments, docstrings, layout and lines": (
        FUNCTION,
        lambda text: "\n\n# of today\n" + text.replace("# a little", "# much").replace("Of smoothed", "Of other"),
    ),
    "spaces and brackets": (GLOBAL, lambda text: text.replace("return helper(o, t)", "return (helper(o,t))")),
    "a set in another order": (SET, lambda text: text.replace('"a", "b", "c", "d"', '"d", "c", "b", "a"')),
    "what is not used": (CLASS, lambda text: text + "\ndef other(x): return x\n"),
    "a class": (CALLABLE, lambda text: text),
    "a closure": (CLOSURE, lambda text: text),
}

ALIKE |= {case: (text, lambda text: text) for case, text in (("held", HELD), ("a compiled loss", COMPILED))}
ALIKE["a trainer whose fit is another"] = (
    TRAINER,
    lambda text: text.replace("def fit(self): print", "def fit(self): str"),
)


@pytest.mark.parametrize("case", ALIKE)
def test_a_run_goes_on_where_the_code_says_the_same(run: Callable[..., Finished], case: str) -> None:
    text, change = ALIKE[case]
    assert run(text).code == 0
    finished = run(change(text))
    assert finished.code == 0 and "is complete" in finished.out, finished


ARGUMENTS = "def problem(smooth: float = 0.0, log: str = '', **more): return made(F.cross_entropy, neutral=('log',))"


def test_arguments_of_the_problem_always_count(run: Callable[..., Finished]) -> None:
    """Whatever is done with them; one given as it is by default is no other, nor one that is said to change nothing."""
    assert run(ARGUMENTS).code == 0
    for same in (("--problem.smooth", "0.0"), ("--problem.smooth", 0), ("--problem.log", "here")):
        assert run(ARGUMENTS, *same).code == 0
    for other in (("--problem.smooth", "0.1"), ("--problem.extra", "1")):
        finished = run(ARGUMENTS, *other)
        assert finished.code == 2 and "the problem's arguments (smooth=0.0 there, " in finished.err, finished
    assert "the problem's arguments (smooth=0.0 there, smooth=0.5 here)" in run(ARGUMENTS.replace("= 0.0", "= 0.5")).err


def test_another_problem_of_the_same_model(run: Callable[..., Finished], program: Callable[..., Finished]) -> None:
    text = "def problem(): return made()\nother = lambda: made()\ndef another(): return made()\n"
    assert run(text).code == 0
    finished = program("--problem", "brought.py:another", *GRID)
    assert finished.code == 2 and "problem name (brought.py:problem there, brought.py:another here)" in finished.err


def test_moved_and_in_another_process(tmp_path: Path) -> None:
    """Neither a file's place nor the hashes of strings, which differ from process to process, count."""
    text = HEAD + SET.replace("len(SKIPPED)", "len(SKIPPED) + len({'x', 'y', 'z'} | frozenset('pqr'))")
    for folder, seed in (("a", "1"), ("b", "2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "brought.py").write_text(text)
        command = ("--problem", f"{folder}/brought.py:problem", *GRID)
        finished = run_program(*command, folder=tmp_path, env=environment(PYTHONHASHSEED=seed))
        assert finished.code == 0, finished
    assert "is complete" in finished.out


def _unfinish(path: Path, points: slice) -> None:
    with h5py.File(path, "r+") as file:
        file["done"][points] = 0


HIDDEN = """
import json, os
def loss(o, t):
    with open("amount.json") as file:  # what no look at the code can find
        return F.cross_entropy(o, t, label_smoothing=json.load(file))
def problem(): return made(loss)
"""


def test_a_finished_point_is_computed_again(run: Callable[..., Finished], tmp_path: Path) -> None:
    (tmp_path / "amount.json").write_text("0.1")
    assert run(HIDDEN, "--output=whole.h5").code == 0 and run(HIDDEN).code == 0
    _unfinish(tmp_path / "landscape.h5", slice(0, 1))
    before = (tmp_path / "landscape.h5").read_bytes()
    (tmp_path / "amount.json").write_text("0.11")
    finished = run(HIDDEN)
    assert finished.code == 2 and finished.err.count("\n") == 1, finished
    with h5py.File(tmp_path / "whole.h5") as file:
        there = file["loss"][1]
    assert f"is of another run: at (0) loss is {there:.9g} there, and " in finished.err, finished
    assert (tmp_path / "landscape.h5").read_bytes() == before
    (tmp_path / "amount.json").write_text("0.1")
    assert run(HIDDEN).code == 0
    assert_same_landscape(tmp_path / "landscape.h5", tmp_path / "whole.h5")


def test_to_the_bit_where_all_is_alike(run: Callable[..., Finished], tmp_path: Path) -> None:
    """And nearly elsewhere: with another number of threads, or a file whose points are of both."""
    text = "def problem(): return made()"
    assert run(text).code == 0
    path = tmp_path / "landscape.h5"
    with h5py.File(path, "r+") as file:
        file["loss"][0] = np.nextafter(file["loss"][0], 9)
    _unfinish(path, slice(1, 2))
    finished = run(text)
    assert finished.code == 2 and "computed again" in finished.err, finished
    with h5py.File(path, "r+") as file:
        file.attrs["threads"] = "7"
    assert run(text).code == 0
    with h5py.File(path, "r+") as file:
        assert file["runs/mixed"][0] == 1
        file.attrs["threads"] = "1"
    _unfinish(path, slice(1, 2))
    assert run(text).code == 0
    with h5py.File(path, "r+") as file:
        file["loss"][0] *= 1.001
    _unfinish(path, slice(1, 2))
    assert run(text).code == 2


def test_what_failed_or_is_nan_is_no_difference(run: Callable[..., Finished], tmp_path: Path) -> None:
    text = "def problem(): return made(lambda o, t: F.cross_entropy(o, t) * float('nan'))"
    assert run(text, "--metrics=loss").code == 0
    path = tmp_path / "landscape.h5"
    with h5py.File(path, "r+") as file:
        file["loss"][0], file["failed"][0] = 5.0, 1
    _unfinish(path, slice(2, 3))
    assert run(text, "--metrics=loss").code == 0
    with h5py.File(path) as file:
        assert file["done"][()].all() and file["loss"][0] == 5.0
