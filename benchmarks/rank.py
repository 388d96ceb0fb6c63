"""One rank's points a second of ResNet-20 on 2,500 images; all ranks measure at the same time."""

from __future__ import annotations

import os
import time

import torch
from mpi4py import MPI

from hpc_landscape.evaluate.execution import ExecutionMode

from .models import ResNet, images
from .points import POINT, ours

POINTS = 3

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
evaluator = ours(ResNet(), images(2500, 28), ExecutionMode(channels_last=True))
with evaluator.attached():
    evaluator(POINT)
    MPI.COMM_WORLD.Barrier()
    start = time.perf_counter()
    for _ in range(POINTS):
        evaluator(POINT)
    print(POINTS / (time.perf_counter() - start), flush=True)
