"""A problem that does not fit in memory as tensors: a ResNet-50 on JPEG files, read and decoded by a loader's workers.

    python benchmarks/streamed.py images 2000       # makes 2,000 JPEG files of 224x224 in images/
    mpirun -n 2 python -m hpc_landscape --problem benchmarks/streamed.py:resnet50 \
        --problem.folder images --x=0:1:2 --y none

Needs Pillow. The weights are random: what is measured is the time, not the landscape.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import hpc_landscape


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with a shortcut (He et al. 2015); the output has 4 times ``width`` channels."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != 4 * width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def make_resnet50(classes: int = 1000) -> nn.Module:
    """25.6 million parameters on (n, 3, 224, 224) images."""
    stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
    layers: list[nn.Module] = [stem, nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, (width, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)]):
        for block in range(blocks):
            layers.append(Bottleneck(channels, width, 2 if stage and not block else 1))
            channels = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class JpegFolder(Dataset):
    """The JPEG files of a folder, by name; labels are made from their numbers."""

    def __init__(self, folder: str):
        self.files = sorted(Path(folder).glob("*.jpg"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        with Image.open(self.files[index]) as image:
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return pixels.float() / 127.5 - 1, index % 1000


def resnet50(folder: str, workers: int = 1, batch_size: int = 50) -> hpc_landscape.Problem:
    """The landscape around a freshly built ResNet-50, on the images of a folder."""
    if not any(Path(folder).glob("*.jpg")):
        raise hpc_landscape.UserError(f"--problem.folder {folder}: no .jpg files there")
    torch.manual_seed(0)
    loader = DataLoader(JpegFolder(folder), batch_size=batch_size, num_workers=workers)
    return hpc_landscape.Problem(make_resnet50(), nn.CrossEntropyLoss(), loader)


def make_images(folder: str, count: int) -> None:
    """Smooth random images: noise of 16x16 enlarged, so that they compress as photographs do."""
    from PIL import Image

    Path(folder).mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for i in range(count):
        noise = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        noise.resize((224, 224), Image.BICUBIC).save(Path(folder) / f"{i:05d}.jpg", quality=90)


if __name__ == "__main__":
    make_images(sys.argv[1], int(sys.argv[2]))
