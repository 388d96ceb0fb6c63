"""Losses and forwards that differentiate: residuals of equations, attacks, forces, inner loops, sharpness."""

from __future__ import annotations

import copy

import torch
from case import Case
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from hpc_landscape import Problem

SIZE = 8  # of a batch
ON = "put `with torch.enable_grad"


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(20, 2, generator=generator), torch.randint(0, 2, (20,), generator=generator)


def mean(value, model: nn.Module) -> float:
    """Of what value(model, x, y) gives on each batch, weighted by samples."""
    x, y = data()
    sums = [value(model, x[i : i + SIZE], y[i : i + SIZE]).item() * len(y[i : i + SIZE]) for i in range(0, 20, SIZE)]
    return sum(sums) / 20


def loader() -> DataLoader:
    return DataLoader(TensorDataset(*data()), batch_size=SIZE)


# Derivatives by the inputs


def residual(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = x.detach().clone().requires_grad_(True)
    first = torch.autograd.grad(model(x).sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first[:, 0].sum(), x, create_graph=True)[0]
    return first[:, 1] - 0.1 * second[:, 0]


def squares(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (residual(model, x) ** 2).mean()


def in_forward(grad: bool = True) -> Problem:
    def forward(model, batch):
        with torch.set_grad_enabled(True) if grad else torch.no_grad():
            return residual(model, batch[0])

    return Problem(net(), lambda r, batch: (r**2).mean(), loader(), forward=forward)


def as_in_training() -> Problem:
    return Problem(
        net(), lambda r, batch: (r**2).mean(), loader(), forward=lambda model, batch: residual(model, batch[0])
    )


def in_loss() -> Problem:
    @torch.enable_grad()
    def loss(output, batch):
        return squares(output, *batch)

    return Problem(net(), loss, loader(), forward=lambda model, batch: model)


class Energy(nn.Module):
    """Minus the gradient of an energy: the model itself differentiates."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    @torch.enable_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_()
        return -torch.autograd.grad(self.body(x).square().sum(), x, create_graph=True)[0]


def energy() -> Problem:
    return Problem(Energy(), nn.CrossEntropyLoss(), loader())


def forces(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(x), y)


class Rows(Dataset):
    """Read by a loader, in every pass where nothing is kept."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = data()
        return x[i], y[i]


def streamed() -> Problem:
    problem = in_forward()
    problem.data = DataLoader(Rows(), batch_size=SIZE)
    return problem


# Attacks: gradients come to rest in .grad, of the inputs and of the parameters


def fast_sign(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """As in tutorials: the batch itself asks for gradients, and nothing sets .grad back."""
    with torch.enable_grad():
        x.requires_grad = True
        F.cross_entropy(model(x), y).backward()
    return x.detach() + 0.1 * x.grad / x.grad.abs().max()


def fast_sign_loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(fast_sign(model, x.clone(), y)), y)


def attacked() -> Problem:
    return Problem(net(), lambda o, b: F.cross_entropy(o, b[1]), loader(), forward=lambda m, b: m(fast_sign(m, *b)))


def attacked_stream() -> Problem:
    problem = attacked()
    problem.data = DataLoader(Rows(), batch_size=SIZE)
    return problem


def normalized() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))


def attacked_bn() -> Problem:
    problem = attacked()
    problem.model = normalized()
    return problem


def attacked_after_warm_up(model: nn.Module) -> float:
    """The cumulative average over all batches that the layer has seen, weighted alike: equal batches but the last."""
    layer, seen = model[1], []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    layer.train()
    mean_of_passes(model)
    hook.remove()
    weights = torch.tensor([len(x) for x in seen]) / sum(len(x) for x in seen)
    layer.running_mean.copy_(sum(w * x.mean(0) for w, x in zip(weights, seen, strict=True)))
    layer.running_var.copy_(sum(w * x.var(0) for w, x in zip(weights, seen, strict=True)))
    return mean(fast_sign_loss, model.eval())


def mean_of_passes(model: nn.Module) -> None:
    mean(lambda m, x, y: m(fast_sign(m, x.clone(), y)).sum(), model)


def sharpness(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The loss after a step up the gradient, in the model's own weights, which are put back (SAM)."""
    with torch.enable_grad():
        F.cross_entropy(model(x), y).backward()
    saved = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(p.grad, alpha=0.5)
            p.grad = None
        loss = F.cross_entropy(model(x), y)
        for p, value in zip(model.parameters(), saved, strict=True):
            p.copy_(value)
    return loss


def sharp() -> Problem:
    return Problem(net(), lambda model, batch: sharpness(model, *batch), loader(), forward=lambda model, batch: model)


def careless(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The same, but the weights are left where they are, .grad with them."""
    with torch.enable_grad():
        loss = F.cross_entropy(model(x), y)
        loss.backward()
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(p.grad, alpha=0.1)
    return loss


def trained_in_place() -> Problem:
    """One batch: what is left behind is seen by the next point alone. The last layer does not move."""
    forward = lambda model, batch: careless(model, *batch)  # noqa: E731
    return Problem(net(), lambda loss, batch: loss, DataLoader(TensorDataset(*data()), batch_size=20), forward=forward)


# Inner loops


def adapted(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The loss on one half after a step on the other (MAML)."""
    half = len(x) // 2
    with torch.enable_grad():
        weights = dict(model.named_parameters())
        inner = F.cross_entropy(functional_call(model, weights, (x[:half],)), y[:half])
        steps = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
        fast = {name: w - 0.5 * g for (name, w), g in zip(weights.items(), steps, strict=True)}
        return F.cross_entropy(functional_call(model, fast, (x[half:],)), y[half:])


def inner_loop() -> Problem:
    return Problem(net(), lambda loss, batch: loss, loader(), forward=lambda model, batch: adapted(model, *batch))


# What is flipped at one point


class Dropping(nn.Sequential):
    """Goes into train mode, and freezes itself, where its weights are on one side."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = super().forward(x)
        if float(self[0].weight.detach().sum()) < float(self[0].bias.detach().sum()) + 10:
            self.train()
            self.requires_grad_(False)
        return output


def flips() -> Problem:
    torch.manual_seed(0)
    model = Dropping(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    return Problem(model, nn.CrossEntropyLoss(), DataLoader(TensorDataset(*data()), batch_size=20))


def in_eval_mode(model: nn.Module) -> float:
    x, y = data()
    return F.cross_entropy(copy.deepcopy(model).eval()(x), y)


BLOCK = dict(options=["--block", "2"], said=["plain, since this model cannot be evaluated as asked for"])
STREAM = ["--resident", "0"]
CASES = [
    Case("in_forward", lambda model: mean(squares, model)),
    Case("in_forward", lambda model: mean(squares, model), name="block", library=False, **BLOCK),
    Case("as_in_training", refused=ON),
    Case("in_forward", refused=ON, kwargs={"grad": False}),
    Case("in_loss", lambda model: mean(squares, model)),
    Case("energy", lambda model: mean(forces, model), options=["--metrics", "loss,accuracy,gradient_norm"]),
    Case("streamed", lambda model: mean(squares, model), options=STREAM),
    Case("attacked", lambda model: mean(fast_sign_loss, model)),
    Case("attacked_stream", lambda model: mean(fast_sign_loss, model), options=STREAM),
    Case("attacked_bn", attacked_after_warm_up),
    Case("sharp", lambda model: mean(sharpness, model)),
    Case("trained_in_place", lambda model: careless(model, *data()).item(), options=["--exclude", "2"], library=False),
    Case("trained_in_place", lambda model: careless(model, *data()).item()),
    Case("inner_loop", lambda model: mean(adapted, model)),
    Case("flips", in_eval_mode),
]
