"""One rank's points a second of ResNet-20 on 2,500 images; all ranks measure at the same time.

With the word ``team`` they are at the same points, each with a part of the batches.
"""

from __future__ import annotations

import os
import sys
import time

import torch
from mpi4py import MPI

from hpc_landscape.evaluate.execution import ExecutionMode
from hpc_landscape.ranks.comm import MPIComm
from hpc_landscape.ranks.team import Team

from .models import ResNet, images
from .points import POINT, ours

POINTS = 3
BATCH = 125  # twenty batches: a team's ranks have as many each

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
torch.manual_seed(0)
if together := "team" in sys.argv:
    evaluator = ours(ResNet(), images(2500, 28), ExecutionMode(channels_last=True), size=BATCH)
    evaluator.team = Team(MPIComm(MPI.COMM_WORLD))
else:
    evaluator = ours(ResNet(), images(2500, 28), ExecutionMode(channels_last=True))
with evaluator.attached():
    value = evaluator(POINT)
    MPI.COMM_WORLD.Barrier()
    start = time.perf_counter()
    for _ in range(POINTS):
        evaluator(POINT)
    rate = POINTS / (time.perf_counter() - start)
if not together or MPI.COMM_WORLD.rank == 0:
    print(rate, flush=True)
if together:
    print("value", value, file=sys.stderr)
