"""Small problems in float64 whose landscapes a test computes by hand: one set, two sets, part of a model, an agent."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from hpc_landscape import GeneralModelWrapper, Problem
from hpc_landscape.metrics import Metric


def network(seed: int = 0) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model


def samples(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=generator, dtype=torch.float64), torch.randint(3, (n,), generator=generator)


def small(seed: int = 0) -> Problem:
    return Problem(network(seed), nn.CrossEntropyLoss(), samples(20, 1))


def two_sets(seed: int = 0) -> Problem:
    return Problem(network(seed), nn.CrossEntropyLoss(), {"train": samples(20, 1), "test": samples(9, 2)})


def last_layer(seed: int = 0) -> Problem:
    """Only the last layer moves, and the model is called in a way of its own: twice the scores."""
    model = network(seed)
    return Problem(GeneralModelWrapper(model, [model[2]], lambda m, x: 2 * m(x)), nn.CrossEntropyLoss(), samples(20, 1))


class Agent:
    """No module: it acts by one of its two."""

    def __init__(self):
        self.policy, self.critic = network(3), network(4)

    def act(self, x: torch.Tensor) -> torch.Tensor:
        return self.policy(x)


class Norms(Metric):
    """The norm of each parameter tensor."""

    def __init__(self, order: float = 2):
        super().__init__()
        self.order = order

    def __call__(self, model_wrapper):
        return np.array([float(torch.linalg.vector_norm(p.detach(), self.order)) for p in model_wrapper.parameters()])


class Margin(Metric):
    """The mean margin of the right class, from tensors as a metric of loss-landscapes takes them."""

    def __init__(self, loss_fn, inputs, target):
        super().__init__()
        self.inputs, self.target = inputs, target

    def __call__(self, model_wrapper):
        scores = model_wrapper.forward(self.inputs).detach()
        right = scores.gather(1, self.target[:, None])[:, 0]
        return (right - scores.mean(dim=1)).mean().item()


class Writes(Metric):
    """The sum of the last parameter, into which it then writes."""

    def __call__(self, model_wrapper):
        *_, last = model_wrapper.root.parameters()
        found = last.sum().item()
        last.data += 1
        return found


class Fails(Metric):
    def __call__(self, model_wrapper):
        raise RuntimeError("this metric fails")


class Shapeless(Metric):
    """Another shape at every point."""

    def __init__(self):
        self.calls = 0

    def __call__(self, model_wrapper):
        self.calls += 1
        return np.zeros(self.calls)


def agent() -> Problem:
    one = Agent()
    return Problem(GeneralModelWrapper(one, [one.policy], lambda a, x: a.act(x)), metrics=[Norms(), Norms(order=1)][:1])


def player(env: str = "CartPole-v1") -> Problem:
    """A linear policy in a Gymnasium environment."""
    policy = nn.Linear(4, 2)
    with torch.no_grad():
        policy.weight.copy_(torch.tensor([[0.0, 0.0, -1.0, -0.5], [0.0, 0.0, 1.0, 0.5]]))
        policy.bias.zero_()
    return Problem(policy, env=env)


class Images(nn.Module):
    """A small convolutional network with batch normalization; flat: by view, which channels-last images do not take."""

    def __init__(self, by_view: bool, twice: bool):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.more = nn.Conv2d(6, 6, 3, padding=1)
        self.linear = nn.Linear(6 * 25, 3)
        self.by_view, self.twice = by_view, twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.conv(x)))
        x = self.bn(self.more(x)) if self.twice else self.more(x)
        return self.linear(x.view(len(x), -1) if self.by_view else x.flatten(1))


def images(by_view: bool = False, twice: bool = False, loss: str = "plain") -> Problem:
    torch.manual_seed(0)
    model = Images(by_view, twice)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(22, 2, 5, 5, generator=generator) + 0.3
    labels = torch.randint(3, (22,), generator=generator)
    entropy = nn.CrossEntropyLoss()
    losses = {"plain": entropy, "item": lambda output, target: torch.tensor(entropy(output, target).item())}
    return Problem(model, losses[loss], (inputs, labels))


class Logged(Dataset):
    """Images that are read one by one; each reading adds a byte to the log."""

    def __init__(self, log: str | None):
        self.inputs, self.labels = images().data
        self.log = log

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        if self.log:
            with open(self.log, "ab") as file:
                file.write(b".")
        return self.inputs[i], int(self.labels[i])


def streamed(log: str | None = None, workers: int = 0) -> Problem:
    problem = images()
    problem.data = DataLoader(Logged(log), batch_size=8, num_workers=workers)
    return problem


class Rows(Dataset):
    """Two megabytes, more than the least that ranks share."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(64, 8192, generator=generator)
        self.labels = torch.randint(0, 3, (64,), generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.inputs[i], int(self.labels[i])


def cached() -> Problem:
    torch.manual_seed(0)
    return Problem(nn.Linear(8192, 3), nn.CrossEntropyLoss(), DataLoader(Rows(), batch_size=8))
