"""Streams and shuffles by the program: what is told, what a signal does, what a file remembers."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import Job, read
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import hpc_landscape
from hpc_landscape import UserError
from hpc_landscape.data import streams
from hpc_landscape.metrics import Data, Loss

AXES = ("--x=-1:1:3", "--y=none", "--plot=false")
PROBLEM = """
import itertools, time
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from hpc_landscape import Problem

class Slow(IterableDataset):
    def __iter__(self):
        for i in range(30):
            time.sleep(0.005)
            yield torch.full((4,), float(i)), i % 2

class Endless(IterableDataset):
    def __iter__(self):
        while True:
            time.sleep(0.001)
            yield torch.ones(4), 1

class Stuck(IterableDataset):
    def __iter__(self):
        for i in itertools.count():
            if i > 300:
                time.sleep(1000)
            time.sleep(0.001)
            yield torch.full((4,), float(i)), i % 2

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3))

def of(data, loss=None):
    return Problem(net(), loss or nn.CrossEntropyLoss(), data)

def slow(): return of(DataLoader(Slow(), batch_size=1))
def endless(): return of(DataLoader(Endless(), batch_size=8))
def stuck(): return of(DataLoader(Stuck(), batch_size=8))

class Items(Dataset):
    def __len__(self): return 20
    def __getitem__(self, i):
        return torch.full((4,), float(i)), i % 3

def noisy():
    return of(DataLoader(Items(), batch_size=6), lambda o, t: ((o + torch.randn_like(o)) ** 2).mean())

def derived():
    def collate(items):
        x = torch.stack([x for x, _ in items]).requires_grad_()
        return torch.autograd.grad((x**3).sum(), x)[0], torch.tensor([y for _, y in items])
    return of(DataLoader(Items(), batch_size=6, collate_fn=collate))

def derived_later():
    def forward(model, batch):
        with torch.inference_mode(False), torch.enable_grad():
            x = batch[0].clone().requires_grad_()
            return torch.autograd.grad(model(x).pow(2).sum(), x)[0]
    data = DataLoader(Items(), batch_size=6)
    return Problem(net(), lambda output, batch: output.pow(2).mean(), data, forward=forward)

def sorted_by_class():
    return of((torch.arange(80.0).reshape(20, 4), torch.arange(20) // 7))
"""


@pytest.fixture
def problem(tmp_path: Path) -> Path:
    path = tmp_path / "streams_problem_for_tests.py"
    path.write_text(PROBLEM)
    return path


def words(problem: Path, name: str, *options: str) -> list[str]:
    return ["--problem", f"{problem}:{name}", *AXES, *options]


def test_a_stream_without_an_end_in_sight_is_told(program, problem, monkeypatch):
    monkeypatch.setattr(streams, "PROBE", 0.02)
    run = program(*words(problem, "slow"))
    assert run.code == 0, run
    assert "the stream has not ended after" in run.out and "give --batches N or --samples N" in run.out, run
    assert "no end" not in program(*words(problem, "slow", "--batches", "3", "--output", "b.h5")).out


RUN = "import sys; from hpc_landscape.data import streams; streams.PROBE = 0.3; from hpc_landscape.cli import main; "


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ranks"), [("endless", None), ("endless", 2), ("stuck", None)], ids=["alone", "2 ranks", "in a batch"]
)
def test_a_signal_ends_a_point_that_may_never_be_finished(tmp_path, problem, name, ranks):
    command = [sys.executable, "-c", RUN + "sys.exit(main())", *words(problem, name, "--block=1")]
    with Job(command, ranks, tmp_path) as job:
        job.until(lambda: (tmp_path / "landscape.h5").exists())
        time.sleep(0.5)
        os.kill(job.process.pid, signal.SIGTERM)
        finished = job.wait()
    assert "abandoned" not in finished.out, finished  # after a while, as a point that does not end
    if ranks is None:
        assert finished.code == 75, finished
        assert "0 of 3 points are in landscape.h5" in finished.out
    assert "Traceback" not in finished.err, finished
    assert read(tmp_path / "landscape.h5", "done").sum() == 0


@pytest.mark.slow
def test_a_signal_while_the_end_is_looked_for(tmp_path, problem):
    command = [sys.executable, "-c", RUN.replace("0.3", "60") + "sys.exit(main())", *words(problem, "endless")]
    with Job(command, None, tmp_path) as job:
        time.sleep(4)
        os.kill(job.process.pid, signal.SIGTERM)
        finished = job.wait()
    assert finished.code in (75, -15) and not (tmp_path / "landscape.h5").exists(), finished


@pytest.mark.parametrize("name", ["noisy", "derived", "derived_later"])
def test_what_is_drawn_or_derived_does_not_depend_on_where_data_is_kept(program, problem, tmp_path, name):
    for output, share in (("kept.h5", "0.5"), ("read.h5", "0")):
        run = program(*words(problem, name, "--resident", share, "--output", output, "--metrics", "loss"))
        assert run.code == 0, run
    assert read(tmp_path / "kept.h5", "loss").tobytes() == read(tmp_path / "read.h5", "loss").tobytes()


@pytest.mark.parametrize("option", [["--shuffle_data"], ["--batches", "1"]])
def test_a_file_remembers_in_which_order_and_how_much_was_read(program, problem, option):
    here = words(problem, "sorted_by_class", "--batch_size", "6")
    assert program(*here, *option).code == 0
    again = program(*here, *option)
    assert again.code == 0 and "is complete" in again.out, again
    other = program(*here)
    assert other.code == 2 and "data" in other.err and "differ" in other.err, other


def test_a_shuffle_is_of_the_seed(program, problem, tmp_path):
    found = []
    for seed in (0, 1, 0):
        options = ["--batch_size", "6", "--shuffle_data", "--seed", str(seed), "--overwrite", "--batches", "2"]
        assert program(*words(problem, "sorted_by_class", *options)).code == 0
        found.append(read(tmp_path / "landscape.h5", "loss")[1])
    assert found[0] == found[2] != found[1]


def test_batches_of_a_tokenizer(program, tmp_path):
    """The real thing; tests/kinds has one that stands for it."""
    pytest.importorskip("transformers")
    (tmp_path / "texts_for_tests.py").write_text(
        "import torch\nfrom torch import nn\nfrom torch.utils.data import DataLoader\n"
        "from transformers import BatchEncoding\nfrom hpc_landscape import Problem\n"
        "def collate(items):\n"
        "    return BatchEncoding({'x': torch.stack(items), 'labels': torch.zeros(len(items), dtype=torch.long)})\n"
        "def texts():\n"
        "    torch.manual_seed(0)\n"
        "    data = DataLoader([torch.ones(4) * i for i in range(10)], batch_size=4, collate_fn=collate)\n"
        "    loss = lambda o, b: nn.functional.cross_entropy(o, b.labels)\n"
        "    return Problem(nn.Linear(4, 3), loss, data, forward=lambda m, b: m(b.x))\n"
    )
    run = program("--problem", tmp_path / "texts_for_tests.py:texts", *AXES)
    assert run.code == 0, run


# By the library


def plane(model: nn.Module):
    line = hpc_landscape.LinearLossLandscape(model, 3)
    line.random_line(distance=2, seed=0)
    return line


def tensors():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(20, 4, generator=generator), torch.arange(20) % 3


class Wrapped:
    def __init__(self, **options):
        self.loader = DataLoader(TensorDataset(*tensors()), batch_size=6, **options)

    def __iter__(self):
        return iter(self.loader)

    def __len__(self):
        return len(self.loader)


def given() -> dict:
    x, y = tensors()
    pairs = list(zip(x, y.tolist(), strict=True))
    return {
        "a loader": DataLoader(TensorDataset(x, y), batch_size=6),
        "a wrapped one": Wrapped(),
        "batches": list(DataLoader(pairs, batch_size=6)),
        "a generator": (batch for batch in list(DataLoader(pairs, batch_size=6))),
        "samples": pairs,
        "a data set": TensorDataset(x, y),
    }


@pytest.mark.parametrize("kind", list(given()))
def test_the_library_takes_whatever_gives_batches_again(alone, kind):
    torch.manual_seed(0)
    model, loss = nn.Linear(4, 3), nn.CrossEntropyLoss()
    expected = plane(model).compute(Loss(loss, *tensors()))
    found = hpc_landscape.eval_loss(plane(model), given()[kind], "cpu", loss)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    if kind != "samples":  # Data is given batches, or a data set
        np.testing.assert_allclose(plane(model).compute(Loss(loss, Data(given()[kind]))), expected, rtol=1e-6)


def test_the_library_refuses_what_does_not_repeat_itself(alone):
    with pytest.raises(UserError, match="differs between two readings"):
        hpc_landscape.eval_loss(plane(nn.Linear(4, 3)), Wrapped(shuffle=True), "cpu", nn.CrossEntropyLoss())


class Pairs(IterableDataset):
    def __iter__(self):
        x, y = tensors()
        return zip(x, y.tolist(), strict=True)


def test_the_library_reads_a_stream_once_whatever_its_workers(alone):
    model, loss = nn.Linear(4, 3), nn.CrossEntropyLoss()
    loader = DataLoader(Pairs(), batch_size=6, num_workers=2, multiprocessing_context="fork")
    with pytest.warns(UserWarning, match="each of the loader's 2 workers gives all of the samples"):
        found = hpc_landscape.eval_loss(plane(model), loader, "cpu", loss)
    np.testing.assert_allclose(found, plane(model).compute(Loss(loss, *tensors())), rtol=1e-6)
