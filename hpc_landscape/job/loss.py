"""The loss on a device: a copy of it, but for what it holds of the model."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from torch import Tensor, nn


def on_device(loss: Any, model: nn.Module, device: torch.device, dtype: torch.dtype | None) -> Any:
    """The loss with its own parameters and buffers (class weights, say) there, and in that dtype if any.

    What is the model's, which a penalty or a second pass may use, is the model's still: it moves with the points. One
    that has nothing to be moved stays as it is, and need not be one that can be copied.
    """
    if not isinstance(loss, nn.Module):
        return loss
    of_model = {id(thing): thing for thing in (*model.modules(), *model.parameters(), *model.buffers())}

    def there(tensor: Tensor) -> Tensor:
        if id(tensor) in of_model:
            return tensor
        return tensor.to(device, dtype if tensor.is_floating_point() or tensor.is_complex() else None)

    if all(there(tensor) is tensor for tensor in (*loss.parameters(), *loss.buffers())):
        return loss
    with contextlib.suppress(Exception):  # one that holds a lock, or an open file, is moved itself
        loss = copy.deepcopy(loss, dict(of_model))
    for module in loss.modules():
        if id(module) not in of_model:
            module._apply(there, recurse=False)
    return loss
