"""The built-in problem: a small ResNet with batch normalization on 1,797 real 8x8 images of handwritten digits.

Data: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998,
https://doi.org/10.24432/C50P49, CC BY 4.0 (the test part of the set; pixels are counts from 0 to 16).
"""

from __future__ import annotations

import math
from importlib import resources

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from .problem import Problem

TRAINED_ON = 1437  # of 1,797; the rest is held out
BATCH = 128


class Block(nn.Module):
    """Two convolutions with a shortcut (He et al. 2015)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """Three residual blocks of width w, 2w, 4w on (n, 1, 8, 8) images; gives (n, 10) class scores."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2))
        self.linear = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        return self.linear(x.mean(dim=(2, 3)))


def load_digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """((images, labels) to train on, (images, labels) held out): float32 (n, 1, 8, 8) in [-1, 1], int64 (n,)."""
    with resources.files(__package__).joinpath("digits.npz").open("rb") as file:
        stored = np.load(file, allow_pickle=False)
        images = torch.from_numpy(stored["images"].astype(np.float32) / 8 - 1).unsqueeze(1)
        labels = torch.from_numpy(stored["labels"].astype(np.int64))
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(images)))
    train, held_out = order[:TRAINED_ON], order[TRAINED_ON:]
    return (images[train], labels[train]), (images[held_out], labels[held_out])


def digits(width: int = 12, epochs: int = 15, training_seed: int = 0) -> Problem:
    """The landscape of the training loss of a SmallResNet; it is trained by ``Problem.train``.

    width: channels of its first layers. epochs: how often its training goes through the images. training_seed: of its
    first weights, and of the order of the images.
    """
    if width < 1 or epochs < 1:
        raise UserError(f"--problem.width {width} --problem.epochs {epochs}: both must be at least 1")
    train, held_out = load_digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training_seed)
        model = SmallResNet(width)
    return Problem(
        model,
        nn.CrossEntropyLoss(),
        train,
        train=lambda model: fit(model, *train, epochs, training_seed),
        score=lambda model: f"{accuracy(model, *held_out):.1%} of {len(held_out[0])} held-out images right",
        axis="-1:1:25",
        name="digits",
    )


def fit(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, seed: int) -> None:
    """Train in place by SGD with Nesterov momentum under a one-cycle schedule; seeded, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * math.ceil(len(images) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    optimizer.zero_grad()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images that the model, in eval mode, tells right."""
    return float((model(images).argmax(dim=1) == labels).double().mean())
