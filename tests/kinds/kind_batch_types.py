"""What a batch may be: it comes to the model as it was made, on whatever device, from memory or read anew."""

from __future__ import annotations

import warnings
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from case import Case
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, Dataset

from hpc_landscape import Problem


class Encoding(UserDict):
    """As those of a tokenizer: a mapping with attributes, which moves itself in place."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, device: Any) -> Encoding:
        self.data = {key: value.to(device) for key, value in self.data.items()}
        return self


Pair = namedtuple("Pair", "x y")


class Named(Pair):
    """A named tuple whose constructor takes something else."""

    def __new__(cls, both: tuple[Tensor, Tensor]) -> Named:
        return super().__new__(cls, *both)


@dataclass(frozen=True)
class Frozen:
    x: Tensor
    y: Tensor


@dataclass
class Slotted:
    __slots__ = ("x", "y")
    x: Tensor
    y: Tensor


class Moving:
    """As a batch of graphs: it moves itself, in place, and a forward that writes into it must not be seen again."""

    def __init__(self, x: Tensor, y: Tensor):
        self.x, self.y, self.batch_size = x, y, len(y)

    def to(self, device: Any) -> Moving:
        self.x, self.y = self.x.to(device), self.y.to(device)
        return self


class Table(MutableMapping):
    """As a dict of tensors that is a class of its own."""

    def __init__(self, x: Tensor, y: Tensor):
        self.inner = {"x": x, "y": y}

    def __getitem__(self, key: str) -> Tensor:
        return self.inner[key]

    def __setitem__(self, key: str, value: Tensor) -> None:
        self.inner[key] = value

    def __delitem__(self, key: str) -> None:
        del self.inner[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.inner)

    def __len__(self) -> int:
        return len(self.inner)

    def __copy__(self) -> Table:
        return Table(**self.inner)

    def to(self, device: Any) -> Table:
        return Table(**{key: value.to(device) for key, value in self.inner.items()})

    x = property(lambda self: self["x"])
    y = property(lambda self: self["y"])


class Listed(list):
    x = property(lambda self: self[0])
    y = property(lambda self: self[1])


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def tensors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(22, 4, generator=generator), torch.randint(0, 3, (22,), generator=generator)


class Items(Dataset):
    def __len__(self) -> int:
        return 22

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        x, y = tensors()
        return x[i], y[i]


MAKERS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "encoding": lambda x, y: Encoding({"x": x, "y": y}),
    "named": lambda x, y: Named((x, y)),
    "frozen": Frozen,
    "slotted": Slotted,
    "moving": Moving,
    "table": Table,
    "listed": lambda x, y: Listed([x, y]),
    "inside": lambda x, y: (Encoding({"x": x, "y": y}), y),
    "ordered": lambda x, y: OrderedDict(x=x, y=y),
    "default": lambda x, y: defaultdict(lambda: None, x=x, y=y),
    "proxy": lambda x, y: MappingProxyType({"x": x, "y": y}),
}


def typed(kind: str) -> Problem:
    def collate(items: list[Any]) -> Any:
        x, y = zip(*items, strict=True)
        return MAKERS[kind](torch.stack(x), torch.stack(y))

    def of(batch: Any, name: str) -> Tensor:
        made = MAKERS[kind](torch.zeros(1, 4), torch.zeros(1))
        assert type(batch) is type(made), f"a {type(batch).__name__} instead of a {type(made).__name__}"
        if kind == "inside":
            batch = batch[0]
        return batch[name] if kind in ("ordered", "default", "proxy") else getattr(batch, name)

    def forward(model: nn.Module, batch: Any) -> Tensor:
        x = of(batch, "x")
        if kind == "moving":
            batch.x = x * 0
        if kind in ("default", "ordered"):
            batch.pop("x")
        return model(x)

    def loss(output: Tensor, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(output, of(batch, "y"))

    loader = DataLoader(Items(), batch_size=8, collate_fn=collate)
    return Problem(net(), loss, loader, forward=forward, count=lambda batch: len(of(batch, "y")))


def right(model: nn.Module) -> Tensor:
    x, y = tensors()
    return nn.functional.cross_entropy(model(x), y)


# Sequences of several lengths, packed


def sequences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 4, generator=generator) for n in (5, 4, 4, 2, 1)]


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.out = nn.LSTM(4, 6), nn.Linear(6, 3)

    def forward(self, x: PackedSequence) -> Tensor:
        return self.out(self.lstm(x)[1][0][0])


def packed() -> Problem:
    data = DataLoader([(pack_sequence(sequences()), torch.tensor([0, 1, 2, 0, 1]))], batch_size=None)
    return Problem(Tagger(), nn.CrossEntropyLoss(), data, count=lambda batch: len(batch[1]))


def packed_right(model: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(torch.cat([model(pack_sequence([s])) for s in sequences()]), tensors_of_packed())


def tensors_of_packed() -> Tensor:
    return torch.tensor([0, 1, 2, 0, 1])


# Sparse and nested tensors


LAYOUTS = {"coo": torch.sparse_coo, "csr": torch.sparse_csr, "csc": torch.sparse_csc, "bsr": torch.sparse_bsr}


def adjacency() -> Tensor:
    return (torch.rand(20, 20, generator=torch.Generator().manual_seed(0)) < 0.2).float()


def graph() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(20, 4, generator=generator), torch.randint(0, 3, (20,), generator=generator)


def sparse(layout: str) -> Tensor:
    kind = LAYOUTS[layout]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return adjacency().to_sparse(layout=kind, **({"blocksize": (2, 2)} if layout == "bsr" else {}))


def in_a_batch(layout: str) -> Problem:
    x, y = graph()
    adj = sparse(layout)

    def forward(model: nn.Module, batch: Any) -> Tensor:
        assert batch[1].layout == LAYOUTS[layout]
        return model(batch[1].to_dense() @ batch[0])

    data = DataLoader([(x, adj, y)], batch_size=None)
    loss = lambda output, batch: nn.functional.cross_entropy(output, batch[2])  # noqa: E731
    return Problem(net(), loss, data, forward=forward, count=lambda batch: 20)


class WithBuffer(nn.Module):
    def __init__(self, adj: Tensor):
        super().__init__()
        self.net = net()
        self.register_buffer("adj", adj)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.adj.to_dense() @ x)


def in_a_buffer(layout: str) -> Problem:
    return Problem(WithBuffer(sparse(layout)), nn.CrossEntropyLoss(), DataLoader([graph()], batch_size=None))


def buffered(layout: str, **rest: Any) -> Case:
    """The directions are added to a model with a dense buffer: PyTorch cannot copy all kinds of sparse ones."""
    return Case("in_a_buffer", dense, kwargs={"layout": layout}, model=lambda: WithBuffer(adjacency()), **rest)


def dense(model: nn.Module) -> Tensor:
    x, y = graph()
    return nn.functional.cross_entropy(getattr(model, "net", model)(adjacency() @ x), y)


class Words(nn.Module):
    """A bag of words: the input is a sparse matrix, a row for each text."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(20, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sparse.mm(x, self.weight) if x.layout != torch.strided else x @ self.weight


def words(layout: str) -> Problem:
    return Problem(Words(), nn.CrossEntropyLoss(), (sparse(layout), graph()[1]))


def words_right(model: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(model(adjacency()), graph()[1])


def nested(layout: str) -> Problem:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind = torch.strided if layout == "strided" else torch.jagged
        x = torch.nested.nested_tensor([s.clone() for s in sequences()], layout=kind)

    def forward(model: nn.Module, batch: Any) -> Tensor:
        assert batch[0].is_nested
        return torch.stack([model(s).mean(0) for s in batch[0].unbind()])

    loss = lambda output, batch: nn.functional.cross_entropy(output, batch[1])  # noqa: E731
    data = DataLoader([(x, tensors_of_packed())], batch_size=None)
    return Problem(net(), loss, data, forward=forward, count=lambda batch: 5)


def nested_right(model: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(torch.stack([model(s).mean(0) for s in sequences()]), tensors_of_packed())


CASES = [
    *(Case("typed", right, kwargs={"kind": kind}, warm_up=False, name=kind) for kind in MAKERS),
    *(
        Case("typed", right, kwargs={"kind": kind}, options=["--resident", "0"], library=False, name=f"{kind}-streamed")
        for kind in ("encoding", "moving")
    ),
    Case("typed", right, kwargs={"kind": "frozen"}, options=["--precision", "fp64"], library=False, name="frozen-fp64"),
    Case("packed", packed_right, warm_up=False),
    *(Case("in_a_batch", dense, kwargs={"layout": k}, warm_up=False, name=f"{k}-batch") for k in LAYOUTS),
    *(buffered(k, warm_up=False, name=f"{k}-buffer") for k in LAYOUTS),
    *(buffered(k, options=["--save_model"], library=False, name=f"{k}-saved") for k in LAYOUTS),
    *(Case("words", words_right, kwargs={"layout": k}, warm_up=False, name=f"{k}-words") for k in ("coo", "csr")),
    Case("words", words_right, kwargs={"layout": "csr"}, options=["--batch_size", "7"], library=False, name="batches"),
    *(Case("nested", nested_right, kwargs={"layout": k}, warm_up=False, name=k) for k in ("strided", "jagged")),
]
