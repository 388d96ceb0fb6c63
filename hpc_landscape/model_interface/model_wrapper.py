"""The model as a metric sees it: something to call, with parameters by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


class ModelWrapper:
    """Hides how a model is called and which of its modules are perturbed."""

    def __init__(self, model: nn.Module):
        self.model = model

    def get_model(self) -> nn.Module:
        """The model itself."""
        return self.model

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that are perturbed, by name, tied ones once."""
        return self.model.named_parameters()

    def parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for _, parameter in self.named_parameters())

    def forward(self, inputs: Any) -> Any:
        """The model's output."""
        return self.model(inputs)

    def __call__(self, inputs: Any) -> Any:
        return self.forward(inputs)

    def train(self, mode: bool = True) -> ModelWrapper:
        self.model.train(mode)
        return self

    def eval(self) -> ModelWrapper:
        return self.train(False)

    def zero_grad(self) -> None:
        self.model.zero_grad()

    def requires_grad_(self, requires_grad: bool = True) -> ModelWrapper:
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self
