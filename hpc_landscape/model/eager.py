"""Models that are modules by name alone: what TorchScript and torch.export make of them."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import UserError

EXPORTED = ("torch.export", "torch._export")


def check_eager(root: nn.Module) -> None:
    """UserError where a part cannot be placed, or put in another mode, as modules of Python are."""
    for name, module in root.named_modules():
        what = _made_by(module)
        if what:
            which = f"its part {name}" if name else "it"
            raise UserError(
                f"the model is not an eager one: {which} is {what}, whose buffers and modes cannot be changed from "
                "point to point; give the eager model, the torch.nn.Module that this was made from, with its state_dict"
            )


def _made_by(module: nn.Module) -> str:
    """What has made it; nothing for an eager one. torch.fx's own traces and what torch.compile wraps are eager."""
    if isinstance(module, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        traced = "Traced" in type(module).__name__
        return f"a {'traced' if traced else 'scripted'} (TorchScript) module"
    if type(module).__module__.startswith(EXPORTED):
        return "an exported (torch.export) module"
    if isinstance(module, torch.fx.GraphModule) and {"eval", "train"} & vars(module).keys():
        return "an exported (torch.export) module"
    return ""
