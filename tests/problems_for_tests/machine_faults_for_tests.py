"""A problem that fails while points are computed: a worker is killed, a read or a metric fails, so many times.

What is to happen a test writes into the file ``fault``: where, what, how often, after how many passes of the model.
Over all processes it is counted by files: happened.0, happened.1, ...
"""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from hpc_landscape import Problem

NEUTRAL = ("folder", "workers", "method")
PASSES: list[int] = []  # of the model in this process


def wanted(folder: str, here: str) -> tuple[str, int, int]:
    """(what is to happen here, how often, after how many passes); nothing where nothing is."""
    try:
        where, what, times, after = Path(folder, "fault").read_text().split()
    except FileNotFoundError:
        return "", 0, 0
    return (what, int(times), int(after)) if where == here else ("", 0, int(after))


def happens(folder: str, times: int) -> bool:
    """Whether the fault is to happen once more; it is counted then."""
    for number in range(times):
        try:
            os.close(os.open(Path(folder, f"happened.{number}"), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        return True
    return False


def fail(fault: str) -> None:
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "EIO":
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/data/rows")
    if fault == "wrapped":  # what a library says of it
        try:
            fail("EIO")
        except OSError as error:
            raise ValueError("sample 17 cannot be read") from error
    if fault == "slow":
        return time.sleep(0.1)
    if fault == "cuda":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    raise ValueError("the user's own fault")


class Rows(Dataset):
    """Rows of which the last one cannot be read, once the model has made so many passes."""

    def __init__(self, inputs: Tensor, targets: Tensor, folder: str):
        self.inputs, self.targets, self.folder = inputs, targets, folder

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        if i == len(self) - 1 and Path(self.folder, "begun").exists():
            what, times, _ = wanted(self.folder, "data")
            if what and (what != "kill" or get_worker_info()) and happens(self.folder, times):
                fail(what)
        return self.inputs[i], self.targets[i]


class Stream(IterableDataset):
    """The same rows, one after the other, shared out between workers."""

    def __init__(self, rows: Rows):
        self.rows = rows

    def __iter__(self):
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for i in range(first, len(self.rows), step):
            yield self.rows[i]


class Net(nn.Module):
    """A layer and batch normalization; says by a file that so many passes are over, and fails then if it is to."""

    def __init__(self, folder: str):
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)
        self.folder = folder

    def forward(self, x: Tensor) -> Tensor:
        what, times, after = wanted(self.folder, "model")
        PASSES.append(1)
        if len(PASSES) > after > 0:
            Path(self.folder, "begun").touch()
            if what and happens(self.folder, times):
                fail(what)
        return nn.functional.dropout(self.norm(self.layer(x)), 0.25)  # draws, at points too


def problem(folder: str = "", workers: int = 1, method: str = "forkserver", stream: bool = False) -> Problem:
    """folder: of the file that says what is to happen, and of those that count. method: how workers start."""
    PASSES.clear()
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(40, 4, generator=generator), torch.randint(0, 3, (40,), generator=generator)
    rows = Rows(inputs, targets, folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Net(folder)
    options = {"multiprocessing_context": method} if workers else {}
    data = DataLoader(Stream(rows) if stream else rows, batch_size=8, num_workers=workers, **options)
    return Problem(net, nn.CrossEntropyLoss(), data, neutral=NEUTRAL)
