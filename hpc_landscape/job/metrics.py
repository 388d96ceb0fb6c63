"""Which metrics a run computes: the built-in ones by name, the problem's own, and the user's from a file."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .. import metrics as built_in
from ..data.prepare import TensorBatches
from ..errors import UserError, is_out_of_memory, user_traceback
from ..evaluate.build import EvaluatorBuilder
from ..evaluate.evaluator import Evaluator, as_array
from ..evaluate.exactness import ExecutionErrors, errors_of_mode
from ..evaluate.execution import PLAIN
from ..evaluate.trial import not_finite, try_batch
from ..metrics import Accuracy, BatchMetric, Data, Loss, LossTerm, Metric
from ..metrics.criterion import TOTAL, Criterion
from ..metrics.curvature import CurvatureMetric
from ..metrics.gradient import GradientMetric
from ..metrics.trial import try_loss
from ..problems.problem import Problem, find_object
from ..ranks.comm import Comm
from ..settings import Settings
from ..store.layout import RESERVED, Quantity
from .plan import Plan

BUILT_IN: dict[str, Callable[..., Metric]] = {
    metric.name: metric
    for metric in (
        *(Loss, Accuracy, built_in.LossGradient, built_in.GradientNorm, built_in.GradientPredictiveness),
        *(built_in.LossPerturbations, built_in.PrincipalCurvatureEvaluator, built_in.HessianTrace),
        built_in.ExpectedReturnMetric,
    )
}
TOLERANCES = {"fp64": 1e-8, "tf32": 5e-3}  # of rounding, where a batch is compared with its parts


class Chooser:
    """Makes the metrics that are asked for, on the evaluation sets: set name -> Data; the loss is on their device."""

    def __init__(self, problem: Problem, sets: Mapping[str, Data | None], loss: Any = None):
        self.problem, self.sets, self.loss = problem, sets, loss
        self.criterion = None if loss is None else Criterion(loss, problem.reduction)
        self.own = {metric.name: metric for metric in problem.metrics}

    def make(self, spec: str) -> dict[str, Metric]:
        """The metrics that one word asks for, by their names in the file."""
        name, arguments = parse_call(spec)
        if name in self.own:
            return {name: self.own[name]}
        make, on_sets = self.find(spec)
        if make is LossTerm:
            words = [(on, spec.removeprefix(f"{on}_")) for on in on_sets]
            return {f"{on}_{w}" if on else w: LossTerm(self.criterion, w, self.sets[on]) for on, w in words}
        made = {}
        for on in on_sets:
            metric = self._on(on, make, spec, arguments)
            made[f"{on}_{metric.name}" if on else metric.name] = metric
        return made

    def find(self, spec: str) -> tuple[Callable[..., Metric], list[str]]:
        """What makes the metric, and on which sets: every one, or that whose name and an underscore it begins with."""
        name, _ = parse_call(spec)
        if name in self.own:
            return lambda: self.own[name], [""]
        if name == "expected_return" and self.problem.env is None:
            raise UserError("--metrics expected_return: the problem has no env: Problem(agent_wrapper, env=...)")
        make = find_object(name, "--metrics") if ":" in name else BUILT_IN.get(name)
        if make is not None:
            on_data = {"inputs", "data"} & set(inspect.signature(make).parameters)
            if on_data and not self.sets:
                raise UserError(f"--metrics {spec}: the problem has no data")
            return make, [*self.sets] if on_data else [""]
        for on in filter(None, self.sets):
            if (make := BUILT_IN.get(name.removeprefix(f"{on}_"))) is not None:
                return make, [on]
        if spec.isidentifier() and self.sets and not isinstance(self.problem.loss, torch.nn.Module):
            on = [on for on in self.sets if on and spec.startswith(f"{on}_")]
            return LossTerm, on or [*self.sets]  # perhaps: only the loss can tell
        raise self.no_such(spec)

    def no_such(self, spec: str, terms: Iterable[str] = ()) -> UserError:
        """That there is no metric of this name."""
        known = ", ".join([*self.own, *BUILT_IN, *terms])
        return UserError(f"--metrics {spec}: there is no such metric; there are {known}, or file.py:MyMetric")

    @property
    def default(self) -> list[str]:
        """What is computed where nothing is asked for."""
        return ["loss", "accuracy"] if self.sets else [*self.own] or ["expected_return"]

    def _on(self, on: str, make: Callable[..., Metric], spec: str, arguments: dict[str, Any]) -> Metric:
        """The metric on one set: it is given those of these that its signature names."""
        ours = isinstance(make, type) and issubclass(make, tuple(BUILT_IN.values()))
        have = {"loss_fn": self.criterion if ours else self.loss, "problem": self.problem, "env": self.problem.env}
        if self.criterion is not None and self.criterion.ignore_index is not None:
            have["ignore_index"] = self.criterion.ignore_index
        if on in self.sets:
            have |= {"inputs": self.sets[on], "data": self.sets[on]}
        wanted = inspect.signature(make).parameters
        if "target" in wanted and wanted["target"].default is inspect.Parameter.empty:
            have["inputs"], have["target"] = self._tensors(on, spec)
        return _call(make, spec, {key: value for key, value in have.items() if key in wanted} | arguments)

    def _tensors(self, on: str, spec: str) -> tuple[Any, Any]:
        """All inputs and all targets, for a metric that wants them as tensors."""
        batches = self.sets[on].batches
        if not isinstance(batches, TensorBatches) or len(batches.tensors) != 2:
            raise UserError(
                f"--metrics {spec}: wants inputs and target as tensors; let it take data, and iterate over it"
            )
        return batches.tensors


def parse_call(spec: str) -> tuple[str, dict[str, Any]]:
    """``name(key=value, ...)`` -> name, arguments: literals alone, nothing is executed."""
    name, bracket, rest = spec.partition("(")
    if not bracket:
        return spec, {}
    wanted = f"--metrics {spec}: expected name(key=value, ...), such as accuracy(k=5)"
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise UserError(wanted)
        return name.strip(), {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError):
        raise UserError(wanted) from None


def _call(make: Callable[..., Metric], spec: str, arguments: dict[str, Any]) -> Metric:
    try:
        inspect.signature(make).bind(**arguments)
    except TypeError as error:
        raise UserError(f"--metrics {spec}: {error}") from None
    try:
        metric = make(**arguments)
    except UserError as error:
        raise UserError(f"--metrics {spec}: {error}") from None
    except Exception as error:
        raise UserError(f"--metrics {spec}: making it raised {user_traceback(error)}") from None
    if not isinstance(metric, Metric):
        raise UserError(f"--metrics {spec}: gives a {type(metric).__name__}, not a hpc_landscape.metrics.Metric")
    return metric


def check_metrics(settings: Settings, problem: Problem) -> bool:
    """Whether all metrics add up over batches; raises UserError where one is asked for that there is not."""
    chooser = Chooser(problem, dict.fromkeys(problem.sets))
    makers = [chooser.find(spec)[0] for spec in settings.metric_names or chooser.default]
    return all(isinstance(make, type) and issubclass(make, BatchMetric) for make in makers)


def requested(settings: Settings, chooser: Chooser) -> dict[str, Metric]:
    """The metrics asked for, by default loss and accuracy, by their names in the file."""
    chosen: dict[str, Metric] = {}
    for spec in settings.metric_names or chooser.default:
        for name, metric in chooser.make(spec).items():
            if name in chosen:
                raise UserError(f"--metrics: two metrics are called {name}; leave out one")
            chosen[name] = metric
    return chosen


def choose_metrics(
    settings: Settings, evaluator: Evaluator, chooser: Chooser, comm: Comm, say: Callable[[str], None]
) -> list[Quantity]:
    """Give the evaluator the metrics asked for, by default loss and accuracy where they apply; what each will store."""
    problem, default = chooser.problem, not settings.metric_names
    with comm.raise_on_all_ranks():
        chosen = requested(settings, chooser)
        alone = [name for name, metric in chosen.items() if not isinstance(metric, BatchMetric)]
        if evaluator.execution.stacked > 1 and alone:
            raise UserError(
                f"--block {settings.block}: {alone[0]} is computed one point at a time; leave out one of the two"
            )
    tried = Trial()
    with comm.raise_on_all_ranks():
        if comm.is_root:
            tried = _try_first_batch(evaluator, chooser, chosen, default)
            tried.careful = evaluator.careful
    tried = comm.bcast(tried)
    if tried.careful:
        evaluator.be_careful()
    for name in tried.unfit:
        say(f"{name} is left out: the targets are no class indices")
        del chosen[name]
    for text in tried.notices:
        say(f"note         {text}")
    if tried.sum:
        problem.reduction, chooser.criterion.sum = "sum", True
    _add_terms(chooser, chosen, tried.terms)
    evaluator.metrics = chosen
    quantities: list[Quantity] = []
    with comm.raise_on_all_ranks():
        if comm.is_root:
            _check_derivatives(evaluator, say)
            quantities = [_quantity(name, metric, evaluator) for name, metric in chosen.items()]
            _check_names(quantities)
    for metric in chosen.values():
        if isinstance(metric, (CurvatureMetric, GradientMetric)):
            metric.checked = True
    return comm.bcast(quantities)


def _check_derivatives(evaluator: Evaluator, say: Callable[[str], None]) -> None:
    """UserError where a metric needs second derivatives that the loss has not; seen once, at the origin.

    A gradient that is not the loss's slope is said.
    """
    for metric in evaluator.metrics.values():
        if isinstance(metric, (CurvatureMetric, GradientMetric)):
            with evaluator.at_origin():
                found = metric.check(evaluator.model)
            if found:
                say(f"warning: {found}")


@dataclass
class Trial:
    """What the first batches have told.

    unfit: accuracies that do not apply. terms: of the loss, where it has several. sum: whether it has turned out to
    be a sum over the batch. careful: whether a pass leaves things behind in the model. notices: what there is to say.
    """

    unfit: list[str] = field(default_factory=list)
    terms: list[str] = field(default_factory=list)
    sum: bool = False
    careful: bool = False
    notices: list[str] = field(default_factory=list)


def _try_first_batch(evaluator: Evaluator, chooser: Chooser, chosen: dict[str, Metric], default: bool) -> Trial:
    """One forward pass on each set tells early whether model, data and loss fit, and what the loss is."""
    tried = Trial()
    warmup = evaluator.normalization.data
    if evaluator.normalization.reads_data and isinstance(warmup, Data):
        for batch in itertools.islice(warmup.batches, 1):
            warmup.samples(batch)
    for data in chooser.sets.values():
        passes = any(isinstance(metric, BatchMetric) and metric.data is data for metric in chosen.values())
        try:
            first = try_batch(evaluator, data, {"loss": Loss(chooser.criterion, data)}, gradients=not passes)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"the problem fails on its first batch: {user_traceback(error)}") from None
        if line := not_finite(first):
            raise UserError(line)
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
    _try_parts(evaluator, chooser, tried)
    return tried


def _try_parts(evaluator: Evaluator, chooser: Chooser, tried: Trial) -> None:
    """Whether the loss of a batch is the mean that it is taken for; one notice where it is not."""
    mode = evaluator.execution
    tolerance = 5e-2 if mode.compute_dtype or mode.autocast else TOLERANCES.get(evaluator.precision, 1e-4)
    for data in chooser.sets.values():
        try:
            with evaluator.attached_at([0.0] * evaluator.placement.dimensions):
                found = try_loss(evaluator.model, chooser.criterion, data, tolerance)
        except Exception as error:
            if is_out_of_memory(error) or isinstance(error, UserError):
                raise
            return  # a later batch fails: so will the points, and --on_error says what becomes of them
        if found is not None:
            tried.notices.append(found.text(chooser.criterion))
            tried.sum = found.sum and chooser.criterion.given is None
            return


def _add_terms(chooser: Chooser, chosen: dict[str, Metric], terms: list[str]) -> None:
    """Beside each loss its terms, by their names; after ``term_`` where such a name cannot be, or is taken."""
    taken = {*RESERVED, *BUILT_IN, *chooser.own, *(n for n, m in chosen.items() if not isinstance(m, LossTerm))}
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
                raise chooser.no_such(name, names.values())
    for on, data in chooser.sets.items():
        prefix = f"{on}_" if on else ""
        if f"{prefix}loss" in chosen:
            for term, name in names.items():
                chosen.setdefault(prefix + name, LossTerm(chooser.criterion, term, data))


def _name(term: str, taken: set[str]) -> str:
    """A term's name in the file: letters, digits and underscores."""
    name = re.sub(r"[^0-9a-zA-Z_]", "_", term)
    if not name.isidentifier() or name in taken:
        name = f"term_{name}"
    return name if name not in taken else _name(f"{name}_", taken)


def _quantity(name: str, metric: Metric, evaluator: Evaluator) -> Quantity:
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


def execution_errors(plan: Plan, builder: EvaluatorBuilder) -> ExecutionErrors:
    """How far the form in use is from the plain one in float32; nothing where it is as exact."""
    settings, evaluator = plan.settings, plan.evaluator
    exact = evaluator.execution.exact and settings.precision != "tf32"
    if exact or settings.dry_run:
        return ExecutionErrors()
    plain, data = builder.build(PLAIN)
    if settings.precision == "tf32":
        plain.precision = "fp32"
    made = requested(settings, Chooser(plan.problem, data, builder.loss))
    plain.metrics = {k: m for k, m in made.items() if k in evaluator.metrics and isinstance(m, BatchMetric)}
    return errors_of_mode(evaluator, plain, plan.grid, settings.seed)
