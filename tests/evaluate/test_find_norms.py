"""Which statistics are re-estimated is found in two passes over one batch, or three: where kernels may have rounded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hpc_landscape import GeneralModelWrapper
from hpc_landscape.data.data import Data
from hpc_landscape.evaluate.find_norms import find_norms


class Beside(nn.Module):
    """A teacher's batch normalization beside a student's; leak: of the student in what the teacher sees.

    noise: of kernels that add up in another order each time, relative.
    """

    def __init__(self, leak: float = 0.0, noise: float = 0.0):
        super().__init__()
        self.student = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.teacher = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.leak, self.noise, self.calls = leak, noise, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.student(x)
        rounding = self.noise * (1, 0, -1)[self.calls]
        return y + self.teacher((x + self.leak * y) * (1 + rounding))


@pytest.mark.parametrize(
    "leak, noise, estimated, calls",
    [
        (0.0, 0.0, ["student.1"], 2),
        (0.0, 1e-7, ["student.1"], 3),
        (1e-4, 0.0, ["student.1", "teacher.1"], 3),
        (3.0, 0.0, ["student.1", "teacher.1"], 2),
        (3.0, 1e-7, ["student.1", "teacher.1"], 2),
    ],
    ids=["still", "still but for rounding", "hardly moved", "moved", "moved, and rounding"],
)
def test_a_third_pass_only_where_it_may_be_rounding(leak, noise, estimated, calls):
    torch.manual_seed(0)
    model = Beside(leak, noise)
    passes = []

    def forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        model.calls = len(passes)
        passes.append(len(x))
        return model(x)

    wrapper = GeneralModelWrapper(model, [model.student], forward)
    found = find_norms(wrapper, Data([(torch.randn(32, 4), torch.zeros(32))]))
    assert [*found.estimated] == estimated and [*found.kept] == [n for n in ["teacher.1"] if n not in estimated]
    assert passes == [32] * calls
