"""The program on a machine where the first ranks see a GPU, and the last one sees none: a GPU as far as asked for."""

from __future__ import annotations

import os
import sys

import torch

from hpc_landscape.cli import main
from hpc_landscape.ranks.comm import launched

if launched()[1] + 1 < launched()[0]:
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 1
    torch.cuda.set_device = lambda device: None
else:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
