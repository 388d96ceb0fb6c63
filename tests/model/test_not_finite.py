"""A checkpoint that is not finite is told before the first point; one that holds masks, or whose loss is, is none."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import hpc_landscape
from hpc_landscape.metrics import Loss

FILE = '''
import torch
from torch import nn
import hpc_landscape

class Masked(nn.Module):
    """An upper triangle of infinities, as attention has it."""
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.n, self.b = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.register_buffer("mask", torch.full((6, 6), -torch.inf).triu(1))
    def forward(self, x):
        return self.b((self.mask + self.n(self.a(x))[:, None]).softmax(-1).sum(1))

def make(what: str = "", loss: str = "mean"):
    model = Masked()
    with torch.no_grad():
        if what == "all":
            for p in model.parameters():
                p.fill_(torch.nan)
        elif what == "one":
            model.b.bias[1] = torch.inf
        elif what == "statistics":
            model.n.running_mean.fill_(torch.nan)
        elif what == "buffer":
            model.mask[0, 0] = torch.nan
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    criterion = nn.CrossEntropyLoss() if loss == "mean" else lambda o, t: nn.functional.cross_entropy(o, t) / 0
    return hpc_landscape.Problem(model, criterion, (x, torch.arange(20) % 3))
'''
AXES = ("--x=-1:1:2", "--y=none", "--plot=false", "--output=a.h5")


@pytest.fixture
def run(program, tmp_path):
    (tmp_path / "masked.py").write_text(FILE)
    return lambda *words: program("--problem", "masked.py:make", *AXES, *words)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--problem.what=all"], r"NaN or infinity in a\.weight, a\.bias, n\.weight and 3 more, .*Take an earlier one"),
        (["--problem.what=all", "--metrics=accuracy,loss,gradient_norm"], r"a\.weight, a\.bias, n\.weight and 3 more"),
        (["--problem.what=one"], r"NaN or infinity in b\.bias, and"),
        (["--problem.what=statistics", "--bn=running"], r"NaN or infinity in n\.running_mean, and"),
        (["--problem.what=buffer"], r"NaN or infinity in mask, and"),
    ],
)
def test_the_program_refuses_it(run, words, named):
    done = run(*words)
    assert done.code == 2 and done.err.count("\n") == 1 and not Path("a.h5").exists(), done
    assert re.search(named, done.err), done


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--problem.what=statistics"],  # they are re-estimated
        ["--problem.loss=infinite"],
    ],
)
def test_what_is_finite_or_will_be_is_computed(run, words):
    done = run(*words)
    assert done.code == 0, done
    with h5py.File("a.h5") as file:
        assert np.isfinite(file["loss"][()]).all() != ("--problem.loss=infinite" in words)


def test_a_checkpoint(run):
    torch.save({name: t.float() * math.nan for name, t in _state().items()}, "diverged.pt")
    done = run("--checkpoint=diverged.pt")
    assert done.code == 2 and "NaN or infinity in a.weight" in done.err and not Path("a.h5").exists(), done


def _state() -> dict[str, torch.Tensor]:
    names: dict = {}
    exec(FILE, names)
    return names["Masked"]().state_dict()


def test_the_library_warns():
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight[0, 0] = torch.nan
    line = hpc_landscape.LinearLossLandscape(model, 3).random_line(seed=0)
    metric = Loss(nn.CrossEntropyLoss(), torch.ones(4, 3), torch.zeros(4, dtype=torch.long))
    with pytest.warns(UserWarning, match="NaN or infinity in weight") as caught:
        assert np.isnan(line.compute(metric)).all()
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hpc_landscape.LinearLossLandscape(nn.Linear(3, 2), 3).random_line(seed=0).compute(metric)
