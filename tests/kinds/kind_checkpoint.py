"""Checkpoints: what load_state_dict takes, whole or as a part of a file; of several networks the one that is named."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from case import Case
from torch import nn
from torch.nn.utils import parametrizations

from hpc_landscape import Problem


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(60, 4, generator=generator), torch.randint(0, 3, (60,), generator=generator)


def right(model: nn.Module) -> float:
    x, y = data()
    torch.optim.swa_utils.update_bn([x], model)
    return nn.functional.cross_entropy(model.eval()(x), y)


class Held(nn.Module):
    """A network under a name, as compile and parallel wrappers hold it."""

    def __init__(self, inner: nn.Module, name: str):
        super().__init__()
        self.name = name
        self.add_module(name, inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.get_submodule(self.name)(x)


class Renaming(nn.Sequential):
    """A model whose own load_state_dict knows the names that it had once."""

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict({k.replace("layer", ""): v for k, v in state_dict.items()}, strict, assign)


class Low(nn.Module):
    """A layer with an adapter of low rank, called as PEFT calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(4, 3)
        self.lora_A, self.lora_B = (nn.ModuleDict({"default": nn.Linear(*s, bias=False)}) for s in ((4, 2), (2, 3)))
        self.base_layer.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def normed(seed: int = 0, new: bool = True) -> nn.Module:
    torch.manual_seed(seed)
    make = parametrizations.weight_norm if new else nn.utils.weight_norm
    return nn.Sequential(make(nn.Linear(4, 8)), nn.Tanh(), nn.Linear(8, 3))


def adapted(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(OrderedDict(head=Low()))


def _problem(model: nn.Module) -> Problem:
    return Problem(model, nn.CrossEntropyLoss(), data())


def plain() -> Problem:
    return _problem(net())


def parallel() -> Problem:
    return _problem(nn.DataParallel(net()))


def compiled() -> Problem:
    return _problem(Held(net(), "_orig_mod"))


def named() -> Problem:
    return _problem(Held(net(), "encoder"))


def within() -> Problem:
    """A wrapper around a part: compiled block by block."""
    inner = list(net())
    return _problem(nn.Sequential(Held(inner[0], "_orig_mod"), *inner[1:]))


def renaming() -> Problem:
    return _problem(Renaming(*net()))


def outgrown() -> Problem:
    model = net()
    model._keys_to_ignore_on_load_unexpected = [r"0\.masked_bias"]
    return _problem(model)


def weight_normed() -> Problem:
    return _problem(normed())


def adapter() -> Problem:
    return _problem(adapted())


RAW, OTHER = net(1).state_dict(), net(2).state_dict()


def under(prefix: str, tensors: Any = RAW) -> dict[str, torch.Tensor]:
    return {prefix + key: t for key, t in tensors.items()}


def saved(content: Any) -> Callable[[Path], None]:
    return lambda folder: torch.save(content, folder / "a.pt")


def of(make: Callable[[], Problem], tensors: Any = RAW) -> Callable[[], nn.Module]:
    """The factory's model with these tensors, in their order."""

    def model() -> nn.Module:
        made = make().model
        nn.Module.load_state_dict(made, dict(zip(made.state_dict(), tensors.values(), strict=True)))
        return made

    return model


def case(name: str, content: Any, *options: str, factory: str = "plain", model: Any = None, **keywords: Any) -> Case:
    """One file for a model, by the program; refused ones have no right value."""
    keywords.setdefault("right", None if "refused" in keywords else right)
    model = model or of(globals()[factory])
    options = ["--checkpoint", "a.pt", *options]
    return Case(factory, model=model, options=options, prepare=saved(content), library=False, name=name, **keywords)


def old_normed() -> nn.Module:
    model = normed()
    model.load_state_dict(normed(1, False).state_dict())
    return model


def of_an_adapter() -> nn.Module:
    model = adapted()
    model.load_state_dict({k: t for k, t in adapted(1).state_dict().items() if "lora" in k}, strict=False)
    return model


def adapters(keep: str = "lora") -> dict[str, torch.Tensor]:
    tensors = adapted(1).state_dict()
    return {f"base_model.model.{k.replace('.default', '')}": t for k, t in tensors.items() if keep in k}


UNTRACKED = OrderedDict((k, t) for k, t in RAW.items() if "tracked" not in k)
SWA = torch.optim.swa_utils.AveragedModel(net(1)).state_dict()
EMA = {"state_dict": RAW, "state_dict_ema": under("module.", OTHER)}
TEACHER = {"state_dict": {**under("model."), **under("teacher.", OTHER)}}
OTHERS = of(plain, OTHER)

CASES = [
    case("untracked", {"state_dict": under("module.", UNTRACKED), "acc": 1.0}),
    case("old-weight-norm", normed(1, False).state_dict(), factory="weight_normed", model=old_normed, right=right),
    case("own-load", under("layer"), factory="renaming"),
    case("parallel", RAW, factory="parallel"),
    case("parallel-parallel", under("module."), factory="parallel"),
    case("compiled", under("module."), factory="compiled"),
    case("within", RAW, factory="within"),
    case("part-of-model", RAW, factory="named"),
    case("swa", SWA, said=["weights      a.pt; left out: n_averaged"]),
    case(
        "criterion", {"state_dict": {**under("model."), "criterion.w": torch.ones(3)}}, said=["left out: criterion.w"]
    ),
    case(
        "teacher", TEACHER, said=["its part state_dict.model; left out: teacher.*another that fits: state_dict.teacher"]
    ),
    case("teacher-by-key", TEACHER, "--checkpoint_key", "teacher", model=OTHERS),
    case("backbone", under("backbone.encoder.")),
    case("any-name", {"trainer": {"policy_weights": [RAW]}, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}),
    case("outgrown", {**RAW, "0.masked_bias": torch.ones(1)}, factory="outgrown", said=["left out: 0.masked_bias"]),
    case("list", [RAW, {"lr": 1}]),
    case(
        "ema", EMA, refused="2 networks that fit the model: state_dict, state_dict_ema; .*--checkpoint_key state_dict"
    ),
    case("ema-by-key", EMA, "--checkpoint_key", "state_dict_ema", model=OTHERS),
    case("flat-ema", {**RAW, **under("ema.", OTHER)}, refused="2 networks that fit the model: ., ema; "),
    case("flat-raw", {**RAW, **under("ema.", OTHER)}, "--checkpoint_key", ".", said=["left out: ema.0.weight"]),
    case("wrapped-and-not", {**RAW, **under("module.", OTHER)}, "--checkpoint_key", "module", model=OTHERS),
    case("twice-the-same", {"model": RAW, "best": {"net": dict(RAW)}}),
    case("no-such-key", EMA, "--checkpoint_key", "swa", refused="no such part; there are: state_dict, state_dict_ema"),
    case("truncated", dict(list(RAW.items())[:4]), refused="does not fit the model: it lacks 1.running_mean"),
    case("deeper", {**RAW, "4.weight": torch.ones(2)}, refused="does not fit the model: the model has no 4.weight"),
    case("wider", nn.Linear(4, 9).state_dict() | under("0.", nn.Linear(4, 9).state_dict()), refused="another architec"),
    case(
        "adapter",
        adapters(),
        factory="adapter",
        model=of_an_adapter,
        said=["it holds 2 of the model's 4 tensors; the ot"],
    ),
    case("half-an-adapter", adapters("lora_A"), factory="adapter", refused="it lacks .*head.lora_B.default.weight"),
]
