"""A pass over resident data never waits for the device: it runs on PyTorch's ``meta`` device, which has no values.

Each evaluation set is read once, after its last batch, and nothing is copied to the device at a point. What ``meta``
cannot do, autocast, is seen on the CPU, as are the reads that would go by unseen there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hpc_landscape.evaluate.evaluator import Evaluator
from hpc_landscape.evaluate.execution import PLAIN, ExecutionMode, compute_dtypes
from hpc_landscape.metrics import Accuracy, Data, Loss
from hpc_landscape.metrics.base import BatchMetric
from hpc_landscape.metrics.supervised import LossTerm
from hpc_landscape.model import state
from hpc_landscape.model.folding import find_pairs
from hpc_landscape.model.placement import Placement
from hpc_landscape.model.wrapper import wrap_model
from hpc_landscape.problems.digits import Block

pytestmark = pytest.mark.usefixtures("one_thread")
POINTS = [(0.0, 0.0), (0.5, -0.25), (1.0, 1.0)]
SIZES = (8, 8, 4)  # of the batches
POLICIES = ["warmup", "batch", "running", "none"]
BFLOAT16 = torch.bfloat16
MODES = [  # vmap has no batch normalization of 16 bits by weights of 32: such blocks are left to autocast
    PLAIN,
    ExecutionMode(channels_last=True),
    ExecutionMode(compute_dtype=BFLOAT16),
    ExecutionMode(compute_dtype=BFLOAT16, channels_last=True),
    ExecutionMode(stacked=3),
    ExecutionMode(stacked=3, channels_last=True),
    ExecutionMode(interleaved=2),
    ExecutionMode(interleaved=2, channels_last=True),
    ExecutionMode(interleaved=2, compute_dtype=BFLOAT16),
]
AUTOCAST = [ExecutionMode(autocast=True), ExecutionMode(autocast=True, channels_last=True)]
AUTOCAST += [ExecutionMode(autocast=True, stacked=3), ExecutionMode(autocast=True, interleaved=2)]
MEASURES = "ours", "another"  # the evaluation sets

Metrics = Callable[[Data], dict[str, BatchMetric]]


def name_of(mode: ExecutionMode) -> str:
    return f"{mode}, {mode.interleaved} by turns"


class Net(nn.Module):
    """Normalizes after convolutions, in a shortcut too, after a linear layer, and before anything else."""

    def __init__(self):
        super().__init__()
        self.block, self.hidden, self.linear = Block(1, 4, 2), nn.Linear(4 * 16, 8), nn.Linear(8, 10)
        self.first, self.last = nn.BatchNorm2d(1), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.last(self.hidden(self.block(self.first(x)).flatten(1))))


def without_norms() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 10))


def loss_and_accuracy(data: Data) -> dict[str, BatchMetric]:
    return {"loss": Loss(nn.CrossEntropyLoss(), data), "accuracy": Accuracy(data)}


def made(
    mode: ExecutionMode,
    bn: str,
    device: str,
    events: list[str],
    metrics: Metrics = loss_and_accuracy,
    dtype: torch.dtype | None = None,
) -> Evaluator:
    """An evaluator of two sets, the first of which is what statistics are re-estimated on; all of it on the device.

    Where points are evaluated one by one batch normalization is folded into the layers before it, as far as it may be.
    """
    torch.manual_seed(0)
    model = without_norms() if bn == "none" else Net()
    if mode.stacked == 1 and not mode.compiled and bn != "batch":
        with torch.no_grad():
            mode = replace(mode, folded=find_pairs(model.eval(), lambda: model(torch.randn(2, 1, 8, 8)), least=0))
        assert len(mode.folded) == (0 if bn == "none" else 4)
    model = model.to(device)
    if not mode.compiled:
        model.register_forward_pre_hook(lambda *_: events.append("call"))
    moves = [{n: 0.1 * torch.randn_like(p) for n, p in model.named_parameters()} for _ in "xy"]
    x, y = torch.randn(sum(SIZES), 1, 8, 8).to(device, dtype), torch.randint(10, (sum(SIZES),)).to(device)
    if mode.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    sets = [Data(list(zip(x.split(SIZES), y.split(SIZES), strict=True))) for _ in MEASURES]
    placement = Placement(
        state.parameters(model),
        moves,
        torch.device(device),
        dtype,
        compute_dtypes=compute_dtypes(model, mode.compute_dtype),
        channels_last=mode.channels_last,
        rows=mode.points,
    )
    named = {f"{name} of {on}": m for on, data in zip(MEASURES, sets, strict=True) for name, m in metrics(data).items()}
    return Evaluator(wrap_model(model), placement, named, bn, sets[0], execution=mode)


def expected(mode: ExecutionMode, bn: str) -> list[str]:
    """What happens at a point, or at several together: the model is called with all batches, and then what is read."""
    calls, reads = ["call"] * len(SIZES) * mode.interleaved, ["read"] * mode.interleaved
    return calls * (bn == "warmup") + len(MEASURES) * (calls + reads)


# On the device that has no values


class Waits(TorchDispatchMode):
    """Writes down where a host would wait for a device: a value is read there, or one of the host's copied there.

    Goes on with a value that stands for what was read.
    """

    def __init__(self, events: list[str]):
        super().__init__()
        self.events = events

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tensors((args, kwargs))
        there, here = any(t.is_meta for t in given), any(not t.is_meta for t in given)
        aten = torch.ops.aten
        if there and function in (aten._local_scalar_dense.default, aten.equal.default):
            self.events.append("read")
            return 0.5 if function is aten._local_scalar_dense.default else False
        if there and _leaves(function, args, kwargs or {}):
            self.events.append("read")
            return torch.full(args[0].shape, 0.5, dtype=args[0].dtype)
        found = function(*args, **kwargs or {})
        if here and any(t.is_meta for t in (*tensors(found), *given)) and "copy" in function.name():
            self.events.append("copy")
        return found


def tensors(nest: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(nest) if isinstance(leaf, Tensor)]


def _leaves(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether it copies from there to the host."""
    if function is torch.ops.aten.copy_.default:
        return not args[0].is_meta and args[1].is_meta
    target = kwargs.get("device")
    return function is torch.ops.aten._to_copy.default and target is not None and torch.device(target).type != "meta"


@pytest.mark.parametrize("bn", POLICIES)
@pytest.mark.parametrize("mode", MODES, ids=name_of)
def test_the_host_waits_at_the_end_of_a_pass_alone(mode: ExecutionMode, bn: str) -> None:
    """Every operation, those of placing the point among them, runs without a value."""
    events: list[str] = []
    evaluator = made(mode, bn, "meta", events)
    with evaluator.attached():
        for _ in range(2):  # what is found out once may wait no more than what is found out anew
            events.clear()
            with Waits(events):
                found = evaluator.evaluate(POINTS[: mode.points])
            assert events == expected(mode, bn)
    names = {f"{name} of {on}" for name in ("loss", "accuracy") for on in MEASURES}
    assert len(found) == mode.points and all(values.keys() == names for values in found)


@pytest.mark.parametrize("bn", POLICIES)
def test_in_double_precision(bn: str) -> None:
    events: list[str] = []
    evaluator = made(PLAIN, bn, "meta", events, dtype=torch.float64)
    with evaluator.attached(), Waits(events):
        evaluator(POINTS[1])
    assert events == expected(PLAIN, bn)


@pytest.mark.parametrize("bn", ["warmup", "running"])
def test_compiled(monkeypatch: pytest.MonkeyPatch, bn: str) -> None:
    """Without Inductor, which only writes the kernels: what it is given is traced and runs without a value.

    Nothing is compiled while tensors are watched, so it is the device itself that refuses the first read.
    """
    real, events, graphs = torch.compile, list[str](), []

    def count(graph: Any, inputs: Any) -> Any:
        def call(*arguments: Any) -> Any:
            events.append("call")
            return graph.forward(*arguments)

        graphs.append(graph)
        return call

    monkeypatch.setattr(torch, "compile", lambda call, mode, **options: real(call, backend=count, **options))
    torch._dynamo.reset()
    evaluator = made(ExecutionMode(compiled="default"), bn, "meta", events)
    with evaluator.attached(), pytest.raises(NotImplementedError, match="meta") as caught:
        evaluator(POINTS[1])
    torch._dynamo.reset()
    assert ".tolist()" in str(caught.traceback[-1].statement)
    passes = 2 if bn == "warmup" else 1
    assert events == ["call"] * len(SIZES) * passes and len(graphs) == len({*SIZES}) * passes


# Whatever adds up over batches


def weighted(data: Data) -> dict[str, BatchMetric]:
    weight = torch.rand(10, device=data.batches[0][0].device)  # type: ignore[index]
    return {"loss": Loss(nn.CrossEntropyLoss(weight, ignore_index=3, label_smoothing=0.1), data)}


def several_terms(data: Data) -> dict[str, BatchMetric]:
    def terms(output: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"entropy": F.cross_entropy(output, target), "size": output.square().mean()}

    loss = Loss(terms, data)
    return {"loss": loss, "size": LossTerm(loss.criterion, "size", data), "top 3": Accuracy(data, k=3)}


def counted(data: Data) -> dict[str, BatchMetric]:
    """The user's code applies the model, and counts on the device."""
    data.forward, data.count = lambda model, batch: model(batch[0]), lambda batch: (batch[1] != 3).sum()
    return {"loss": Loss(lambda output, batch: F.cross_entropy(output, batch[1], ignore_index=3), data)}


def summed(data: Data) -> dict[str, BatchMetric]:
    return {"loss": Loss(nn.CrossEntropyLoss(reduction="sum"), data)}


@pytest.mark.parametrize("metrics", [weighted, several_terms, counted, summed])
@pytest.mark.parametrize(
    "mode",
    [PLAIN, ExecutionMode(channels_last=True), ExecutionMode(stacked=3), ExecutionMode(interleaved=2)],
    ids=name_of,
)
def test_every_kind_of_mean(mode: ExecutionMode, metrics: Metrics) -> None:
    events: list[str] = []
    evaluator = made(mode, "warmup", "meta", events, metrics)
    with evaluator.attached(), Waits(events):
        evaluator.evaluate(POINTS[: mode.points])
    assert events == expected(mode, "warmup")


# The tests can fail


def impatient(output: Tensor, target: Tensor) -> Tensor:
    loss = F.cross_entropy(output, target)
    return loss if loss > 0 else -loss


def from_the_host(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, weight=torch.ones(10, device="cpu").to(output.device))


def elsewhere(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.cpu(), target.cpu())


@pytest.mark.parametrize(
    ("loss", "seen"),
    [(impatient, {"read": 1}), (from_the_host, {"copy": 1}), (elsewhere, {"read": 2})],
)
def test_what_waits_is_seen(loss: Callable[..., Tensor], seen: dict[str, int]) -> None:
    """A loss that looks at its value at each batch, one with weights on the host, and one computed there."""
    events: list[str] = []
    evaluator = made(PLAIN, "running", "meta", events, lambda data: {"loss": Loss(loss, data)})
    with evaluator.attached(), Waits(events):
        evaluator(POINTS[1])
    here = {"read": 0 if loss is elsewhere else len(MEASURES), "copy": 0}  # sums on the host are not waited for
    for kind, more in seen.items():
        here[kind] += more * len(MEASURES) * len(SIZES)
    assert {kind: events.count(kind) for kind in here} == here


# On the CPU

READS = {getattr(Tensor, name) for name in ("item", "tolist", "numpy", "cpu", "nonzero", "equal", "allclose")}
READS |= {getattr(Tensor, f"__{name}__") for name in ("bool", "float", "int", "index", "array", "contains", "complex")}
READS |= {torch.equal, torch.allclose, torch.nonzero}


class Calls(TorchFunctionMode):
    """Writes down the calls that read a value."""

    def __init__(self, events: list[str]):
        super().__init__()
        self.events = events

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in READS:
            self.events.append("read")
        return function(*args, **kwargs or {})


class Scalars(TorchDispatchMode):
    """Writes down the reads that PyTorch makes for itself."""

    def __init__(self, events: list[str]):
        super().__init__()
        self.events = events

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.equal):
            self.events.append("inner read")
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("watch", [Calls, Scalars])
@pytest.mark.parametrize("bn", POLICIES)
@pytest.mark.parametrize("mode", [*MODES, *AUTOCAST], ids=name_of)
def test_nothing_else_is_read_on_the_cpu(mode: ExecutionMode, bn: str, watch: Any) -> None:
    """On real values, which decide what is computed where something looks at them; ``tolist`` is a call alone."""
    events: list[str] = []
    evaluator = made(mode, bn, "cpu", events)
    with evaluator.attached():
        evaluator.evaluate(POINTS[: mode.points])
        events.clear()
        with watch(events):
            found = evaluator.evaluate(POINTS[: mode.points])
    reads = [event for event in expected(mode, bn) if watch is Calls or event != "read"]
    assert events == reads
    assert all(value == value for values in found for value in values.values())


@pytest.mark.parametrize(("watch", "event"), [(Calls, "read"), (Scalars, "inner read")])
def test_such_a_read_is_seen(watch: Any, event: str) -> None:
    events: list[str] = []
    evaluator = made(PLAIN, "running", "cpu", events, lambda data: {"loss": Loss(impatient, data)})
    with evaluator.attached(), watch(events):
        evaluator(POINTS[1])
    assert events.count(event) == len(MEASURES) * (len(SIZES) + (watch is Calls))
