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


@pytest.mark.parametrize("options", [("--precision=bf16",), ("--tune",), ("--compile",)])
def test_channels_last_is_not_taken_where_it_is_inexact(
    program: Callable[..., Finished], options: tuple[str, ...]
) -> None:
    """On a CPU with warm-up; asked for by name it is."""
    if options == ("--compile",) and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    done = program("--problem", IMAGES, *LINE, "--device=cpu", *options)
    assert done.code == 0 and "channels last" not in done.out, done
    with h5py.File("landscape.h5") as file:
        assert file.attrs["channels_last"] == 0 and "channels last" not in file.attrs["execution"]


@pytest.mark.parametrize("options", [("--channels_last",), ("--bn=running", "--precision=bf16")])
def test_channels_last_is_taken_where_it_is_asked_for_or_exact(
    program: Callable[..., Finished], options: tuple[str, ...]
) -> None:
    done = program("--problem", IMAGES, *LINE, "--device=cpu", *options)
    assert done.code == 0 and "execution    channels last" in done.out, done


@pytest.mark.parametrize(("grid", "points"), [(("--x=-1:1:5", "--y=-1:1:5"), 8), (("--x=-1:1:3", "--y=none"), 3)])
def test_the_error_is_an_estimate_that_says_where(
    program: Callable[..., Finished], grid: tuple[str, ...], points: int
) -> None:
    command = ("--problem", IMAGES, *grid, "--plot=false", "--metrics=loss")
    said = program(*command, "--precision=bf16", "--output=low.h5")
    assert said.code == 0 and program(*command, "--output=full.h5").code == 0
    differences = (read("low.h5", "loss") - read("full.h5", "loss")).reshape(-1)
    with h5py.File("low.h5") as file:
        at, seen, estimate = (file.attrs[f"execution_error_{k}"] for k in ("points", "differences_loss", "loss"))
    assert len({*at.tolist()}) == points
    np.testing.assert_allclose(seen, differences[at], rtol=1e-3, atol=1e-7)
    assert estimate == pytest.approx(4 * np.sqrt(np.mean(seen**2)))
    assert np.abs(differences).max() <= estimate
    words = f"loss off by about {estimate:.2g} (estimated at {points} points)"
    assert f"execution    weights in bfloat16: {words}" in said.out, said
    assert words in program("info", "low.h5").out
    assert program(*command, "--precision=bf16", "--output=again.h5").code == 0
    with h5py.File("again.h5") as file:
        assert file.attrs["execution_error_points"].tolist() == at.tolist(), "the seed's points, each time"


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
