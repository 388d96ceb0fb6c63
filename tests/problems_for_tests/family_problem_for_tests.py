"""A problem with processes of every kind: each leaves its number in a folder, and none ends by itself for an hour."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from hpc_landscape import Problem

METHODS = ("fork", "forkserver", "spawn")


class Rows(Dataset):
    """Rows of a worker that, beyond the first, hangs where the file ``hang`` is."""

    def __init__(self, folder: str, name: str):
        self.folder, self.name = folder, name

    def __len__(self) -> int:
        return 32

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        told(self.folder, self.name)
        while os.path.exists(os.path.join(self.folder, "hang")):
            time.sleep(0.05)
        time.sleep(0.005)
        return torch.full((6,), float(i)), i % 3


class Own(DataLoader):
    """A loader that is read as it is."""

    def __iter__(self):
        return super().__iter__()


def told(folder: str, name: str) -> None:
    """Leave this process's number."""
    Path(folder, f"{name}.{os.getpid()}").touch()


def sleeper(folder: str, name: str, another: bool) -> None:
    """Sleep for an hour, in this process and in one that it starts."""
    told(folder, name)
    if another:
        multiprocessing.get_context("fork").Process(target=sleeper, args=(folder, f"child of {name}", False)).start()
    time.sleep(3600)


def family(folder: str, methods: str = ",".join(METHODS), others: bool = True) -> Problem:
    """Loaders with a worker by each method, one of them with batches of its own making; with others processes too.

    Some are started by a thread that ends at once: they are to live on.
    """
    told(folder, "a rank")
    chosen = methods.split(",")
    data = {
        method: (Own if method == "fork" else DataLoader)(
            Rows(folder, method), batch_size=8, num_workers=1, multiprocessing_context=method, persistent_workers=True
        )
        for method in chosen
    }

    def start() -> None:
        for method in ("fork", "spawn"):
            context = multiprocessing.get_context(method)
            context.Process(target=sleeper, args=(folder, f"by a thread {method}", True), daemon=False).start()

    if others:
        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
    return Problem(nn.Linear(6, 3), nn.CrossEntropyLoss(), data, neutral=("folder", "methods", "others"))
