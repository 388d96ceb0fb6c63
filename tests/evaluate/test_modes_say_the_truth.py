"""Fast modes: as exact as they say, compiled where they say so; and a script sees its own name alone."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from programs import PROBLEMS, Finished, read, run_program

IMAGES = f"{PROBLEMS / 'small_problem_for_tests.py'}:images"
COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
LINE = ("--x=-1:1:5", "--y=none", "--plot=false")
HEAD = """
import sys
import torch
from torch import nn
from torch.nn import functional as F
from hpc_landscape import Problem
from hpc_landscape.model.wrapper import GeneralModelWrapper

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)
    def encode(self, x):
        return torch.tanh(self.layer(x))
    def forward(self, x):
        raise RuntimeError("is not what is called")

def data():
    g = torch.Generator().manual_seed(0)
    return torch.randn(20, 4, generator=g), torch.randint(0, 3, (20,), generator=g)

def loss(output, batch):
    return F.cross_entropy(output, batch[1])
"""


def _write(tmp_path: Path, name: str, text: str) -> str:
    (tmp_path / f"{name}.py").write_text(text)
    sys.modules.pop(name, None)
    return f"{name}.py:problem"


# How far a mode is off


OWN_NORM = (
    HEAD
    + """
class Norm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x)

class Groups(nn.GroupNorm):
    def __init__(self, channels):
        super().__init__(2, channels)

def problem(kind: str = "Norm"):
    torch.manual_seed(0)
    norm = {"Norm": Norm, "Groups": Groups, "torch": nn.BatchNorm2d}[kind](4)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    return Problem(model, nn.CrossEntropyLoss(), (torch.randn(20, 1, 8, 8), torch.randint(0, 3, (20,))))
"""
)


@pytest.mark.parametrize(
    ("kind", "options", "mode"),
    [
        ("torch", (), "channels last"),
        ("torch", ("--channels_last=false",), "plain"),
        ("torch", ("--precision=bf16",), "channels last, weights in bfloat16"),
        ("Norm", (), "plain"),
        ("Norm", ("--bn=running",), "channels last"),
        ("Norm", ("--bn=batch",), "plain"),
        ("Norm", ("--channels_last",), "channels last"),
        ("Groups", (), "plain"),
        ("Groups", ("--bn=running",), "plain"),
    ],
)
def test_channels_last_is_taken_where_it_is_as_exact_or_asked_for(
    program: Callable[..., Finished], tmp_path: Path, kind: str, options: tuple[str, ...], mode: str
) -> None:
    """And its error is measured only where it is not."""
    problem = _write(tmp_path, "own_norm", OWN_NORM)
    done = program("--problem", problem, "--problem.kind", kind, *LINE, "--device=cpu", *options)
    assert done.code == 0, done
    with h5py.File("landscape.h5") as file:
        assert file.attrs["execution"] == mode and file.attrs["channels_last"] == ("last" in mode)
        assert ("execution_error_loss" in file.attrs) == ("--channels_last" in options or "16" in mode)


def test_a_file_is_gone_on_with_in_its_own_order(program: Callable[..., Finished], tmp_path: Path) -> None:
    """Also one of a version that had another default."""
    command = ("--problem", IMAGES, *LINE, "--device=cpu")
    for order in ("false", "true"):
        path = tmp_path / f"{order}.h5"
        assert program(*command, f"--channels_last={order}", f"--output={path}").code == 0
        before = read(path, "loss")
        with h5py.File(path, "r+") as file:
            file["done"][2:] = 0
        done = program(*command, f"--output={path}")
        assert done.code == 0 and "3 still to do" in done.out, done
        assert read(path, "loss").tobytes() == before.tobytes()


@pytest.mark.parametrize(
    ("grid", "points", "factor"), [(("--x=-1:1:5", "--y=-1:1:5"), 16, 2.5), (("--x=-1:1:3", "--y=none"), 3, 1)]
)
def test_the_error_that_is_stated_is_that_of_the_grid(
    program: Callable[..., Finished], grid: tuple[str, ...], points: int, factor: int
) -> None:
    command = ("--problem", IMAGES, *grid, "--plot=false", "--metrics=loss")
    said = program(*command, "--precision=bf16", "--output=low.h5")
    assert said.code == 0 and program(*command, "--output=full.h5").code == 0
    differences = (read("low.h5", "loss") - read("full.h5", "loss")).reshape(-1)
    with h5py.File("low.h5") as file:
        at, seen, stated = (file.attrs[f"execution_error_{k}"] for k in ("points", "differences_loss", "loss"))
    assert len({*at.tolist()}) == points
    np.testing.assert_allclose(seen, differences[at], rtol=1e-3, atol=1e-7)
    assert stated == pytest.approx(factor * np.abs(seen).max())
    assert np.quantile(np.abs(differences), 0.95) <= stated
    assert f"loss off by up to {stated:.2g} (" in said.out and f" {points} points; relative" in said.out, said
    assert f"loss off by up to {stated:.2g} (" in program("info", "low.h5").out


# What is compiled is what runs


BY_FORWARD = "def problem(): return Problem(Net(), loss, data(), forward=lambda m, b: m.encode(b[0]))"
BY_WRAPPER = """
def problem():
    net = Net()
    return Problem(GeneralModelWrapper(net, [net], lambda m, x: m.encode(x)), nn.CrossEntropyLoss(), data())
"""
NOTHING = """
@torch._dynamo.disable
def hidden(model, batch): return model.encode(batch[0])
def problem(): return Problem(Net(), loss, data(), forward=hidden)
"""


@COMPILER
@pytest.mark.parametrize(("name", "text"), [("by_forward", BY_FORWARD), ("by_wrapper", BY_WRAPPER)])
def test_what_runs_is_compiled(program: Callable[..., Finished], tmp_path: Path, name: str, text: str) -> None:
    import torch._dynamo.utils

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    problem = _write(tmp_path, name, HEAD + text)
    done = program("--problem", problem, *LINE, "--compile", "--output=fast.h5")
    assert done.code == 0 and "execution    compiled" in done.out, done
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert program("--problem", problem, *LINE, "--output=slow.h5").code == 0
    np.testing.assert_allclose(read("fast.h5", "loss"), read("slow.h5", "loss"), rtol=1e-6)


@COMPILER
def test_where_nothing_is_compiled_it_is_said(program: Callable[..., Finished], tmp_path: Path) -> None:
    done = program("--problem", _write(tmp_path, "nothing", HEAD + NOTHING), *LINE, "--compile")
    assert done.code == 0 and "torch.compile finds nothing in it that it can compile" in done.out, done
    with h5py.File("landscape.h5") as file:
        assert file.attrs["execution"] == "plain"


def test_there_is_no_graph_any_more(program: Callable[..., Finished]) -> None:
    done = program("--problem", IMAGES, *LINE, "--graph")
    assert done.code == 2 and "graph" in done.err


# A script that reads the command line

PARSES = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--x", default="none"){more}
"""
MADE = """
SEEN = list(sys.argv)
def problem():
    {inside}
    assert sys.argv == SEEN and len(sys.argv) == 1 and sys.argv[0].endswith(".py"), sys.argv
    return Problem(nn.Linear(4, 3), nn.CrossEntropyLoss(), data())
if __name__ == "__main__":
    raise RuntimeError("it is no script here")
"""


@pytest.mark.parametrize("where", ["import", "factory"])
def test_a_script_sees_its_own_name_alone(program: Callable[..., Finished], tmp_path: Path, where: str) -> None:
    parse = "args = parser.parse_args(); assert args.x == 'none' and args.lr == 0.1"
    text = PARSES.format(more="") + (parse if where == "import" else "")
    text += MADE.format(inside=parse if where == "factory" else "")
    before = list(sys.argv)
    done = program("--problem", _write(tmp_path, f"script_{where}", HEAD + text), *LINE)
    assert done.code == 0, done
    assert sys.argv == before


@pytest.mark.parametrize("where", ["import", "factory"])
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("parser.parse_args()", "its argparse says 'the following arguments are required: --data'"),
        ("sys.exit('no data here')", "raised SystemExit: no data here, which ends a program"),
        ("sys.exit()", "raised SystemExit, which ends a program"),
    ],
)
def test_one_that_leaves_is_one_line(
    program: Callable[..., Finished], tmp_path: Path, where: str, what: str, said: str
) -> None:
    text = PARSES.format(more='\nparser.add_argument("--data", required=True)') + (what if where == "import" else "")
    text += MADE.format(inside=what if where == "factory" else "")
    before = list(sys.argv)
    done = program("--problem", _write(tmp_path, f"leaves_{where}", HEAD + text), *LINE)
    assert done.code == 2 and done.err.count("\n") == 1 and said in done.err, done
    assert sys.argv == before and not (tmp_path / "landscape.h5").exists()


WORKERS = """
class Rows(torch.utils.data.Dataset):
    def __len__(self): return 20
    def __getitem__(self, i): return data()[0][i], data()[1][i]
def problem():
    loader = torch.utils.data.DataLoader(Rows(), batch_size=10, num_workers=1)
    return Problem(nn.Linear(4, 3), nn.CrossEntropyLoss(), loader)
"""


def test_workers_import_the_script_with_its_own_name_too(tmp_path: Path) -> None:
    """They are sent the command line of the process that starts them."""
    text = HEAD + PARSES.format(more="") + "parser.parse_args()\n" + WORKERS
    problem = _write(tmp_path, "worked", text)
    done = run_program("--problem", problem, *LINE, "--resident=0", folder=tmp_path)
    assert done.code == 0, done
