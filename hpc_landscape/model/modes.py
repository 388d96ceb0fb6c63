"""The mode that the modules are in at a point."""

from __future__ import annotations

import re

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from ..errors import UserError
from .norms import keeps_statistics

EVAL, TRAIN_WITHOUT_DROPOUT = "eval", "train_without_dropout"
MODES = (EVAL, TRAIN_WITHOUT_DROPOUT)
RANDOM = (_DropoutNd, nn.RNNBase, nn.MultiheadAttention, nn.RReLU)  # in train mode they drop, or draw, by themselves
NAMED_SO = re.compile(r"drop_?(out|path|block|connect|token|layer)|stochastic_?depth", re.IGNORECASE)


def check_mode(mode: str) -> str:
    """The mode itself; UserError where there is no such."""
    if mode not in MODES:
        raise UserError(f"mode={mode!r}: there are {' and '.join(MODES)}")
    return mode


def only_in_train_mode(error: Exception) -> str:
    """What to say where the model fails in eval mode and works in the other."""
    said = " ".join(f"{type(error).__name__}: {error}".split())[:160]
    return (
        f"the model's loss exists in train mode only, in eval mode it fails on the first batch ({said}): give "
        f'Problem, or the landscape, mode="{TRAIN_WITHOUT_DROPOUT}"'
    )


def set_mode(root: nn.Module, mode: str = EVAL) -> None:
    """Eval mode; or train mode, save for what drops at random and what keeps running statistics."""
    if mode == EVAL:
        root.eval()
        return
    root.train()
    for module in root.modules():
        if isinstance(module, RANDOM) or NAMED_SO.search(type(module).__name__) or keeps_statistics(module):
            module.training = False
