"""Parts that are kept still, a teacher or a frozen backbone, with batch normalization of their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import Case
from torch import nn
from torch.optim.swa_utils import update_bn

from hpc_landscape import GeneralModelWrapper, Problem


def mlp(seed: int, width: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(60, 4, generator=generator), torch.randint(0, 3, (60,), generator=generator)


def distance(outputs, _=None) -> torch.Tensor:
    student, teacher = outputs
    return F.kl_div(F.log_softmax(student / 4, 1), F.softmax(teacher / 4, 1), reduction="batchmean") * 16


class Both(nn.Module):
    """A student, and its teacher, trained on other data."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher = mlp(0, 8), mlp(1, 32)
        self.teacher.train()(data()[0] * 3)
        self.teacher.eval()

    def forward(self, x):
        return self.student(x), self.teacher(x)


class Frozen(nn.Module):
    """A backbone, and a head of which a part that is frozen as well lies behind what moves."""

    def __init__(self):
        super().__init__()
        self.backbone, self.neck, self.after = mlp(1, 6), nn.Linear(3, 5), nn.Sequential(nn.BatchNorm1d(5), nn.ReLU())
        self.head = nn.Linear(5, 3)
        self.train()(data()[0] * 2)
        self.eval()

    def forward(self, x):
        return self.head(self.after(self.neck(self.backbone(x))))


class Plain(nn.Module):
    """Layers without parameters of their own, in both parts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.a = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, affine=False), nn.Tanh())
        self.b = nn.Sequential(nn.BatchNorm1d(5, affine=False, momentum=None), nn.Linear(5, 3))
        self.train()(data()[0] * 2 + 1)
        self.eval()

    def forward(self, x):
        return self.b(self.a(x))


def inside() -> Problem:
    return Problem(Both(), distance, data())


def wrapped() -> Problem:
    both = Both()
    return Problem(GeneralModelWrapper(both, [both.student], lambda m, x: m(x)), distance, data())


def frozen() -> Problem:
    return Problem(Frozen(), nn.CrossEntropyLoss(), data())


def plain() -> Problem:
    return Problem(Plain(), nn.CrossEntropyLoss(), data())


def scaling() -> Problem:
    """Nothing is left out, and a layer is the data's alone."""
    model = nn.Sequential(nn.BatchNorm1d(4), *mlp(0, 8))
    for _ in range(20):
        model.train()(data()[0] * 3 + 1)
    return Problem(model.eval(), nn.CrossEntropyLoss(), data())


def scaled(model: nn.Module) -> float:
    update_bn([data()[0]], model)
    return F.cross_entropy(model.eval()(data()[0]), data()[1])


def _except(part: str):
    """Re-estimated by update_bn, all but a part, which has what it had."""

    def right(model: nn.Module) -> float:
        (x, y), kept = data(), {k: v.clone() for k, v in getattr(model, part).state_dict().items()}
        with torch.no_grad():
            if isinstance(model, Both):
                update_bn([x], model.student)
                return distance(model.eval()(x))
            if part == "backbone":
                update_bn([getattr(model, part).eval()(x)], nn.Sequential(model.neck, model.after))
            else:
                update_bn([getattr(model, part).eval()(x)], model.b)
            assert all(torch.equal(v, kept[k]) for k, v in getattr(model, part).state_dict().items())
            return F.cross_entropy(model.eval()(x), y)

    return right


def all_of_it(model: nn.Module) -> float:
    update_bn([data()[0]], model)
    return distance(model.eval()(data()[0]))


def each_batch(model: nn.Module) -> float:
    model.student.train()
    return distance(model(data()[0]))


NOTICE = ["the input of 0 is the same at every point, .* give --exclude"]
SAID = [r"in 1 of 2 layers \(not: (teacher|backbone|a)\.1\)"]
CASES = [
    Case("inside", all_of_it),
    Case("inside", _except("teacher"), options=["--exclude", "teacher"], said=SAID, library=False),
    Case("inside", _except("teacher"), options=["--include", "student"], said=SAID, library=False),
    Case("inside", each_batch, options=["--exclude", "teacher", "--bn", "batch"], library=False),
    Case("inside", _except("teacher"), options=["--exclude", "teacher", "--precision", "fp64"], library=False),
    Case("scaling", scaled, said=NOTICE, library_said=NOTICE),
    Case("wrapped", _except("teacher"), said=SAID),
    Case("frozen", _except("backbone"), options=["--include", "neck,head"], said=SAID, library=False),
    Case("frozen", _except("backbone"), options=["--exclude", "backbone,after", "--block", "3"], library=False),
    Case("plain", _except("a"), options=["--exclude", "a"], said=SAID, library=False),
]
