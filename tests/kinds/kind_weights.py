"""Losses whose mean is over something else than samples: class weights, ignored targets, elements, sums."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from case import Case
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hpc_landscape import Problem
from hpc_landscape.metrics import Accuracy, GradientNorm, Loss

N, VOID = 22, 255
WEIGHT = torch.tensor([0.2, 1.0, 3.0])


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).eval()


def images() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1)).eval()


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def labels() -> Tensor:
    return torch.arange(N) * 7 % 11 % 3


def void() -> tuple[Tensor, Tensor]:
    """Maps of which some pixels, and all of the second four images, are void."""
    y = torch.randint(0, 3, (N, 5, 5), generator=torch.Generator().manual_seed(1))
    for i in range(N):
        y[i, : i % 5] = VOID
    y[4:8] = VOID
    return draw(N, 3, 5, 5), y


def by_class(streamed: bool = False, smoothing: float = 0.0) -> Problem:
    data = draw(N, 4), labels()
    return Problem(
        net(),
        nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=smoothing),
        DataLoader(TensorDataset(*data), batch_size=5) if streamed else data,
    )


def class_right(model: nn.Module, smoothing: float = 0.0) -> Tensor:
    return F.cross_entropy(model(draw(N, 4)), labels(), WEIGHT, label_smoothing=smoothing)


def warm(model: nn.Module) -> Tensor:
    """Batches of 5, the last one of 2: by their sizes."""
    layer, x, seen = model[1], draw(N, 4), 0
    layer.reset_running_stats()
    layer.train()
    for part in x.split(5):
        seen += len(part)
        layer.momentum = len(part) / seen
        model(part)
    return class_right(model.eval())


def class_gradient(model: nn.Module) -> float:
    gradients = torch.autograd.grad(class_right(model), list(model.parameters()))
    return torch.cat([g.reshape(-1) for g in gradients]).norm().item()


def segmented(streamed: bool = False, log: bool = False) -> Problem:
    data = void()
    model = nn.Sequential(*images(), nn.LogSoftmax(1)).eval() if log else images()
    loss = nn.NLLLoss(ignore_index=VOID) if log else nn.CrossEntropyLoss(ignore_index=VOID)
    return Problem(model, loss, DataLoader(TensorDataset(*data), batch_size=4) if streamed else data)


def segmented_right(model: nn.Module) -> Tensor:
    x, y = void()
    return F.cross_entropy(model(x), y, ignore_index=VOID)  # log softmax of a log softmax is itself


def segmented_accuracy(model: nn.Module) -> float:
    x, y = void()
    return (model(x).argmax(1) == y)[y != VOID].double().mean().item()


class Lengths(torch.utils.data.IterableDataset):
    """Batches of maps, each of another size: the mean is over pixels."""

    def __iter__(self):
        for i in range(4):
            yield draw(3, 3, 4 + i, 5), draw(3, 3, 4 + i, 5).abs()


def pixels() -> Problem:
    return Problem(images(), nn.SmoothL1Loss(), DataLoader(Lengths(), batch_size=None))


def pixels_right(model: nn.Module) -> Tensor:
    pairs = [(model(x), y) for x, y in Lengths()]
    return torch.cat([F.smooth_l1_loss(o, y, reduction="none").reshape(-1) for o, y in pairs]).mean()


def functional(o: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(o, y, WEIGHT)


def written(counted: bool = False) -> Problem:
    loader = DataLoader(TensorDataset(draw(N, 4), labels()), batch_size=5)
    return Problem(net(), functional, loader, count=(lambda b: WEIGHT[b[1]].sum()) if counted else None)


def by_samples(model: nn.Module) -> float:
    pairs = zip(draw(N, 4).split(5), labels().split(5), strict=True)
    return sum(functional(model(x), y).item() * len(y) for x, y in pairs) / N


def counted_by(what: str) -> Problem:
    """A count that is none: which of the targets count, or nothing."""
    loader = DataLoader(TensorDataset(draw(N, 4), labels()), batch_size=5)
    return Problem(net(), functional, loader, count=(lambda b: b[1] > 0) if what == "mask" else lambda b: None)


def squares(o: Tensor, y: Tensor) -> Tensor:
    return ((o - y) ** 2).sum()


def total(module: bool = False, reduction: str | None = None, plain: bool = False) -> Problem:
    loss = nn.MSELoss(reduction="sum") if module else squares
    if plain:
        return Problem(net(), loss, (draw(N, 4), draw(N, 3)))
    loader = DataLoader(TensorDataset(draw(N, 4), draw(N, 3)), batch_size=5)
    return Problem(net(), loss, loader, reduction=reduction)


def total_right(model: nn.Module) -> Tensor:
    return squares(model(draw(N, 4)), draw(N, 3))


def functional_loss(name: str = "partial", streamed: bool = True) -> Problem:
    """A function of torch.nn.functional as it is, or with options: it counts like the module."""
    if name == "partial":
        loss, y = partial(F.cross_entropy, weight=WEIGHT), labels()
    else:
        loss, y = F.cross_entropy, late()
    return Problem(net(), loss, DataLoader(TensorDataset(draw(N, 4), y), batch_size=5) if streamed else (draw(N, 4), y))


def late() -> Tensor:
    """Ignored at the end alone."""
    return torch.where(torch.arange(N) < N - 4, labels(), -100)


def late_right(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(draw(N, 4)), late())


def sorted_by_kind() -> Problem:
    """A function of the user's, and a mean over all samples but in the last batches."""
    y = late()
    y[-1] = 0
    data = TensorDataset(draw(N, 4), y)
    return Problem(net(), lambda o, t: F.cross_entropy(o, t), DataLoader(data, batch_size=4))


def squeezed() -> Problem:
    """Its loss of a single sample raises: no notice is due."""
    torch.manual_seed(0)

    def loss(o: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(o.squeeze(), y)

    return Problem(nn.Linear(4, 1), loss, DataLoader(TensorDataset(draw(N, 4), labels().gt(0).float()), batch_size=5))


def squeezed_right(model: nn.Module) -> Tensor:
    return F.binary_cross_entropy_with_logits(model(draw(N, 4)).squeeze(), labels().gt(0).float())


def broadcast(module: bool = True) -> Problem:
    """(n, 1) against (n,): the mean over all pairs of a batch, which is hardly meant."""
    torch.manual_seed(0)
    loss = nn.MSELoss() if module else F.mse_loss
    return Problem(nn.Linear(4, 1), loss, DataLoader(TensorDataset(draw(N, 4), labels().float()), batch_size=5))


class Mixing(nn.Module):
    """Takes the mean of the batch off."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x - x.mean(0))


def mixing() -> Problem:
    return Problem(Mixing(), nn.CrossEntropyLoss(), DataLoader(TensorDataset(draw(N, 4), labels()), batch_size=5))


def beside() -> Problem:
    """The loss is a mean; what is stored beside it is not, and is named."""

    def loss(o: Tensor, y: Tensor) -> dict[str, Tensor]:
        mean = F.cross_entropy(o, y)
        return {"loss": mean, "perplexity": mean.exp()}

    return Problem(net(), loss, DataLoader(TensorDataset(draw(N, 4), labels()), batch_size=5))


def beside_a_count() -> Problem:
    """It is the loss that is named, though another term is further off."""

    def loss(o: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(o, y, WEIGHT), "count": len(y)}

    return Problem(net(), loss, DataLoader(TensorDataset(draw(N, 4), labels()), batch_size=5))


class Language(nn.Module):
    """Time first: the state goes from one step to the next, and from no sample to another."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.last = nn.LSTM(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.rnn(x)[0]).permute(0, 2, 1)


def windows() -> list[tuple[Tensor, Tensor]]:
    return list(zip(draw(18, 4, 4).split(6), (labels()[:18, None] * torch.arange(1, 5) % 3).split(6), strict=True))


def time_first() -> Problem:
    return Problem(Language(), nn.CrossEntropyLoss(), DataLoader(windows(), batch_size=None))


def time_first_right(model: nn.Module) -> float:
    return sum(F.cross_entropy(model(x), y).item() for x, y in windows()) / 3


def its_own() -> Problem:
    """The loss is 0 but for rounding, at the centre: no notice is due."""
    model = net()
    with torch.no_grad():
        data = TensorDataset(draw(N, 4), model(draw(N, 4)))
    return Problem(model, squared, DataLoader(data, batch_size=5))


def squared(o: Tensor, y: Tensor) -> Tensor:
    return ((o - y) ** 2).mean()


def noisy() -> Problem:
    """A mean over samples that draws: no notice is due."""

    def loss(o: Tensor, y: Tensor) -> Tensor:
        return ((o + 0.1 * torch.randn_like(o) - y) ** 2).mean()

    return Problem(net(), loss, DataLoader(TensorDataset(draw(N, 4), draw(N, 3)), batch_size=5))


def contrastive() -> Problem:
    """All pairs of a batch."""

    def loss(o: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(F.normalize(o) @ F.normalize(o).T / 0.3, torch.arange(len(o)))

    return Problem(net(), loss, DataLoader(TensorDataset(draw(20, 4), draw(20, 3)), batch_size=5))


def contrastive_right(model: nn.Module) -> float:
    loss = contrastive().loss
    return sum(loss(model(x), None).item() for x in draw(20, 4).split(5)) / 4


def two_sets() -> Problem:
    x, y = void()
    return Problem(images(), nn.CrossEntropyLoss(ignore_index=VOID), {"train": (x, y), "test": (x[:9], y[:9])})


def test_right(model: nn.Module) -> Tensor:
    x, y = void()
    return F.cross_entropy(model(x[:9]), y[:9], ignore_index=VOID)


RUNNING = ("--bn", "running")
FIVE = (*RUNNING, "--batch_size", "5")
NOTICE = r"the loss of a batch is .* weighed by samples, .* off\): it is no mean over these.*count=lambda batch"
SUM = r"is the sum of its parts' losses.*reduction=\"sum\""
BESIDE = r"the loss's term 'perplexity' of a batch is .* weighed by samples"
MIXES = r"the loss of a batch is .*the model mixes the samples of a batch, or output and target are of different shapes"
QUIET = {"warm_up": False}


def silent(run_text: str) -> str:
    """That no notice is in it."""
    return rf"\A(?!(.|\n)*the loss of a batch is)(.|\n)*{run_text}"


CASES = [
    Case("by_class", class_right, options=FIVE, **QUIET),
    Case("by_class", class_right, options=(*FIVE, "--block", "2"), **QUIET),
    Case("by_class", class_right, kwargs={"streamed": True}, options=(*RUNNING, "--resident", "0"), **QUIET),
    Case("by_class", warm, kwargs={"streamed": True}, name="warm"),
    Case("by_class", warm, kwargs={"streamed": True}, options=("--resident", "0"), name="warm-streamed"),
    Case("by_class", warm, options=("--batch_size", "5", "--block", "3"), library=False, name="warm-block"),
    Case(
        "by_class",
        lambda m: class_right(m, 0.2),
        kwargs={"streamed": True, "smoothing": 0.2},
        options=RUNNING,
        name="smoothed",
        **QUIET,
    ),
    Case(
        "by_class",
        class_right,
        {"gradient_norm": class_gradient},
        options=(*FIVE, "--metrics", "loss,gradient_norm"),
        library=False,
    ),
    Case(
        "by_class",
        class_gradient,
        {"gradient_norm": class_gradient},
        kwargs={"streamed": True},
        options=(*RUNNING, "--metrics", "gradient_norm"),
        library=lambda p: GradientNorm(p.loss, p.data),
        name="gradient",
        **QUIET,
    ),
    Case("by_class", class_right, kwargs={"streamed": True}, options=RUNNING, said=[silent("finished")], **QUIET),
    Case(
        "segmented", segmented_right, {"accuracy": segmented_accuracy}, options=(*RUNNING, "--batch_size", "4"), **QUIET
    ),
    Case(
        "segmented", segmented_right, {"accuracy": segmented_accuracy}, options=(*RUNNING, "--batch_size", "1"), **QUIET
    ),
    Case(
        "segmented",
        segmented_right,
        {"accuracy": segmented_accuracy},
        kwargs={"streamed": True},
        options=(*RUNNING, "--resident", "0"),
        **QUIET,
    ),
    Case(
        "segmented",
        segmented_right,
        {"accuracy": segmented_accuracy},
        options=(*RUNNING, "--batch_size", "4", "--block", "3"),
        **QUIET,
    ),
    Case(
        "segmented", segmented_right, kwargs={"log": True}, options=(*RUNNING, "--batch_size", "4"), name="nll", **QUIET
    ),
    Case(
        "segmented",
        segmented_accuracy,
        {"accuracy": segmented_accuracy},
        kwargs={"streamed": True},
        options=(*RUNNING, "--metrics", "accuracy"),
        library=lambda p: Accuracy(p.data),
        name="accuracy",
        **QUIET,
    ),
    Case("pixels", pixels_right, options=RUNNING, **QUIET),
    Case("written", by_samples, options=RUNNING, said=[NOTICE], library_said=[NOTICE], **QUIET),
    Case(
        "written",
        class_right,
        kwargs={"counted": True},
        options=RUNNING,
        said=[silent("finished")],
        name="counted",
        **QUIET,
    ),
    *(
        Case("counted_by", kwargs={"what": what}, options=RUNNING, refused=rf"count= gave a {line}: it must", name=what)
        for what, line in (("mask", r"Tensor of shape \(5,\)"), ("nothing", "NoneType"))
    ),
    Case("total", total_right, options=RUNNING, said=[SUM], library_said=[SUM], **QUIET),
    Case("total", total_right, kwargs={"plain": True}, options=FIVE, said=[SUM], name="sum-of-tensors", **QUIET),
    Case("total", total_right, kwargs={"module": True}, options=RUNNING, said=[silent("finished")], name="nn", **QUIET),
    Case(
        "total",
        total_right,
        kwargs={"reduction": "sum"},
        options=RUNNING,
        said=[silent("finished")],
        library=lambda p: Loss(p.loss, p.data, reduction="sum"),
        name="said",
        **QUIET,
    ),
    *(
        Case(
            "functional_loss",
            right,
            kwargs={"name": name},
            options=(*RUNNING, *more),
            said=[silent("finished")],
            name=f"functional-{name}{''.join(more)}",
            **QUIET,
        )
        for name, right in (("partial", class_right), ("late", late_right))
        for more in ((), ("--block", "2"), ("--resident", "0"))
    ),
    Case("sorted_by_kind", options=RUNNING, said=[NOTICE], **QUIET),
    Case("squeezed", squeezed_right, options=RUNNING, said=[silent("finished")], **QUIET),
    Case("broadcast", options=RUNNING, said=[MIXES], library_said=[MIXES], **QUIET),
    Case("broadcast", options=RUNNING, kwargs={"module": False}, said=[MIXES], name="broadcast-functional", **QUIET),
    Case("mixing", options=RUNNING, said=[MIXES], library_said=[MIXES], **QUIET),
    Case("beside", lambda m: F.cross_entropy(m(draw(N, 4)), labels()), options=RUNNING, said=[BESIDE], **QUIET),
    Case("beside_a_count", options=RUNNING, said=[NOTICE], **QUIET),
    Case("time_first", time_first_right, options=RUNNING, said=[silent("finished")], **QUIET),
    Case("its_own", options=RUNNING, said=[silent("finished")], **QUIET),
    Case("noisy", options=RUNNING, said=[silent("finished")], **QUIET),
    Case("contrastive", contrastive_right, options=RUNNING, said=[NOTICE], library_said=[NOTICE], **QUIET),
    Case(
        "two_sets",
        None,
        {"train_loss": segmented_right, "train_accuracy": segmented_accuracy, "test_loss": test_right},
        options=(*RUNNING, "--batch_size", "4"),
        library=False,
    ),
]
