"""Models whose loss exists in train mode only; and forwards that put their model in train mode themselves."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import Case
from torch import nn
from torch.utils.data import DataLoader, Dataset

from hpc_landscape import Problem


class StochasticDepth(nn.Module):
    def forward(self, x):
        return x * (torch.rand(len(x), 1) > 0.5) if self.training else x


class Detector(nn.Module):
    """A dict of losses in train mode, predictions in eval mode."""

    def __init__(self, norm: str = "group"):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm == "bn" else nn.GroupNorm(2, 8)
        self.norm.train()(torch.randn(20, 8, 4, 4) * 2 + 1)
        self.drop, self.depth = nn.Dropout(0.5), StochasticDepth()
        self.cls, self.box = nn.Linear(8, 3), nn.Linear(8, 4)

    def forward(self, images, targets=None):
        x = self.depth(self.drop(F.relu(self.norm(self.body(torch.stack(images)))).mean((2, 3))))
        c, b = self.cls(x), self.box(x)
        if not self.training:
            return [{"scores": s.softmax(0), "boxes": q} for s, q in zip(c, b, strict=True)]
        if targets is None:
            raise ValueError("In training mode, targets should be passed")
        labels, boxes = torch.stack([t["label"] for t in targets]), torch.stack([t["box"] for t in targets])
        return {"cls": F.cross_entropy(c, labels), "box": F.smooth_l1_loss(b, boxes)}


class Images(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        target = {"label": torch.tensor(i % 3), "box": torch.rand(4, generator=generator)}
        return torch.randn(3, 8, 8, generator=generator), target


def loader() -> DataLoader:
    return DataLoader(Images(), batch_size=10, collate_fn=lambda items: tuple(zip(*items, strict=True)))


def add(losses, _=None) -> torch.Tensor:
    return sum(losses.values())


def count(batch) -> int:
    return len(batch[0])


def plain(norm: str = "group") -> Problem:
    return Problem(Detector(norm), add, loader(), forward=lambda m, b: m(*b), count=count)


def asked(norm: str = "group", mode: str = "train_without_dropout") -> Problem:
    return Problem(Detector(norm), add, loader(), forward=lambda m, b: m(*b), count=count, mode=mode)


def flag_only() -> Problem:
    def forward(m, b):
        m.training = True
        try:
            return m(*b)
        finally:
            m.training = False

    return Problem(Detector(), add, loader(), forward=forward, count=count)


def train_mode() -> Problem:
    """A forward that trains; dropout would draw, so there is none."""

    def forward(m, b):
        m.train()
        return m(*b)

    model = Detector("bn")
    model.drop, model.depth = nn.Identity(), nn.Identity()
    return Problem(model, add, loader(), forward=forward, count=count)


def _right(batch_statistics: bool = False, warm: bool = False):
    @torch.no_grad()
    def right(model: nn.Module) -> float:
        if warm:
            model.norm.momentum = None
            model.norm.reset_running_stats()
            model.norm.train()
            for images, _ in loader():
                model.norm(model.body(torch.stack(images)))
        model.eval()
        model.training = True  # its own flag alone: nothing drops, and statistics are used, not taken
        model.norm.training = batch_statistics
        return sum(add(model(*b)).item() * len(b[0]) for b in loader()) / 20

    return right


NAMES_IT = 'mode="train_without_dropout"'
WORKS = {"kwargs": {"norm": "bn"}}
CASES = [
    Case("plain", refused=NAMES_IT),
    Case("plain", refused=NAMES_IT, name="plain-bn", **WORKS),
    Case("asked", _right()),
    Case("asked", _right(warm=True), name="asked-bn", **WORKS),
    Case("asked", _right(), options=["--bn", "running"], warm_up=False, name="asked-bn-running", **WORKS),
    Case("asked", _right(batch_statistics=True), options=["--bn", "batch"], library=False, name="asked-batch", **WORKS),
    Case(
        "asked", kwargs={"mode": "train"}, refused="mode='train': there are eval and train_without_dropout", name="no"
    ),
    Case("flag_only", _right()),
    Case("train_mode", _right(batch_statistics=True)),
    Case("train_mode", _right(batch_statistics=True), options=["--bn", "running"], warm_up=False),
]
