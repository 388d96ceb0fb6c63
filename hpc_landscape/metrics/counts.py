"""Over what a loss of torch.nn takes its mean, by the formulas of its documentation.

Each function gives, for (loss, output, target), the number that the mean of a batch was divided by: a number, or a 0-d
tensor where only the device knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Count = Callable[[Any, Any, Any], Any]


def count_of(loss: object) -> Callable[[Any, Any], Any] | None:
    """How a loss counts, by (output, target); None where the table has none, or the ``forward`` is its own."""
    for kind, count in COUNTS.items():
        if isinstance(loss, kind) and type(loss).forward is kind.forward:
            return partial(count, loss) if getattr(loss, "reduction", None) in ("mean", "batchmean") else None
    return None


def as_module(loss: object) -> Any:
    """A function of torch.nn.functional, also with some of its options set by ``partial``, as the module it is."""
    function, options = (loss.func, loss.keywords) if isinstance(loss, partial) and not loss.args else (loss, {})
    try:
        return FUNCTIONS[function](**options)
    except (KeyError, TypeError):  # another function, or an option that the module does not have
        return loss


def ignored(loss: object) -> int | None:
    """The class index of targets that the loss leaves out."""
    index = getattr(loss, "ignore_index", None)
    return index if isinstance(index, int) else None


def _elements(loss: object, output: Tensor, target: Tensor) -> int:
    """All of them, after broadcasting."""
    return math.prod(torch.broadcast_shapes(output.shape, target.shape))


def _divergence(loss: nn.KLDivLoss, output: Tensor, target: Tensor) -> int:
    """``batchmean`` divides by the length of the batch."""
    if loss.reduction == "batchmean":
        return output.shape[0] if output.ndim else 1
    return _elements(loss, output, target)


def _classes(loss: nn.CrossEntropyLoss | nn.NLLLoss, output: Tensor, target: Tensor) -> int | Tensor:
    """The weights of the targets that are not ignored; of class probabilities, the positions."""
    if target.is_floating_point():
        return output.numel() // output.shape[0 if output.ndim == 1 else 1]
    counts = target != loss.ignore_index
    if loss.weight is None:
        return counts.sum()
    return (loss.weight[(target * counts).long()] * counts).sum()  # an ignored index may be none of a class


def _samples(loss: object, output: Tensor, target: Tensor) -> int:
    """Those over whose classes a first mean was taken."""
    return output.numel() // output.shape[-1] if output.ndim else 1


COUNTS: dict[type[nn.Module], Count] = {
    nn.CrossEntropyLoss: _classes,
    nn.NLLLoss: _classes,  # NLLLoss2d too
    nn.KLDivLoss: _divergence,
    **dict.fromkeys((nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.PoissonNLLLoss), _elements),
    **dict.fromkeys((nn.BCELoss, nn.BCEWithLogitsLoss, nn.SoftMarginLoss, nn.HingeEmbeddingLoss), _elements),
    **dict.fromkeys((nn.MultiMarginLoss, nn.MultiLabelMarginLoss, nn.MultiLabelSoftMarginLoss), _samples),
}

FUNCTIONS: dict[Any, type[nn.Module]] = {
    **{F.cross_entropy: nn.CrossEntropyLoss, F.nll_loss: nn.NLLLoss, F.kl_div: nn.KLDivLoss},
    **{F.mse_loss: nn.MSELoss, F.l1_loss: nn.L1Loss, F.smooth_l1_loss: nn.SmoothL1Loss, F.huber_loss: nn.HuberLoss},
    **{F.binary_cross_entropy: nn.BCELoss, F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss},
    **{F.poisson_nll_loss: nn.PoissonNLLLoss, F.soft_margin_loss: nn.SoftMarginLoss},
    **{F.hinge_embedding_loss: nn.HingeEmbeddingLoss, F.multi_margin_loss: nn.MultiMarginLoss},
    **{F.multilabel_margin_loss: nn.MultiLabelMarginLoss, F.multilabel_soft_margin_loss: nn.MultiLabelSoftMarginLoss},
}
