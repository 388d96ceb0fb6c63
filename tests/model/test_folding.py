"""Batch normalization folded into the layer before it: only where nobody else takes notice of that layer's output."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from hpc_landscape.evaluate.evaluator import Evaluator
from hpc_landscape.evaluate.execution import ExecutionMode
from hpc_landscape.metrics import Data, Loss
from hpc_landscape.model import state
from hpc_landscape.model.folding import OtherFlow, find_pairs, folded
from hpc_landscape.model.placement import Placement
from hpc_landscape.model.wrapper import wrap_model
from hpc_landscape.problems.digits import SmallResNet

X = torch.randn(20, 3, 9, 9, generator=torch.Generator().manual_seed(0))


class Pair(nn.Module):
    """A convolution, a normalization, and what else is done with what the convolution gives."""

    def __init__(self, how: str = "plain", bias: bool = True, affine: bool = True):
        super().__init__()
        self.how, self.kept = how, []
        self.conv, self.norm = nn.Conv2d(3, 5, 3, padding=1, bias=bias), nn.BatchNorm2d(5, affine=affine)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)
        self.other = nn.BatchNorm2d(5)
        if affine:
            nn.init.normal_(self.norm.weight)
            nn.init.normal_(self.norm.bias)
        if how == "hooked":
            self.conv.register_forward_hook(lambda *_: None)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "keyword":
            return self.norm(input=self.conv(x))
        if self.how == "another norm, too":
            y = self.conv(x)
            return self.norm(y) + self.other(y)
        if self.how == "another norm, before":
            y = self.conv(x)
            return self.other(y) + self.norm(y)
        if self.how == "other weights":
            own = {"weight": 2 * self.conv.weight, "bias": self.conv.bias}
            return self.norm(functional_call(self.conv, own, (x,)))
        if self.how == "differentiated":
            with torch.enable_grad():
                return self.norm(self.conv(x))
        y = self.conv(x)
        z = self.norm(y + 0 if self.how == "another tensor" else y)
        if self.how == "read":
            return z + y.mean()
        if self.how == "viewed":
            self.kept.append(y.detach())
        if self.how == "held":
            self.kept.append(y)
        if self.how == "returned":
            return z, y
        if self.how == "twice":
            return z + self.norm(self.conv(x + 1))
        if self.how == "written":
            y.zero_()
        return z


def pairs_of(model: nn.Module, x: Tensor = X) -> tuple:
    with torch.no_grad():
        return find_pairs(model, lambda: model(x), least=0)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_a_pair_is_found_and_computes_the_same(bias, affine):
    model = Pair("plain", bias, affine).eval()
    pairs = pairs_of(model)
    assert pairs == (("conv", "norm"),)
    with torch.no_grad():
        expected = model.double()(X.double())
        model.float()
        with folded(model, pairs, lambda: 0, lambda f: [f()]):
            found = model(X)
    assert (found - expected).abs().max() < 3e-6
    assert not {"forward"} & {*vars(model.conv), *vars(model.norm)}


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Linear(7, 5), nn.BatchNorm1d(5), (20, 7)),
        (nn.Conv1d(4, 6, 3, groups=2, stride=2), nn.BatchNorm1d(6), (8, 4, 30)),
        (nn.Conv3d(2, 4, 3, padding=1, padding_mode="circular"), nn.BatchNorm3d(4), (3, 2, 6, 6, 6)),
        (nn.Conv2d(3, 6, 3, dilation=2, padding="same", padding_mode="reflect"), nn.BatchNorm2d(6), (4, 3, 9, 9)),
    ],
    ids=lambda layers: type(layers[0]).__name__,
)
def test_every_kind_of_layer(layers):
    *modules, shape = layers
    model, x = nn.Sequential(*modules).eval(), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    modules[1].running_mean.normal_()
    modules[1].running_var.uniform_(0.5, 2)
    pairs = pairs_of(model, x)
    assert pairs == (("0", "1"),)
    with torch.no_grad():
        expected = model(x)
        with folded(model, pairs, lambda: 0, lambda f: [f()]):
            assert torch.allclose(model(x), expected, atol=2e-6)


def test_a_linear_layer_whose_features_are_not_what_is_normalized():
    model = nn.Sequential(nn.Linear(7, 9), nn.BatchNorm1d(9)).eval()
    assert pairs_of(model, torch.zeros(4, 9, 7)) == ()


@pytest.mark.parametrize(
    "how",
    ["read", "viewed", "held", "returned", "twice", "written", "another tensor", "hooked", "train", "other weights"]
    + ["differentiated", "keyword", "another norm, too", "another norm, before"],
)
def test_what_others_take_notice_of_is_left(how):
    model = Pair(how).eval()
    model.norm.training = how == "train"
    assert pairs_of(model) == ()


def test_a_residual_network_has_all_of_its_pairs():
    model = SmallResNet(8).eval()
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    pairs = pairs_of(model, torch.zeros(4, 1, 8, 8))
    assert sorted(norm for _, norm in pairs) == sorted(norms) and len(norms) > 5


def test_what_is_small_is_left():
    with torch.no_grad():
        assert find_pairs(Pair().eval(), lambda: None) == find_pairs(model := Pair().eval(), lambda: model(X)) == ()


class Depends(nn.Module):
    """Reads its convolution where the batch says so."""

    def __init__(self):
        super().__init__()
        self.pair, self.linear = Pair(), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x[0, 0, 0, 0] > 2:
            y = self.pair.conv(x)
            return self.linear((self.pair.norm(y.clone()) + y).mean((2, 3)))
        return self.linear(self.pair(x).mean((2, 3)))


def evaluator(model: nn.Module, batches: list, mode: ExecutionMode, bn: str = "warmup") -> Evaluator:
    origin = state.parameters(model)
    generator = torch.Generator().manual_seed(3)
    moves = [{n: 0.1 * torch.randn(p.shape, generator=generator) for n, p in origin.items()} for _ in "xy"]
    data = Data(batches)
    placement = Placement(origin, moves, channels_last=mode.channels_last, rows=mode.points)
    return Evaluator(wrap_model(model), placement, {"loss": Loss(F.cross_entropy, data)}, bn, data, execution=mode)


POINTS = [(0.0, 0.0), (0.3, -0.2), (1.0, 1.0)]


def values(*args, **keywords) -> list[float]:
    one = evaluator(*args, **keywords)
    with one.attached():
        return [
            value["loss"]
            for start in range(0, 3, one.execution.points)
            for value in one.evaluate(POINTS[start : start + one.execution.points])
        ]


def batches() -> list:
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.randn(n, 3, 9, 9, generator=generator), torch.randint(2, (n,), generator=generator)) for n in (20, 9)
    ]


def test_a_flow_that_turns_out_another_is_computed_as_it_is():
    model, data = Depends().eval(), batches()
    data[1][0][0, 0, 0, 0] = 3  # the batch that is tried goes the other way
    pairs = pairs_of(model, data[0][0])
    assert pairs == (("pair.conv", "pair.norm"),)
    assert values(model, data, ExecutionMode(folded=pairs)) == values(model, data, ExecutionMode())


def test_the_error_says_so_where_a_layer_is_used_another_way():
    model = Pair().eval()
    with torch.no_grad(), pytest.raises(OtherFlow), folded(model, (("conv", "norm"),), lambda: 0, lambda f: [f()]):
        model.conv(X)
    assert "forward" not in vars(model.conv)


@pytest.mark.parametrize("bn", ["warmup", "running"])
def test_folded_points_are_those_of_float64_and_the_same_together(bn):
    torch.manual_seed(0)
    model, data = nn.Sequential(Pair(), nn.ReLU(), nn.Flatten(), nn.Linear(405, 2)).eval(), batches()
    pairs = pairs_of(model, data[0][0])
    alone = values(model, data, ExecutionMode(folded=pairs), bn)
    together = values(model, data, ExecutionMode(folded=pairs, interleaved=3), bn)
    exact = values(model.double(), [(x.double(), y) for x, y in data], ExecutionMode(), bn)
    assert alone == together
    assert alone == pytest.approx(exact, rel=3e-7)
