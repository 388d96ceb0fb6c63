"""What a batch weighs: however data is cut into batches, a loss of torch.nn is what it is on all of it at once."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hpc_landscape import UserError
from hpc_landscape.landscape import point
from hpc_landscape.metrics import (
    Accuracy,
    Data,
    GradientNorm,
    HessianTrace,
    Loss,
    LossGradient,
    LossTerm,
    PrincipalCurvatureEvaluator,
)
from hpc_landscape.model.wrapper import wrap_model

CUTS = (1, 4, 9, 12)  # of 12 samples


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


CLASSES = torch.tensor([0, 2, 1, -1, 2, 2, 0, -1, -1, 1, 0, 2])
POSITIVE = CLASSES.clamp(min=0)
MAPS = torch.stack([CLASSES.roll(i) for i in range(12)])
SOFT = draw(12, 3).softmax(1)
LABELS = torch.stack([torch.tensor([c, -1, -1]) for c in POSITIVE.tolist()])  # MultiLabelMarginLoss's way
WEIGHT = torch.tensor([0.1, 1.0, 4.0])
SIGNS = (POSITIVE[:, None] != torch.arange(3)).float() * 2 - 1
ANY = draw(12, 3) * 2

LOSSES = [
    (nn.CrossEntropyLoss(ignore_index=-1), CLASSES),
    (nn.CrossEntropyLoss(ignore_index=-1, weight=WEIGHT), CLASSES),
    (nn.CrossEntropyLoss(ignore_index=-1, weight=WEIGHT, label_smoothing=0.3), CLASSES),
    (nn.CrossEntropyLoss(ignore_index=2, label_smoothing=0.3), POSITIVE),
    (nn.CrossEntropyLoss(weight=WEIGHT), SOFT),
    (nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1), SOFT),
    (nn.NLLLoss(ignore_index=-1, weight=WEIGHT), CLASSES),
    (nn.BCEWithLogitsLoss(pos_weight=WEIGHT, weight=WEIGHT), SOFT),
    (nn.KLDivLoss(), SOFT),
    (nn.KLDivLoss(reduction="batchmean"), SOFT),
    (nn.KLDivLoss(reduction="sum"), SOFT),
    (nn.MSELoss(), ANY),
    (nn.MSELoss(reduction="sum"), ANY),
    (nn.L1Loss(), ANY),
    (nn.HuberLoss(), ANY),
    (nn.SmoothL1Loss(), ANY),
    (nn.PoissonNLLLoss(full=True), ANY.abs()),
    (nn.SoftMarginLoss(), SIGNS),
    (nn.HingeEmbeddingLoss(), SIGNS),
    (nn.MultiMarginLoss(weight=WEIGHT), POSITIVE),
    (nn.MultiLabelMarginLoss(), LABELS),
    (nn.MultiLabelSoftMarginLoss(weight=WEIGHT), SOFT.round()),
]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3)).double().eval()


def cut(target: torch.Tensor) -> Data:
    """Batches of 1, 3, 5 and 3 samples."""
    x = draw(12, 2).double()
    edges = [0, *CUTS]
    return Data([(x[a:b], target[a:b]) for a, b in zip(edges, edges[1:], strict=False)])


def wide(loss: nn.Module, target: torch.Tensor) -> tuple[nn.Module, torch.Tensor]:
    return loss.double(), target.double() if target.is_floating_point() else target


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
@pytest.mark.parametrize(
    ("loss", "target"), [pytest.param(*pair, id=f"{i}-{pair[0]}") for i, pair in enumerate(LOSSES)]
)
def test_batches_of_any_size_give_the_loss_of_all(loss, target):
    loss, target = wide(loss, target)
    model, x = net(), draw(12, 2).double()
    right = loss(model(x), target)
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(right, list(model.parameters()))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "reduction: 'mean' divides")
        np.testing.assert_allclose(point(model, Loss(loss, cut(target))), right.item(), rtol=1e-12)
        np.testing.assert_allclose(
            point(model, LossGradient(loss, cut(target))), gradient.numpy(), rtol=1e-9, atol=1e-13
        )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_curvature_over_batches_is_that_of_all(reduction):
    loss = nn.CrossEntropyLoss(ignore_index=-1, weight=WEIGHT.double(), reduction=reduction)
    whole = Data(draw(12, 2).double(), CLASSES)
    for metric in (
        lambda data: PrincipalCurvatureEvaluator(loss, data, n=2),
        lambda data: HessianTrace(loss, data, n_vectors=3),
        lambda data: GradientNorm(loss, data),
    ):
        np.testing.assert_allclose(point(net(), metric(cut(CLASSES))), point(net(), metric(whole)), rtol=1e-9)


def test_maps_of_classes():
    """(n, classes, length) against (n, length), one sample all ignored."""
    y = MAPS.clone()
    y[0] = -1
    model = nn.Sequential(nn.Linear(2, 36), nn.Unflatten(1, (3, 12))).double().eval()
    loss = nn.CrossEntropyLoss(ignore_index=-1)
    output = model(draw(12, 2).double())
    np.testing.assert_allclose(point(model, Loss(loss, cut(y))), loss(output, y).item(), rtol=1e-12)
    right = (output.argmax(1) == y)[y != -1].double().mean().item()
    assert point(model, Accuracy(cut(y))) == pytest.approx(right, rel=1e-12)
    best = (output.topk(2, 1).indices == y[:, None]).any(1)[y != -1].double().mean().item()
    assert point(model, Accuracy(cut(y), k=2)) == pytest.approx(best, rel=1e-12)


def test_a_class_that_accuracy_is_to_leave_out():
    model, x = net(), draw(12, 2).double()
    right = (model(x).argmax(1) == POSITIVE)[POSITIVE != 0].double().mean().item()
    assert point(model, Accuracy(cut(POSITIVE), ignore_index=0)) == pytest.approx(right, rel=1e-12)


def test_nothing_but_ignored_targets_is_nan():
    nothing = torch.full((12,), -100)
    assert np.isnan(point(net(), Loss(nn.CrossEntropyLoss(), cut(nothing))))
    assert np.isnan(point(net(), Accuracy(cut(nothing))))


class Focal(nn.CrossEntropyLoss):
    """Counts in a way of its own: nothing is derived from its parent."""

    def forward(self, output, target):
        loss = F.cross_entropy(output, target, reduction="none")
        return ((1 - (-loss).exp()) ** 2 * loss).mean()


def test_a_module_with_a_forward_of_its_own_is_a_mean_over_samples():
    loss, model = Focal(weight=WEIGHT), net()
    right = loss(model(draw(12, 2).double()), POSITIVE).item()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.allclose(point(model, Loss(loss, cut(POSITIVE))), right, rtol=1e-12)


def test_the_users_count_wins():
    loss, data = nn.CrossEntropyLoss(weight=WEIGHT.double()), cut(POSITIVE)
    counted = Data(data.batches, count=lambda batch: torch.tensor(len(batch[1])))
    model = net()
    by_hand = sum(loss(model(x), y).item() * len(y) for x, y in data.batches) / 12
    with pytest.warns(UserWarning, match="weighed by count.*the count= given is not what"):
        assert Loss(loss, counted)(wrap_model(model)) == pytest.approx(by_hand, rel=1e-12)


def test_terms():
    loss, data = (lambda o, y: {"a": F.cross_entropy(o, y), "b": (o**2).mean()}), cut(POSITIVE)
    model = net()
    output = model(draw(12, 2).double())
    a, b = F.cross_entropy(output, POSITIVE).item(), (output**2).mean().item()
    assert point(model, Loss(loss, data)) == pytest.approx(a + b, rel=1e-12)
    assert point(model, LossTerm(loss, "b", data)) == pytest.approx(b, rel=1e-12)
    with pytest.raises(UserError, match="no term 'c'; it has a, b"):
        point(model, LossTerm(loss, "c", data))


def test_a_loss_without_data_of_the_model_that_it_is_given():
    model = net()
    squares = sum((p**2).sum() for p in model.parameters())
    metric = GradientNorm(lambda m: sum((p**2).sum() for p in m.parameters()))
    assert point(model, metric) == pytest.approx(2 * squares.sqrt().item(), rel=1e-12)
    with pytest.raises(UserError, match="give the metric inputs"):
        Loss(F.mse_loss)
    with pytest.raises(UserError, match="leave out the data"):
        Loss(lambda: 0.0, draw(2, 2), draw(2, 2))
