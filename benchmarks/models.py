"""The networks and data that are measured; weights and images are random: only their time matters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpc_landscape import Problem
from hpc_landscape.problems.digits import Block


class ResNet(nn.Module):
    """He et al. 2015, section 4.2: 6n + 2 layers of width w, 2w, 4w; n is 3 in ResNet-20, 9 in ResNet-56."""

    def __init__(self, n: int = 3, width: int = 16, channels: int = 1):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        blocks, inputs = [], width
        for stage in range(3):
            for block in range(n):
                blocks.append(Block(inputs, width * 2**stage, 2 if stage and not block else 1))
                inputs = width * 2**stage
        self.blocks, self.linear = nn.Sequential(*blocks), nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.blocks(F.relu(self.bn(self.conv(x)))).mean(dim=(2, 3)))


def lenet() -> nn.Module:
    """For 8x8 images."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def mlp() -> nn.Module:
    """For 8x8 images."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))


def images(count: int, size: int, channels: int = 1, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, channels, size, size, generator=generator)
    return x.to(device), torch.randint(10, (count,), generator=generator).to(device)


def problem(samples: int = 2500) -> Problem:
    """ResNet-20 of width 16, untrained: for the program's own benchmarks."""
    torch.manual_seed(0)
    return Problem(ResNet(), nn.CrossEntropyLoss(), images(samples, 28))


def mlp_problem() -> Problem:
    torch.manual_seed(0)
    return Problem(mlp(), nn.CrossEntropyLoss(), images(1437, 8))


def lenet_problem() -> Problem:
    torch.manual_seed(0)
    return Problem(lenet(), nn.CrossEntropyLoss(), images(1437, 8))
