"""Whether a loss is the mean that it is taken for: the loss of a batch, against the losses of its parts.

Where a batch's loss is no mean over the items that it is weighed by, what is computed over several batches depends on
how they were made. Nobody is told so by the numbers; so a batch is taken apart once, before they are computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from ..data.data import Data, fresh
from ..data.sizes import batch_size, part
from ..errors import is_out_of_memory, warn
from ..model.wrapper import ModelWrapper
from ..ranks.generators import Generators
from .criterion import TOTAL, Criterion

TOLERANCE = 1e-4  # relative: what parts and whole may differ by, in float32, by rounding
LOW, TF32 = 5e-2, 5e-3  # of models in 16 bits; on a GPU, where PyTorch lets convolutions round so
FLOOR = 1e-8  # a loss that is 0 but for rounding, of a model and its own outputs, say
SPREAD = 6.0  # a loss that draws differs from its parts by no more than so many times what it differs between seeds
BATCHES = 3  # so many first ones are tried: not in every batch something is ignored
SEEDS = 7  # for a loss that draws


@dataclass
class Finding:
    """A loss that is not what it was taken for. off: by how much at most, relative; whole, parts: its loss, and theirs.

    sum: whether the loss is the sum of its parts' losses. unseen: a batch cannot be taken apart, so nobody knows.
    """

    off: float
    whole: float
    parts: float
    sum: bool
    counted: bool
    unseen: bool = False
    term: str = TOTAL  # of a loss of several, the one that is off

    def text(self, criterion: Criterion) -> str:
        """The notice."""
        if self.unseen:
            return (
                "a batch cannot be taken apart, to see whether its loss is a mean over its samples: it is taken for "
                "one. If it is not, values depend on the batch size: say over how many items it is a mean, "
                'count=lambda batch: ..., or that it is a sum, Problem(..., reduction="sum")'
            )
        if self.sum and criterion.given is None:
            return (
                "the loss of a batch is the sum of its parts' losses, no mean: it is added up over the batches, not "
                'averaged; say so by Problem(..., reduction="sum"), or Loss(..., reduction="sum")'
            )
        what = "the loss" if self.term == TOTAL else f"the loss's term '{self.term}'"
        if criterion.derived and not self.counted:
            return (
                f"the loss of a batch is {self.whole:.6g}, and the mean of its parts' losses {self.parts:.6g}: the "
                "model mixes the samples of a batch, or output and target are of different shapes; values depend on "
                "the batch size"
            )
        off = f"{100 * self.off:.2g}% off" if np.isfinite(self.off) else "for want of samples"
        weight = "weighed by count" if self.counted else "weighed by samples"
        way = (
            "the count= given is not what the mean is over"
            if self.counted
            else "say over how many items it is a mean: count=lambda batch: ..."
        )
        return (
            f"{what} of a batch is {self.whole:.6g}, and the mean of its parts' losses, {weight}, {self.parts:.6g} "
            f"({off}): it is no mean over these, so values depend on the batch size; {way} (a loss "
            "of a whole batch, a contrastive one, has no such number: its batches are part of the result)"
        )


def try_loss(model: ModelWrapper, criterion: Criterion, data: Data, tolerance: float = TOLERANCE) -> Finding | None:
    """What is wrong with how the loss is weighed, on the first batches; None where nothing is, or cannot be found out.

    Draws as it likes from the generators of torch, NumPy and Python, and leaves them as they were.
    """
    if criterion.sum or data.alone:
        return None
    seen, unseen = False, None
    with _generators(model).preserved():
        for batch in _some(model, data):
            size = batch_size(batch)
            if size is None or size < 2 or (criterion.derived and not data.count and _two_ways(batch)):
                continue
            found = _try_batch(model, criterion, data, batch, size, tolerance)
            if found is not None and not found.unseen:
                return found
            seen, unseen = seen or found is None, found
    return None if seen else unseen


def _some(model: ModelWrapper, data: Data) -> Iterator[Any]:
    """The first batches; where no pass loads any, also one in the middle and the last two: data may be sorted."""
    kept = isinstance(data.batches, Sequence) or not getattr(data.batches, "streamed", True)
    total = sum(1 for _ in data.batches) if kept else 0
    wanted = {*range(BATCHES), total // 2, total - 2, total - 1}
    yield from (batch for i, batch in enumerate(itertools.islice(data.on(model), max(wanted) + 1)) if i in wanted)


def check_loss(model: ModelWrapper, criterion: Criterion, data: Data) -> None:
    """For the library: warn once for each loss; what turns out to be a sum is one from then on."""
    if criterion.tried:
        return
    criterion.tried = True
    if (found := try_loss(model, criterion, data, _rounding(model))) is not None:
        warn(found.text(criterion))
        treat_as_sum(criterion, found)


def _rounding(model: ModelWrapper) -> float:
    """What a batch and its parts may differ by, as the library computes them."""
    parameters = list(model.root.parameters())
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in parameters):
        return LOW
    return TOLERANCE if all(p.device.type == "cpu" for p in parameters) else TF32


def treat_as_sum(criterion: Criterion, found: Finding) -> None:
    """Take a loss for the sum that it is, unless the user has said what it is."""
    if found.sum and criterion.given is None:
        criterion.sum = True


def _two_ways(batch: Any) -> bool:
    """Whether the first dimension may be time as well, along which samples are not taken apart."""
    if type(batch) not in (tuple, list) or not all(isinstance(t, torch.Tensor) and t.ndim > 1 for t in batch):
        return False
    return len({t.shape[:2] for t in batch}) == 1


def _try_batch(
    model: ModelWrapper, criterion: Criterion, data: Data, batch: object, size: int, tolerance: float
) -> Finding | None:
    """Taken apart at both cuts at once, as a pass over the parts tells; at each alone where that finds something."""

    def measured(some: object, items: int, seed: int = 0) -> Measured:
        return _measured(model, criterion, data, some, items, seed)

    def apart(*cuts: int) -> list[Measured] | None:
        bounds = itertools.pairwise((0, *cuts, size))
        try:
            return [measured(part(batch, size, a, b), b - a) for a, b in bounds]
        except Exception as error:  # the user's code need not take parts of a batch, nor single samples
            if is_out_of_memory(error):
                raise
            return None

    whole, cuts, counted = measured(batch, size), sorted({1, size // 2}), data.count is not None
    exactly = np.zeros_like(whole.terms)
    if (found := apart(*cuts)) is not None and _judged(whole, [found], exactly, tolerance, counted) is None:
        return None
    splits = [found for found in map(apart, cuts) if found is not None]
    if not splits:
        told = data.count or criterion.derived
        return None if told else Finding(0.0, 0.0, 0.0, False, False, unseen=True)
    spread = abs(measured(batch, size, seed=1).terms - whole.terms)
    if spread.any():
        spread = np.max([abs(measured(batch, size, seed).terms - whole.terms) for seed in range(1, SEEDS)], axis=0)
    return _judged(whole, splits, SPREAD * spread, tolerance, counted)


class Measured(NamedTuple):
    """The loss's terms, their weight and their names, for a batch."""

    terms: np.ndarray
    weight: float
    names: list[str]


def _judged(
    measured: Measured, splits: list[list[Measured]], drawn: np.ndarray, tolerance: float, counted: bool
) -> Finding | None:
    """measured: a batch; splits: the parts of each."""
    whole, names = measured.terms, measured.names
    if measured.weight == 0 or not np.isfinite(whole).all():
        return None
    worst: Finding | None = None
    is_sum = True
    for split in splits:
        total = sum(one.weight for one in split)
        weighed = np.sum([np.where(one.weight == 0, 0.0, one.terms * one.weight) for one in split], axis=0)
        parts = weighed / total if total else whole
        scale = np.fmax.reduce([abs(whole), *(abs(one.terms) for one in split)])
        allowed = tolerance * scale + drawn + FLOOR
        is_sum = is_sum and bool((abs(whole - np.sum([one.terms for one in split], axis=0)) <= allowed).all())
        off = abs(whole - parts)
        off[~np.isfinite(parts)] = np.inf  # a part has no loss, though it has samples
        if (off > allowed).any():
            i = int((off / np.fmax(allowed, 1e-300)).argmax())
            if TOTAL in names and off[names.index(TOTAL)] > allowed[names.index(TOTAL)]:
                i = names.index(TOTAL)  # what is stored beside it matters less
            found = Finding(float(off[i] / scale[i]), float(whole[i]), float(parts[i]), False, counted, term=names[i])
            if worst is None or (found.term == TOTAL) > (worst.term == TOTAL) or _worse(found, worst):
                worst = found
    if worst is not None:
        worst.sum = is_sum
    return worst


def _worse(one: Finding, two: Finding) -> bool:
    """Whether one is further off, as far as that is a number."""
    if (one.term == TOTAL) < (two.term == TOTAL):
        return False
    return not np.isfinite(two.off) or two.off < one.off < np.inf


@torch.no_grad()
def _measured(model: ModelWrapper, criterion: Criterion, data: Data, batch: object, size: int, seed: int) -> Measured:
    """The loss of a batch of so many samples."""
    _generators(model).seed(seed)
    batch = fresh(batch)  # the user's code may put something else into it
    output, target = data.output(model, batch), data.target(batch)
    terms = criterion.terms(output, target)
    weight = criterion.weight(output, target, data.items(batch) if data.count else size, data.count is not None)
    return Measured(np.array([float(term) for term in terms.values()]), float(weight), list(terms))


def _generators(model: ModelWrapper) -> Generators:
    return Generators({p.device for p in model.root.parameters()})
