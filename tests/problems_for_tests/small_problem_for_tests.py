"""Small problems in float64 whose landscapes a test computes by hand: one set, two sets, part of a model, an agent."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

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
