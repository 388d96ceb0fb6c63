"""Fast modes, against the plain one and against NumPy: none may change what is computed."""

from __future__ import annotations

import shutil

import h5py
import numpy as np
import pytest
import torch
from problems_for_tests.small_problem_for_tests import images
from programs import PROBLEMS, assert_same_landscape, read, run_program
from torch import nn
from torch.nn import functional as F

from hpc_landscape.campaign.data import read_data
from hpc_landscape.campaign.directions import Reader, broadcast_directions
from hpc_landscape.campaign.fallback import Choice, take_near_enough
from hpc_landscape.campaign.modes import first_mode
from hpc_landscape.campaign.plan import Plan
from hpc_landscape.evaluate import evaluator as evaluator_module
from hpc_landscape.evaluate.build import EvaluatorBuilder, ProblemSubject, _check_compiled
from hpc_landscape.evaluate.evaluator import Evaluator
from hpc_landscape.evaluate.execution import PLAIN, ExecutionMode, Recast, compiled, compute_dtypes
from hpc_landscape.evaluate.normalization import choose_normalization
from hpc_landscape.grid import Axis, Grid
from hpc_landscape.metrics import Accuracy, Data, Loss
from hpc_landscape.metrics.registry import MetricRegistry
from hpc_landscape.model import state
from hpc_landscape.model.batchnorm import batch_statistics, batchnorm_layers
from hpc_landscape.model.placement import Placement
from hpc_landscape.model.wrapper import wrap_model
from hpc_landscape.ranks.base import SerialComm
from hpc_landscape.settings import Settings

IMAGES = f"{PROBLEMS / 'small_problem_for_tests.py'}:images"
POINTS = [(0.0, 0.0), (0.5, -0.25), (1.0, 1.0), (-0.7, 0.3), (0.1, 0.9)]
COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


pytestmark = pytest.mark.usefixtures("one_thread")


def made(
    mode: ExecutionMode, bn: str = "warmup", sizes=(8, 8, 6), model: nn.Module | None = None, moves=None
) -> Evaluator:
    problem = images()
    model = problem.model if model is None else model
    generator = torch.Generator().manual_seed(2)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    moves = moves or [{n: 0.3 * torch.randn(s, generator=generator) for n, s in shapes.items()} for _ in "xy"]
    x, y = problem.data
    if mode.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    data = Data(list(zip(x.split(sizes), y.split(sizes), strict=True)))
    placement = Placement(
        state.parameters(model),
        moves,
        compute_dtypes=compute_dtypes(model, mode.compute_dtype),
        channels_last=mode.channels_last,
        rows=mode.points,
    )
    metrics = {"loss": Loss(problem.loss, data), "accuracy": Accuracy(data)}
    return Evaluator(wrap_model(model), placement, metrics, bn, data, execution=mode)


def losses(evaluator: Evaluator, points=POINTS) -> np.ndarray:
    size = evaluator.execution.points
    with evaluator.attached():
        found = [v["loss"] for i in range(0, len(points), size) for v in evaluator.evaluate(points[i : i + size])]
    return np.array(found)


@pytest.mark.parametrize("bn", ["warmup", "running", "batch"])
@pytest.mark.parametrize(
    "mode",
    [
        ExecutionMode(channels_last=True),
        ExecutionMode(stacked=3),
        ExecutionMode(stacked=5, channels_last=True),
        pytest.param(ExecutionMode(compiled="default"), marks=COMPILER),
    ],
    ids=str,
)
def test_the_same_as_the_plain_mode(mode, bn):
    if mode.compiled and bn != "warmup":
        pytest.skip("compiling takes long: once")
    np.testing.assert_allclose(losses(made(mode, bn)), losses(made(PLAIN, bn)), rtol=2e-5)


@pytest.mark.parametrize(
    "mode",
    [PLAIN, ExecutionMode(channels_last=True), ExecutionMode(stacked=3), ExecutionMode(compute_dtype=torch.bfloat16)],
    ids=str,
)
def test_the_model_is_what_it_was(mode):
    model = images().model.train()
    before = {n: (t.data_ptr(), t.stride(), t.dtype, t.clone()) for n, t in state.state(model).items()}
    losses(made(mode, model=model))
    assert model.training
    for name, t in state.state(model).items():
        pointer, stride, dtype, value = before[name]
        assert (t.data_ptr(), t.stride(), t.dtype) == (pointer, stride, dtype) and torch.equal(t, value)


# Channels last


def test_weights_and_images_are_in_that_order():
    evaluator = made(ExecutionMode(channels_last=True))
    seen = []
    model = evaluator.model.get_model()

    def look(module, inputs, output):
        seen.append([t.is_contiguous(memory_format=torch.channels_last) for t in (module.weight, inputs[0], output)])

    model.conv.register_forward_hook(look)
    losses(evaluator, POINTS[1:2])
    assert seen and all(map(all, seen))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_so_is_what_a_first_layer_gives(channels, dtype):
    """Of images of one channel, too: there the weight's strides alone say which order is meant."""
    layer = nn.Conv2d(channels, 4, 3)
    mode = ExecutionMode(channels_last=True, compute_dtype=dtype)
    kinds = compute_dtypes(layer, dtype)
    placement = Placement(state.parameters(layer), [], compute_dtypes=kinds, channels_last=mode.channels_last)
    with placement.attached(layer), torch.no_grad():
        placement.place([])
        assert layer.weight.stride() == nn.Conv2d(channels, 4, 3).to(memory_format=torch.channels_last).weight.stride()
        output = layer(torch.randn(2, channels, 8, 8, dtype=dtype))
    assert output.is_contiguous(memory_format=torch.channels_last)


def test_a_network_that_views_its_images_is_evaluated_in_its_own_order(program):
    command = ("--problem", IMAGES, "--x=-1:1:3", "--y=none", "--channels_last")
    done = program(*command, "--problem.by_view=true", "--output=view.h5")
    assert done.code == 0 and "since this model" in done.out, done
    assert program(*command, "--output=flat.h5").code == 0
    with h5py.File("view.h5") as view, h5py.File("flat.h5") as flat:
        assert (view.attrs["execution"], flat.attrs["execution"]) == ("plain", "channels last")
        np.testing.assert_allclose(view["loss"][()], flat["loss"][()], rtol=1e-5)


# 16 bits


def test_a_point_is_cast_after_it_has_been_computed():
    """A step of a thousandth would vanish in bfloat16: the point is computed in float32 first, and rounded once."""
    model = nn.Linear(4, 3)
    torch.manual_seed(0)
    moves = [{n: torch.randn(p.shape) for n, p in model.named_parameters()}]
    placement = Placement(state.parameters(model), moves, compute_dtypes=compute_dtypes(model, torch.bfloat16))
    placement.place([1e-3])
    for name, p in model.named_parameters():
        exact = p.detach().double() + 1e-3 * moves[0][name].double()
        assert placement.views[name].dtype == torch.bfloat16
        assert torch.equal(placement.views[name], exact.float().bfloat16())
        in_16_bits = p.detach().bfloat16() + 1e-3 * moves[0][name].bfloat16()
        if name == "weight":
            assert not torch.equal(placement.views[name], in_16_bits)  # the test can tell them apart


def test_batch_normalization_and_the_loss_stay_in_32_bits():
    evaluator = made(ExecutionMode(compute_dtype=torch.bfloat16))
    model, seen = evaluator.model.get_model(), {}
    for name, module in model.named_modules():
        if name in ("conv", "bn", "linear"):
            module.register_forward_hook(
                lambda m, i, o, name=name: seen.update({name: (i[0].dtype, m.weight.dtype, o.dtype)})
            )
    dtypes = []
    evaluator.metrics["loss"].criterion.loss_fn = lambda o, t: (dtypes.append(o.dtype), F.cross_entropy(o, t))[1]
    with evaluator.attached():
        evaluator(POINTS[1])
        assert model.bn.running_var.dtype == torch.float32
    low = torch.bfloat16
    assert seen == {"conv": (low, low, low), "bn": (low, torch.float32, low), "linear": (low, low, low)}
    assert set(dtypes) == {torch.float32}


def test_16_bits_are_near(program):
    for precision in ("fp32", "bf16"):
        options = (f"--precision={precision}", f"--output={precision}.h5", "--x=-1:1:3", "--y=-1:1:3")
        assert program("--problem", IMAGES, *options).code == 0
    exact, near = read("fp32.h5", "loss"), read("bf16.h5", "loss")
    assert 0 < np.abs(near - exact).max() < 0.05 * np.abs(exact).max()
    with h5py.File("bf16.h5") as file:
        assert file.attrs["execution"] == "channels last, weights in bfloat16"
        points, errors = file.attrs["execution_error_points"], file.attrs["execution_error_differences_loss"]
        assert len(set(points)) == len(points) == len(errors) == 9
        np.testing.assert_allclose(errors, (near - exact).flat[points], rtol=1e-2, atol=1e-6)
        assert file.attrs["execution_error_loss"] == pytest.approx(np.abs(errors).max())  # all points were computed
        assert np.abs(near - exact).max() <= 1.01 * file.attrs["execution_error_loss"]


# Blocks


@pytest.mark.parametrize("bn", ["warmup", "running"])
def test_a_value_does_not_depend_on_its_neighbours(bn):
    """Nor on its place in the block, nor on how full the block is: bitwise."""
    mode = ExecutionMode(stacked=4)
    alone = {point: losses(made(mode, bn), [point])[0] for point in POINTS}
    for order in (POINTS, POINTS[::-1], [POINTS[2], POINTS[0], POINTS[2], POINTS[4]]):
        assert losses(made(mode, bn), order).tolist() == [alone[point] for point in order]


def test_a_block_with_a_far_point_leaves_its_neighbours_alone():
    """What is not finite stays at its own point, also in the next block."""
    mode, far = ExecutionMode(stacked=2), (1e19, -1e19)
    expected = losses(made(mode), [POINTS[1]])[0]
    found = losses(made(mode), [far, POINTS[1], POINTS[1], far])
    assert found[1] == found[2] == expected and not np.isfinite(found[[0, 3]]).any()


def test_parameters_in_memory_are_origin_directions_and_a_block():
    placement = made(ExecutionMode(stacked=3)).placement
    (flat,) = placement._flats
    assert flat.points.shape == (3, flat.origin.numel()) and len(flat.directions) == 2
    assert flat.cast is flat.points


def test_ranks_and_blocks_that_are_not_full(tmp_path):
    for output, ranks in (("one.h5", None), ("three.h5", 3)):
        options = ("--problem", IMAGES, "--x=-1:1:4", "--y=-1:1:3", "--block=5", "--plot=false", f"--output={output}")
        done = run_program(*options, folder=tmp_path, ranks=ranks)
        assert done.code == 0 and "5 points at a time" in done.out, done
    assert_same_landscape(tmp_path / "three.h5", tmp_path / "one.h5")


def test_a_network_without_batch_normalization():
    x, y = torch.randn(12, 4), torch.randint(3, (12,))
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    moves = [{n: torch.randn(p.shape) for n, p in model.named_parameters()}]
    data = Data([(x[:8], y[:8]), (x[8:], y[8:])])
    metrics = {"loss": Loss(nn.CrossEntropyLoss(), data)}
    found = []
    for mode in (PLAIN, ExecutionMode(stacked=3)):
        placement = Placement(state.parameters(model), moves, rows=mode.stacked)
        found.append(
            losses(
                Evaluator(wrap_model(model), placement, metrics, "warmup", data, execution=mode),
                [(0.0,), (0.5,), (2.0,)],
            )
        )
    np.testing.assert_allclose(*found, rtol=1e-5)


# What cannot be done


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--block=4", "--problem.twice=true"), "not used exactly once"),
        (("--block=4", "--problem.loss=item"), "since this model cannot be evaluated as asked for"),
    ],
)
def test_a_mode_that_a_model_cannot_take_falls_back(program, options, why):
    grid = ("--x=-1:1:3", "--y=none")
    done = program("--problem", IMAGES, *grid, *options, "--output=asked.h5")
    assert done.code == 0 and why in done.out, done
    plain = [option for option in options if "--block" not in option]
    assert program("--problem", IMAGES, *grid, *plain, "--output=plain.h5").code == 0
    np.testing.assert_array_equal(read("asked.h5", "loss"), read("plain.h5", "loss"))
    with h5py.File("asked.h5") as file:
        assert file.attrs["execution"] == "channels last"


def test_an_unfinished_file_goes_on_in_its_own_form(program, tmp_path):
    command = ("--problem", IMAGES, "--x=-1:1:5", "--y=none")
    assert program(*command, "--block=2").code == 0
    whole = read("landscape.h5", "loss")
    with h5py.File("landscape.h5", "r+") as file:
        file["done"][1:4] = 0
    before = (tmp_path / "landscape.h5").read_bytes()
    done = program(*command)
    assert done.code == 2 and "execution" in done.err, done
    assert (tmp_path / "landscape.h5").read_bytes() == before
    assert program(*command, "--block=2").code == 0
    np.testing.assert_array_equal(read("landscape.h5", "loss"), whole)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--block=0",), "--block 0"),
        (("--block=2", "--compile"), "--compile --block 2"),
        (("--block=2", "--metrics=loss,gradient_norm"), "gradient_norm is computed one point at a time"),
    ],
)
def test_mistakes_are_one_line(program, tmp_path, options, said):
    done = program("--problem", IMAGES, *options)
    assert done.code == 2 and done.err.count("\n") == 1 and said in done.err, done
    assert not (tmp_path / "landscape.h5").exists()


@COMPILER
def test_compiled(program):
    """In the program, a last batch of another size among the batches."""
    command = ("--problem", IMAGES, "--x=-1:1:3", "--y=none", "--batch_size=8")
    assert program(*command, "--compile", "--output=compiled.h5").code == 0
    assert program(*command, "--output=plain.h5").code == 0
    with h5py.File("compiled.h5") as file:
        assert file.attrs["execution"] == "channels last, compiled" and file.attrs["execution_error_loss"] < 1e-4
    np.testing.assert_allclose(read("compiled.h5", "loss"), read("plain.h5", "loss"), rtol=2e-5)


def test_a_graph_that_takes_no_notice_of_train_mode_is_found():
    """As torch.compile of PyTorch 2.1 makes it: in a pass that measures it normalizes by the batch in hand."""
    eager, stale = made(PLAIN), made(PLAIN)
    _check_compiled(stale, eager)
    stale.fast = Recast(stale.model, _in_train_mode(stale.model))
    with pytest.raises(ValueError, match="compiles it to something else: loss"):
        _check_compiled(stale, eager)


def _in_train_mode(model):
    def call(x):
        with batch_statistics(batchnorm_layers(model)):
            return model.forward(x)

    return call


@pytest.mark.parametrize("off", [0.0, 1e-3, 0.1])
def test_the_error_of_tf32_is_against_float32(monkeypatch, off):
    """As where there is a GPU; on a CPU both are float32, and what is off is made so here. It falls back, too."""
    seen = []
    real, real_matmul = Choice._values, evaluator_module.matmul
    monkeypatch.setattr(evaluator_module, "matmul", lambda p: seen.append(p) or real_matmul("fp32"))
    monkeypatch.setattr(
        Choice,
        "_values",
        lambda c, e, at: [{n: v + v * off * (e is c.fast) for n, v in d.items()} for d in real(c, e, at)],
    )
    settings, problem, comm, cpu = Settings(precision="tf32"), images(), SerialComm(), torch.device("cpu")
    sets = read_data(problem, settings.for_evaluation, 0, 0.5, True, comm, [cpu])
    asked, reader = settings.for_directions, Reader(problem, settings.for_problem)
    directions = broadcast_directions(asked, 2, problem, reader, [], None, None, "device", comm)
    policy = choose_normalization("warmup", problem.wrapper)
    subject = ProblemSubject(problem, directions, cpu, None)
    builder = EvaluatorBuilder(subject, sets, cpu, policy, "tf32", 0, settings.for_speed)
    evaluator, data = builder.build(first_mode(builder, comm, print))
    registry = MetricRegistry(problem, data, subject.loss)
    evaluator.metrics = {"loss": Loss(registry.criterion, data[""])}
    grid = Grid(Axis(-1, 1, 3), Axis(-1, 1, 3))
    plan = Plan(settings.for_output, settings.for_evaluation, asked, problem, grid, directions, evaluator, [], sets)
    seen.clear()
    take_near_enough(plan, builder, registry, comm)
    assert {*seen} == {"fp32", "tf32"}
    found = plan.evaluator, plan.evaluator.precision, plan.evaluator.execution
    if off > 1e-2:
        assert found[0] is not evaluator and found[1:] == ("fp32", evaluator.execution)
        assert not plan.execution_errors.differences
        assert plan.record["given_up"].startswith("tf32: loss is off by ")
        return
    assert found == (evaluator, "tf32", evaluator.execution) and "given_up" not in plan.record
    assert plan.execution_errors.relative["loss"] == pytest.approx(off)
    assert len(plan.execution_errors.points) == 9


def test_models_are_compiled_however_many_there_have_been(monkeypatch):
    """PyTorch counts all that one function calls, the wrapper's own call, say, and gives up after 8."""
    import torch._dynamo
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: original(function, backend=counter, dynamic=False))
    kept = []
    for i in range(12):
        model = nn.Linear(3, 2 + i)
        kept.append((model, compiled(wrap_model(model), "default")))
        with torch.no_grad():
            kept[-1][1](torch.zeros(4, 3))
    assert counter.frame_count == 12
