"""Which metrics a run computes: tried on the first batch, with what each stores."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..errors import UserError, is_out_of_memory, user_traceback
from ..evaluate.evaluator import Evaluator, as_array
from ..evaluate.trial import not_finite, try_batch
from ..kinds import METRICS
from ..metrics import Accuracy, BatchMetric, Data, Loss, LossTerm, Metric
from ..metrics.criterion import TOTAL
from ..metrics.curvature import CurvatureMetric
from ..metrics.gradient import GradientMetric
from ..metrics.registry import MetricRegistry
from ..metrics.trial import try_loss
from ..problems.problem import Problem
from ..progress import stage
from ..ranks.base import Comm
from ..store.layout import RESERVED, Quantity

log = logging.getLogger(__name__)
TOLERANCES = {"fp64": 1e-8, "tf32": 5e-3}  # of rounding, where a batch is compared with its parts


def check_metrics(asked: Sequence[str], problem: Problem) -> bool:
    """Whether all metrics add up over batches; raises UserError where one is asked for that there is not."""
    registry = MetricRegistry(problem, dict.fromkeys(problem.sets))
    makers = [registry.find(spec)[0] for spec in asked or registry.default]
    return all(isinstance(make, type) and issubclass(make, BatchMetric) for make in makers)


def requested(asked: Sequence[str], registry: MetricRegistry) -> dict[str, Metric]:
    """The metrics asked for, by default loss and accuracy, by their names in the file."""
    chosen: dict[str, Metric] = {}
    for spec in asked or registry.default:
        for name, metric in registry.make(spec).items():
            if name in chosen:
                raise UserError(f"--metrics: two metrics are called {name}; leave out one")
            chosen[name] = metric
    return chosen


@stage("first batch")
def choose_metrics(
    asked: Sequence[str],
    evaluator: Evaluator,
    registry: MetricRegistry,
    comm: Comm,
    before: Mapping[str, float] | None = None,
) -> tuple[list[Quantity], dict[str, float]]:
    """Give the evaluator the metrics asked for, by default loss and accuracy where they apply.

    before: the loss of each set's first batch at the origin, where that has been computed already. Returns what each
    metric will store, and the seconds that a pass over its first batch takes, for each set that passes are over.
    """
    problem = registry.problem
    with comm.raise_on_all_ranks():
        chosen = requested(asked, registry)
        alone = [name for name, metric in chosen.items() if not isinstance(metric, BatchMetric)]
        if (block := evaluator.execution.stacked) > 1 and alone:
            raise UserError(f"--block {block}: {alone[0]} is computed one point at a time; leave out one of the two")
        if evaluator.in_step and alone:
            raise UserError(f"--shard fsdp: {alone[0]} does not add up over batches; leave it out of --metrics")
    trial = partial(_try_first_batch, evaluator, registry, chosen, not asked, before or {})
    tried = comm.from_root(trial, everywhere=evaluator.in_step)
    if tried.careful:
        evaluator.be_careful()
    for name in tried.unfit:
        log.info("%s is left out: the targets are no class indices", name)
        del chosen[name]
    for text in tried.notices:
        log.info("note         %s", text)
    if tried.sum:
        problem.reduction, registry.criterion.sum = "sum", True
    _add_terms(registry, chosen, tried.terms)
    evaluator.metrics = chosen
    quantities = comm.from_root(lambda: _quantities(evaluator), everywhere=evaluator.in_step)
    _as_checked(chosen)
    return quantities, tried.seconds


def _quantities(evaluator: Evaluator) -> list[Quantity]:
    """What each metric stores."""
    _check_derivatives(evaluator)
    quantities = [quantity_of(name, metric, evaluator) for name, metric in evaluator.metrics.items()]
    _check_names(quantities)
    return quantities


def _check_derivatives(evaluator: Evaluator) -> None:
    """UserError where a metric needs second derivatives that the loss has not; seen once, at the origin.

    A gradient that is not the loss's slope is said.
    """
    for metric in evaluator.metrics.values():
        if isinstance(metric, (CurvatureMetric, GradientMetric)):
            with evaluator.at_origin():
                found = metric.check(evaluator.model)
            if found:
                log.warning("%s", found)


@dataclass
class Trial:
    """What the first batches have told.

    unfit: accuracies that do not apply. terms: of the loss, where it has several. sum: whether it has turned out to
    be a sum over the batch. careful: whether a pass leaves things behind in the model. notices: what there is to say.
    seconds: that a pass over a first batch takes, by set.
    """

    unfit: list[str] = field(default_factory=list)
    terms: list[str] = field(default_factory=list)
    sum: bool = False
    careful: bool = False
    notices: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def _try_first_batch(
    evaluator: Evaluator,
    registry: MetricRegistry,
    chosen: dict[str, Metric],
    default: bool,
    before: Mapping[str, float],
) -> Trial:
    """A forward pass on each set tells early whether model, data and loss fit, and what the loss is."""
    tried = Trial()
    warmup = evaluator.normalization.data
    if evaluator.normalization.reads_data and isinstance(warmup, Data):
        for batch in itertools.islice(warmup.batches, 1):
            warmup.samples(batch)
    for on, data in registry.data.items():
        passes = any(isinstance(metric, BatchMetric) and metric.data is data for metric in chosen.values())
        try:
            known = {"loss": before[on]} if on in before else {}
            first = try_batch(evaluator, data, {"loss": Loss(registry.criterion, data)}, not passes, known)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"the problem fails on its first batch: {user_traceback(error)}") from None
        if line := not_finite(first):
            raise UserError(line)
        if passes:
            tried.seconds[on] = first.seconds
        if first.terms != [TOTAL]:
            tried.terms = first.terms
            if TOTAL in first.terms:
                tried.notices = [
                    f"the loss returns {', '.join(first.terms)}: '{TOTAL}' is taken for the loss, and the others are "
                    "stored beside it"
                ]
        for name, metric in chosen.items():
            if isinstance(metric, Accuracy) and metric.data is data and not Accuracy.applies(*first[:2]):
                if not default:
                    raise UserError(
                        f"--metrics {name}: needs class scores (n, classes, ...) and class indices (n, ...)"
                    )
                tried.unfit.append(name)
    _try_parts(evaluator, registry, tried)
    tried.careful = evaluator.careful
    return tried


def _try_parts(evaluator: Evaluator, registry: MetricRegistry, tried: Trial) -> None:
    """Whether the loss of a batch is the mean that it is taken for; one notice where it is not."""
    mode = evaluator.execution
    tolerance = 5e-2 if mode.compute_dtype or mode.autocast else TOLERANCES.get(evaluator.precision, 1e-4)
    for data in registry.data.values():
        try:
            with evaluator.attached_at([0.0] * evaluator.placement.dimensions):
                found = try_loss(evaluator.model, registry.criterion, data, tolerance)
        except Exception as error:
            if is_out_of_memory(error) or isinstance(error, UserError):
                raise
            return  # a later batch fails: so will the points, and --on_error says what becomes of them
        if found is not None:
            tried.notices.append(found.text(registry.criterion))
            tried.sum = found.sum and registry.criterion.given is None
            return


def _add_terms(registry: MetricRegistry, chosen: dict[str, Metric], terms: list[str]) -> None:
    """Beside each loss its terms, by their names; after ``term_`` where such a name cannot be, or is taken."""
    taken = {name for name, metric in chosen.items() if not isinstance(metric, LossTerm)}
    taken |= {*RESERVED, *registry.own, *(METRICS.names() if terms else ())}
    names: dict[str, str] = {}
    for term in terms:
        if term != TOTAL:
            names[term] = _name(term, taken)
            taken.add(names[term])
    known = {name: term for term, name in names.items()}
    for name, metric in chosen.items():
        if isinstance(metric, LossTerm):  # asked for by its name
            asked = metric.term
            metric.term = asked if asked in names else known.get(asked, TOTAL)
            if metric.term == TOTAL:
                raise registry.no_such(name, names.values())
    for on, data in registry.data.items():
        prefix = f"{on}_" if on else ""
        if f"{prefix}loss" in chosen:
            for term, name in names.items():
                chosen.setdefault(prefix + name, LossTerm(registry.criterion, term, data))


def _name(term: str, taken: set[str]) -> str:
    """A term's name in the file: letters, digits and underscores."""
    name = re.sub(r"[^0-9a-zA-Z_]", "_", term)
    if not name.isidentifier() or name in taken:
        name = f"term_{name}"
    return name if name not in taken else _name(f"{name}_", taken)


def quantity_of(name: str, metric: Metric, evaluator: Evaluator) -> Quantity:
    """What the metric stores for a point; where it does not say, its value at the origin tells."""
    shape = metric.shape
    if shape is None:
        evaluator.metrics, chosen = {name: metric}, evaluator.metrics
        try:
            with evaluator.attached():
                value = evaluator([0.0] * evaluator.placement.dimensions)[name]
            shape = as_array(value).shape
        except UserError:
            raise
        except (TypeError, ValueError) as error:
            raise UserError(f"--metrics: {name} gives no number or array of numbers: {user_traceback(error)}") from None
        except Exception as error:
            raise UserError(f"--metrics: {name} raised at the origin {user_traceback(error)}") from None
        finally:
            evaluator.metrics = chosen
    dims = metric.dims if len(metric.dims) == len(shape) else tuple(f"{name}_{i}" for i in range(len(shape)))
    return Quantity(name, tuple(shape), dims)


def _check_names(quantities: list[Quantity]) -> None:
    """Metrics and their dimensions are names of one file: none may mean two things."""
    lengths: dict[str, int] = {}
    names = {quantity.name for quantity in quantities}
    for quantity in quantities:
        for name in (quantity.name, *quantity.dims):
            if name in RESERVED or not name.isidentifier():
                raise UserError(
                    f"--metrics: '{name}' cannot be a name in the file; give the metric another name or dims"
                )
        for dim, length in zip(quantity.dims, quantity.shape, strict=True):
            if lengths.setdefault(dim, length) != length or dim in names:
                raise UserError(
                    f"--metrics: the dimension '{dim}' of {quantity.name} is also a metric's name, or has another "
                    "length in another metric: give it another name (dims)"
                )
        if len(set(quantity.dims)) < len(quantity.dims):
            raise UserError(f"--metrics: {quantity.name} has two dimensions of the same name")


def store_array(value: Any, quantity: Quantity) -> Any:
    """A metric's value as the file takes it; UserError where its shape is another than at first."""
    try:
        array = as_array(value)
    except (TypeError, ValueError):
        array = None
    if array is None or array.shape != quantity.shape:
        found = "no array of numbers" if array is None else f"shape {array.shape}"
        raise UserError(f"the metric {quantity.name} gave {found} at a point, expected shape {quantity.shape}")
    return array


def store_arrays(values: Mapping[str, Any], quantities: Sequence[Quantity]) -> dict[str, Any]:
    """A point's values as the file takes them."""
    return {quantity.name: store_array(values[quantity.name], quantity) for quantity in quantities}


def remade(asked: Sequence[str], chosen: Mapping[str, Metric], before: MetricRegistry, sets: Any) -> dict[str, Metric]:
    """The metrics that were chosen, with all that the first batch has told, on the same sets in another place."""
    registry = before.on(sets)
    made, names = requested(asked, registry), {id(data): name for name, data in before.data.items()}
    for name, metric in chosen.items():
        if isinstance(metric, LossTerm):
            made[name] = LossTerm(registry.criterion, metric.term, sets[names[id(metric.data)]])
    return _as_checked({name: made[name] for name in chosen})


def _as_checked(metrics: dict[str, Metric]) -> dict[str, Metric]:
    """What these would see to at a first point has been seen."""
    for metric in metrics.values():
        if isinstance(metric, (CurvatureMetric, GradientMetric)):
            metric.checked = True
    return metrics
