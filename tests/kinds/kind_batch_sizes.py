"""Batches of which it is not plain how many samples they hold, and batches that are not (input, target)."""

from __future__ import annotations

from collections import namedtuple

import torch
import torch.nn.functional as F
from case import Case
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset

from hpc_landscape import Problem

N = 11


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Items(Dataset):
    """What there are N of."""

    def __init__(self, item):
        self.item = item

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int):
        return self.item(i)


def loader(item, collate=None) -> DataLoader:
    """Batches of 4, 4 and 3."""
    return DataLoader(Items(item), batch_size=4, collate_fn=collate)


def by_hand(problem: Problem, model: nn.Module, size) -> float:
    """Each batch's loss by how many samples it is known to hold."""
    total = 0.0
    for batch in problem.data:
        output = problem.forward(model, batch) if problem.forward else model(batch[0])
        total += problem.loss(output, batch if problem.forward else batch[1]).item() * size(batch)
    return total / N


class Recurrent(nn.Module):
    """The last state of a sequence, padded time first or packed."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.last = nn.GRU(3, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.last(self.rnn(x)[1][0])


def sequence(i: int) -> tuple[Tensor, Tensor]:
    return draw(6 - i // 4, 3, seed=i), draw(2, seed=100 + i)


def time_first() -> Problem:
    return Problem(
        Recurrent(),
        lambda o, y: F.mse_loss(o, y),
        loader(sequence, lambda items: (pad_sequence([x for x, _ in items]), torch.stack([y for _, y in items]))),
    )


def packed() -> Problem:
    return Problem(
        Recurrent(),
        lambda o, y: F.mse_loss(o, y),
        loader(sequence, lambda items: (pack_sequence([x for x, _ in items]), torch.stack([y for _, y in items]))),
    )


class Detector(nn.Module):
    """Images of any size, a tuple of them; for each a score and a box."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 5)

    def forward(self, images):
        states = self.norm(torch.cat([self.body(image[None]).mean((2, 3), keepdim=True) for image in images]))
        return self.head(states.flatten(1))


def scene(i: int) -> tuple[Tensor, dict]:
    return draw(3, 6 + i % 2, 7, seed=i), {"label": torch.tensor(i % 3), "box": draw(2, seed=i), "file": f"{i}.png"}


def detected(o: Tensor, batch) -> Tensor:
    labels, boxes = (torch.stack([t[key] for t in batch[1]]) for key in ("label", "box"))
    return F.cross_entropy(o[:, :3], labels) + F.l1_loss(o[:, 3:], boxes)


def detector() -> Problem:
    return Problem(
        Detector(),
        detected,
        loader(scene, lambda items: tuple(zip(*items, strict=True))),
        forward=lambda m, b: m(list(b[0])),
    )


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, s, d=None):
        if isinstance(s, (tuple, list)):
            s, d = s
        return self.a(s) + (0 if d is None else self.b(d))


def threes() -> Problem:
    """Each image has three channels and three boxes, and the last batch three images."""

    def item(i: int):
        return draw(3, 6, 7, seed=i), {"label": torch.full((3,), i % 3), "box": draw(3, 2, seed=i)}

    def loss(o: Tensor, batch) -> Tensor:
        return F.cross_entropy(o[:, :3], torch.stack([t["label"][0] for t in batch[1]]))

    return Problem(
        Detector(), loss, loader(item, lambda items: tuple(zip(*items, strict=True))), forward=lambda m, b: m(b[0])
    )


def nested() -> Problem:
    return Problem(Two(), nn.MSELoss(), loader(lambda i: ((draw(4, seed=i), draw(2, seed=i)), draw(3, seed=i))))


class Pair(Two):
    """Two arguments, and nothing else."""

    def forward(self, s, d):
        return self.a(s) + self.b(d)


def two_arguments() -> Problem:
    return Problem(Pair(), nn.MSELoss(), nested().data)


def parts() -> tuple[Tensor, Tensor, Tensor]:
    return draw(N, 4), draw(N, 2), draw(N, 3)


def three() -> Problem:
    return Problem(Two(), nn.MSELoss(), parts())


def said() -> Problem:
    return Problem(Two(), lambda o, b: F.mse_loss(o, b[2]), parts(), forward=lambda m, b: m(b[0], b[1]))


def said_right(model: nn.Module) -> Tensor:
    s, d, t = parts()
    return F.mse_loss(model(s, d), t)


def weighted_samples() -> Problem:
    """(input, target, weight of the sample), of a loader."""
    return Problem(Two(), nn.MSELoss(), loader(lambda i: (draw(4, seed=i), draw(3, seed=i), 1.0)))


def one() -> Problem:
    return Problem(Two(), nn.MSELoss(), (draw(N, 4),))


Sample = namedtuple("Sample", "s d target mask")


def named() -> Problem:
    """A named tuple of four, and a forward."""
    return Problem(
        Two(),
        lambda o, b: F.mse_loss(o, b.target),
        loader(lambda i: Sample(draw(4, seed=i), draw(2, seed=i), draw(3, seed=i), 1.0)),
        forward=lambda m, b: m(b.s, b.d),
    )


class Graphs:
    """A batch of graphs as PyG has it, but for what it says of itself."""

    def __init__(self, nodes: list[int], told: bool):
        self.x = torch.cat([draw(n, 4, seed=n) for n in nodes])
        self.y = torch.cat([draw(1, 3, seed=n) for n in nodes])
        self.of = torch.cat([torch.full((n,), i) for i, n in enumerate(nodes)])
        if told:
            self.num_graphs = len(nodes)

    def to(self, device, **how):
        return self


class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.b = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, g):
        nodes = self.b(torch.tanh(self.norm(self.a(g.x))))
        return torch.zeros(len(g.y), 3).index_add(0, g.of, nodes)


def graphs(told: bool = True, counted: bool = False, tensor: bool = False) -> Problem:
    count = (lambda g: torch.tensor(len(g.y)) if tensor else len(g.y)) if counted else None
    return Problem(
        Graph(),
        lambda o, g: F.mse_loss(o, g.y),
        loader(lambda i: 2 + i % 5, lambda nodes: Graphs(nodes, told)),
        forward=lambda m, g: m(g),
        count=count,
    )


class Disagreeing(IterableDataset):
    """Mappings whose parts differ in length: nodes and graphs."""

    def __iter__(self):
        for n in (4, 4, 3):
            yield {"x": draw(2 * n, 4, seed=n), "y": draw(n, 3, seed=n)}


def layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def disagreeing(counted: bool = False) -> Problem:
    return Problem(
        layers(),
        lambda o, b: F.mse_loss(o[::2], b["y"]),
        DataLoader(Disagreeing(), batch_size=None),
        forward=lambda m, b: m(b["x"]),
        count=(lambda b: len(b["y"])) if counted else None,
    )


def one_graph(as_tensors: bool = False) -> Problem:
    """x, edges, targets and a mask: one batch, whose weight does not matter."""
    graph = draw(9, 4), torch.arange(14).reshape(2, 7) % 9, draw(9, 3), draw(9) > 0

    def forward(m, g):
        h = m(g[0])
        return h + torch.zeros_like(h).index_add(0, g[1][1], h[g[1][0]])

    def loss(o, g):
        return F.mse_loss(o[g[3]], g[2][g[3]])

    return Problem(
        layers(),
        loss,
        graph if as_tensors else DataLoader([graph], batch_size=None),
        forward=forward,
    )


def one_graph_right(model: nn.Module) -> float:
    problem = one_graph()
    (graph,) = problem.data
    return warm(model, [graph], problem.forward, lambda g: 1) and problem.loss(problem.forward(model, graph), graph)


def warm(model: nn.Module, batches, forward, size) -> nn.Module:
    """Batch normalization as its definition says: by the sizes of the batches."""
    layer, seen = next(m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)), 0
    layer.reset_running_stats()
    layer.train()
    for batch in batches:
        seen += size(batch)
        layer.momentum = size(batch) / seen
        forward(model, batch)
    return model.eval()


def warmed(factory, size):
    def right(model: nn.Module) -> float:
        problem = factory()
        with torch.no_grad():
            return by_hand(problem, warm(model, problem.data, problem.forward, size), size)

    return right


def plainly(factory, size):
    return lambda model: by_hand(factory(), model, size)


of_target = {"size": lambda b: len(b[1])}
UNKNOWN = r"cannot tell how many samples a batch holds: .*count=lambda batch"
PARTS = r"a batch has 3 parts, not \(input, target\).*forward=lambda model, batch: model\(batch\[0\], batch\[1\]\)"
STREAMED = ("--resident", "0")

CASES = [
    Case("time_first", plainly(time_first, **of_target)),
    Case("packed", plainly(packed, **of_target)),
    Case("detector", warmed(detector, **of_target)),
    Case("detector", warmed(detector, **of_target), options=STREAMED),
    Case("threes", warmed(threes, **of_target), said=[r"\A(?!(.|\n)*cannot be taken apart)"]),
    Case("threes", warmed(threes, **of_target), options=(*STREAMED, "--batch_size", "1"), name="threes-streamed"),
    Case("nested", plainly(nested, **of_target), warm_up=False),
    Case("two_arguments", refused=r"a list of 2 parts \(.*forward=lambda model, batch: model\(\*batch\[0\]\)"),
    Case("three", refused=PARTS),
    Case("said", said_right),
    Case("said", said_right, options=("--batch_size", "3", "--block", "2")),
    Case("weighted_samples", refused=PARTS),
    Case("one", refused=r"a batch has 1 part, not \(input, target\).*forward=lambda model, batch: model\(batch\[0\]\)"),
    Case("named", plainly(named, lambda b: len(b.s))),
    Case("graphs", warmed(graphs, lambda g: len(g.y))),
    Case("graphs", refused=UNKNOWN, kwargs={"told": False}, name="untold"),
    Case("graphs", warmed(graphs, lambda g: len(g.y)), kwargs={"told": False, "counted": True}, name="counted"),
    Case(
        "graphs",
        warmed(graphs, lambda g: len(g.y)),
        kwargs={"told": False, "counted": True, "tensor": True},
        options=STREAMED,
        name="counted-by-a-tensor",
    ),
    Case("disagreeing", refused=UNKNOWN),
    Case("disagreeing", warmed(disagreeing, lambda b: len(b["y"])), kwargs={"counted": True}, name="agreed"),
    Case("one_graph", one_graph_right),
    Case(
        "one_graph",
        kwargs={"as_tensors": True},
        refused=r"different lengths.*DataLoader\(\[graph\], batch_size=None\)",
        library=False,
        name="one_graph-as-tensors",
    ),
]
