"""Problems that get stuck: in the factory, in a data-loading worker."""

from __future__ import annotations

import os
import time

import torch
from tiny_problem_for_tests import Rows, TinyNet, Watch, tiny
from torch import nn
from torch.utils.data import DataLoader

from hpc_landscape import Problem


class Waiting(Rows):
    """Whose rows a worker gives no more once a file exists."""

    def __init__(self, when: str, log: str):
        super().__init__(torch.randn(48, 6, generator=torch.Generator().manual_seed(0)), torch.arange(48) % 3)
        self.when, self.log = when, log

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        if os.path.exists(self.when):
            Watch(self.log, "", 0, "", 0, "", 0).log("stuck")
            time.sleep(3600)
        return super().__getitem__(i)


def worker(when: str, log: str) -> Problem:
    """A point waits for a worker for ever, once a file exists."""
    loader = DataLoader(Waiting(when, log), batch_size=16, num_workers=1)
    return Problem(TinyNet(6, 5, 3, None), nn.CrossEntropyLoss(), loader, neutral=("when", "log"))


def factory(log: str) -> Problem:
    """Which does not let itself be ended."""
    Watch(log, "", 0, "", 0, "", 0).log("stuck")
    while True:
        try:
            time.sleep(3600)
        except BaseException:
            continue
    return tiny()
