"""Data as batches in a fixed order: every form that a problem may give, against the samples themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from hpc_landscape.data.data import move
from hpc_landscape.data.prepare import Batches, LoaderBatches, TensorBatches, chosen, prepare, sample_count, slices
from hpc_landscape.errors import UserError

N = 22


class Squares(Dataset):
    """Item i is (i, i squared)."""

    def __init__(self, n: int = N):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if not 0 <= i < self.n:
            raise IndexError(i)
        return torch.tensor([float(i)]), i * i


class Stream(IterableDataset):
    def __init__(self, n: int = N):
        self.n = n

    def __iter__(self):
        return iter((torch.tensor([float(i)]), i * i) for i in range(self.n))


class Dicts(Squares):
    def __getitem__(self, i):
        return {"inputs": torch.tensor([float(i)]), "meta": {"label": i}}


class Augmented(Squares):
    def __getitem__(self, i):
        return torch.tensor([i + torch.rand(()).item()]), i


class Ready(Squares):
    """Gives whole batches of 4."""

    def __getitem__(self, i):
        if not 0 <= i < 5:
            raise IndexError(i)
        return torch.arange(4.0) + 4 * i, torch.full((4,), i)

    def __len__(self):
        return 5


def tensors(n: int = N) -> tuple[Tensor, Tensor]:
    return torch.arange(n).float().reshape(n, 1), torch.arange(n) ** 2


def prepared(data, batch_size=8, count=None, seed=0) -> tuple[Batches, list[str]]:
    notices: list[str] = []
    return prepare(data, batch_size, count, seed, "data", notices.append), notices


def read(batches: Batches) -> list[list[int]]:
    """The first feature of each sample, batch by batch; the label must be its square."""
    out = []
    for x, y in batches:
        assert torch.equal(x.reshape(-1).long() ** 2, y)
        out.append(x.reshape(-1).long().tolist())
    return out


def in_order(sizes, items=None) -> list[list[int]]:
    items = list(range(sum(sizes))) if items is None else list(items)
    ends = np.cumsum(sizes)
    assert ends[-1] == len(items)
    return [items[a:b] for a, b in zip([0, *ends], ends, strict=False)]


# Slices


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 10, 16, 17, 100])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 1000])
def test_slices(size, batch_size):
    found = slices(size, batch_size)
    covered = [i for a, b in found for i in range(a, b)]
    assert covered == list(range(size))  # each sample once, in order
    lengths = [b - a for a, b in found]
    assert all(length == batch_size for length in lengths[:-1])
    if size > 1 and batch_size > 1:
        assert all(length > 1 for length in lengths)  # BN cannot normalize one sample
        assert lengths[-1] <= batch_size + 1


def test_slices_of_nothing():
    assert slices(0, 8) == []


# Forms of data


@pytest.mark.parametrize(
    "data",
    [
        tensors(),
        list(tensors()),
        TensorDataset(*tensors()),
        Subset(TensorDataset(*tensors(30)), range(N)),
        Squares(),
        Subset(Squares(30), range(N)),
        [Squares()[i] for i in range(N)],
    ],
    ids=["tuple", "list", "TensorDataset", "Subset", "Dataset", "Subset of Dataset", "list of pairs"],
)
@pytest.mark.parametrize(("batch_size", "sizes"), [(8, [8, 8, 6]), (11, [11, 11]), (7, [7, 7, 8]), (100, [22])])
def test_data_sets(data, batch_size, sizes):
    batches, notices = prepared(data, batch_size)
    batches.check("data")
    assert read(batches) == in_order(sizes) == read(batches)
    assert batches.size == N == sample_count(batches) and batches.batch_size == batch_size and not notices


def test_tensors_in_memory_are_not_copied():
    x, y = tensors()
    batches, _ = prepared((x, y))
    assert isinstance(batches, TensorBatches)
    assert [b[0].data_ptr() for b in batches][0] == x.data_ptr()
    assert batches.bytes == x.numel() * 4 + y.numel() * 8


@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"drop_last": True}, {"shuffle": True, "drop_last": True}])
@pytest.mark.parametrize("dataset", [Squares(), TensorDataset(*tensors())], ids=["Dataset", "TensorDataset"])
def test_a_loader_is_read_in_sequence_and_in_full(dataset, options):
    batches, notices = prepared(DataLoader(dataset, batch_size=4, **options), 512)
    assert read(batches) == in_order([4] * 5 + [2]) and batches.batch_size == 4
    said = [word for key, word in (("shuffle", "shuffles"), ("drop_last", "drops its last batch")) if key in options]
    if said:
        assert notices == [f"data: the loader {' and '.join(said)}; it is read in sequence and in full"]
    else:
        assert not notices


@pytest.mark.parametrize("sampler", [RandomSampler(range(N)), WeightedRandomSampler([1.0] * N, 40)])
def test_a_loader_that_samples(sampler):
    batches, notices = prepared(DataLoader(Squares(), batch_size=4, sampler=sampler))
    assert read(batches) == in_order([4] * 5 + [2]) and "shuffles" in notices[0]


def test_a_sampler_of_the_user_s():
    batches, notices = prepared(DataLoader(Squares(), batch_size=4, sampler=[3, 1, 2]))
    assert read(batches) == [[3, 1, 2]] and not notices


def test_a_subset_random_sampler_is_a_subset():
    batches, notices = prepared(DataLoader(Squares(), batch_size=4, sampler=SubsetRandomSampler([9, 3, 17, 4, 0, 21])))
    assert read(batches) == [[0, 3, 4, 9], [17, 21]] and batches.size == 6 and len(notices) == 1


class Pairs:
    """A batch sampler of its own: always the same."""

    def __init__(self, again=True):
        self.again, self.reads = again, 0

    def __iter__(self):
        self.reads += 1
        shift = 0 if self.again else self.reads
        return iter([[5, 6 + shift], [1, 2, 3]])

    def __len__(self):
        return 2


def test_a_batch_sampler_that_repeats_itself_is_kept():
    batches, notices = prepared(DataLoader(Squares(), batch_sampler=Pairs()))
    assert read(batches) == [[5, 6], [1, 2, 3]] == read(batches) and batches.size == 5 and not notices


def test_a_batch_sampler_that_changes_is_not_used():
    batches, notices = prepared(DataLoader(Squares(), batch_sampler=Pairs(again=False)))
    assert read(batches) == in_order([8, 8, 6]) and "batch sampler is not used" in notices[0]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(
    ("sampler", "items"),
    [
        (SequentialSampler(Squares()), range(N)),
        (RandomSampler(Squares()), range(N)),
        (SubsetRandomSampler([9, 3, 17, 4, 0, 21]), [0, 3, 4, 9, 17, 21]),
    ],
)
def test_torch_s_own_batch_sampler_given_by_hand(sampler, items, drop_last):
    loader = DataLoader(Squares(), batch_sampler=BatchSampler(sampler, 4, drop_last))
    batches, notices = prepared(loader)
    n = len(items)
    assert read(batches) == in_order([4] * (n // 4) + [n % 4], items) and batches.batch_size == 4
    shuffles = not isinstance(sampler, SequentialSampler)
    assert len(notices) == (shuffles or drop_last) and ("drops" in "".join(notices)) == drop_last


def test_a_stream():
    batches, notices = prepared(DataLoader(Stream(), batch_size=5, drop_last=True))
    assert read(batches) == in_order([5] * 4 + [2]) == read(batches)
    assert batches.size is None and sample_count(batches) == N and "drops its last batch" in notices[0]
    batches, _ = prepared(Stream())
    assert read(batches) == in_order([8, 8, 6])


def test_ready_batches():
    batches, notices = prepared(DataLoader(Ready(), batch_size=None))
    assert [x.tolist() for x, _ in batches] == in_order([4] * 5)
    assert sample_count(batches) == 20 and not notices
    batches, notices = prepared(DataLoader(Ready(), batch_size=None, shuffle=True))
    assert [x.tolist() for x, _ in batches] == in_order([4] * 5) and "shuffles" in notices[0]
    batches.check("data")
    assert batches.quick_hash() == prepared(DataLoader(Ready(), batch_size=None))[0].quick_hash()


def test_dict_batches():
    batches, _ = prepared(DataLoader(Dicts(), batch_size=10))
    read = list(batches)
    assert [list(b) for b in read] == [["inputs", "meta"]] * 3
    assert torch.cat([b["inputs"] for b in read]).reshape(-1).tolist() == list(range(N))
    assert torch.cat([b["meta"]["label"] for b in read]).tolist() == list(range(N))
    batches.check("data")


def double(items):
    x, y = zip(*items, strict=True)
    return torch.stack(x) * 2, torch.tensor(y) * 4


@pytest.mark.parametrize("dataset", [Squares(), TensorDataset(*tensors())], ids=["Dataset", "TensorDataset"])
def test_a_loader_s_collate_function_is_used(dataset):
    batches, _ = prepared(DataLoader(dataset, batch_size=4, collate_fn=double))
    assert read(batches) == [[2 * i for i in batch] for batch in in_order([4] * 5 + [2])]


def test_workers_give_the_same_batches():
    """forkserver, since fork is unsafe beside CUDA, threads and some interconnects; in order, twice."""
    batches, _ = prepared(DataLoader(Squares(), batch_size=4, shuffle=True, num_workers=2))
    assert batches.loader.multiprocessing_context.get_start_method() == "forkserver"
    batches.check("data")
    assert read(batches) == in_order([4] * 5 + [2]) == read(batches)
    assert batches.quick_hash() == prepared(DataLoader(Squares(), batch_size=4))[0].quick_hash()


def test_a_context_of_the_user_s_is_kept():
    batches, _ = prepared(DataLoader(Squares(), num_workers=1, multiprocessing_context="fork"))
    assert batches.loader.multiprocessing_context.get_start_method() == "fork"


@pytest.mark.filterwarnings("ignore:Got pickle error")
def test_a_data_set_that_workers_cannot_be_sent():
    dataset = Squares()
    dataset.transform = lambda x: x
    batches, _ = prepared(DataLoader(dataset, batch_size=4, num_workers=1))
    with pytest.raises(UserError, match="num_workers=0") as error:
        next(iter(batches))
    assert "\n" not in str(error.value)


# What is refused


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (5, "is a int"),
        ("abc", "is a str"),
        ({"x": torch.zeros(3)}, "is a dict"),
        (np.zeros((4, 2)), "is a ndarray"),
        ((np.zeros((4, 2)), np.zeros(4)), "NumPy"),
        ((torch.zeros(4, 2), np.zeros(4)), "NumPy"),
        (torch.zeros(4, 2), "is a Tensor"),
        ((torch.zeros(4, 2), torch.zeros(5)), "different lengths"),
        ((torch.zeros(4, 2), torch.tensor(1.0)), "different lengths"),
        (iter([1, 2]), "is a list_iterator"),
    ],
)
def test_other_things_are_refused(data, said):
    with pytest.raises(UserError, match=said) as error:
        prepared(data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "data",
    [tensors(0), Squares(0), DataLoader(Squares(0)), DataLoader(Stream(0)), DataLoader(Squares(), batch_sampler=[])],
    ids=["tensors", "Dataset", "loader", "stream", "batch sampler"],
)
def test_nothing_at_all(data):
    with pytest.raises(UserError, match="is empty") as error:
        prepared(data)[0].check("data")
    assert "\n" not in str(error.value)


def test_random_augmentation_is_caught():
    for data in (Augmented(), DataLoader(Augmented(), batch_size=4, shuffle=True)):
        with pytest.raises(UserError, match="random augmentation") as error:
            prepared(data)[0].check("data")
        assert "\n" not in str(error.value)


# Subsets


@pytest.mark.parametrize(
    "data",
    [tensors(), Squares(), DataLoader(Squares(), batch_size=3, shuffle=True)],
    ids=["tensors", "Dataset", "loader"],
)
@pytest.mark.parametrize("count", [1, 5, 21, N])
def test_a_subset_is_seeded_and_in_data_order(data, count):
    found = {seed: sum(read(prepared(data, 8, count, seed)[0]), []) for seed in (0, 1, 2)}
    for items in found.values():
        assert len(items) == count and items == sorted(set(items))
    assert sum(read(prepared(data, 8, count, 1)[0]), []) == found[1]
    if count == N:
        assert found[0] == list(range(N))
    elif count > 1:
        assert len({tuple(items) for items in found.values()}) > 1
    torch.manual_seed(3)
    np.random.seed(3)
    assert sum(read(prepared(data, 8, count, 0)[0]), []) == found[0]


def test_the_subset_is_numpy_s_draw_of_a_stream_of_its_own():
    draw = np.random.default_rng(np.random.SeedSequence(entropy=9, spawn_key=(2**31,)))
    expected = sorted(draw.choice(1000, 100, replace=False))
    assert chosen(1000, 100, 9).tolist() == expected


@pytest.mark.parametrize("data", [tensors(), Squares()], ids=["tensors", "Dataset"])
def test_more_samples_than_there_are(data):
    with pytest.raises(UserError, match=f"has {N} samples: cannot take {N + 1}"):
        prepared(data, 8, N + 1)


@pytest.mark.parametrize(
    ("data", "sizes"),
    [(DataLoader(Stream(), 4), [4, 3]), (Stream(), [7]), (DataLoader(Ready(), batch_size=None), [4, 3])],
    ids=["stream", "iterable", "ready"],
)
def test_the_first_samples_of_a_stream(data, sizes):
    batches, notices = prepared(data, 8, 7)
    assert [x.reshape(-1).tolist() for x, _ in batches] == in_order(sizes) and "first 7 samples" in notices[0]


def test_a_subset_of_a_batch_sampler_s_data():
    batches, notices = prepared(DataLoader(Squares(), batch_sampler=Pairs()), 8, 4)
    assert batches.size == 4 and "batch sampler is not used" in notices[0]
    assert set(sum(read(batches), [])) < {1, 2, 3, 5, 6}


# Fingerprints


def test_one_byte_changes_the_full_hash():
    x, y = tensors(5000)
    before = prepared((x, y))[0].full_hash()
    assert prepared((x.clone(), y.clone()))[0].full_hash() == before
    assert prepared((x, y), 3)[0].full_hash() == before  # batches are not data
    for tensor in (x, y):
        for position in (0, 1234, -1):
            raw = tensor.view(torch.uint8).reshape(-1)
            raw[position] ^= 1
            assert prepared((x, y))[0].full_hash() != before
            raw[position] ^= 1
    assert prepared((x, y))[0].full_hash() == before
    assert prepared((x.reshape(5000), y))[0].full_hash() != before  # same bytes, another shape
    assert prepared((x, y.int()))[0].full_hash() != before
    assert prepared((y, x))[0].full_hash() != before


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.complex64, torch.uint8, torch.float64])
def test_hashes_of_every_dtype(dtype):
    x = torch.zeros(6, 2).to(dtype)
    before = prepared((x,))[0].full_hash()
    x[5, 1] = 1
    assert prepared((x,))[0].full_hash() != before


def test_quick_hash_sees_length_ends_and_labels():
    def labelled(labels, n=N):
        dataset = Squares(n)
        dataset.targets = labels
        return prepared(dataset)[0].quick_hash()

    plain = list(range(N))
    assert labelled(plain) == labelled(list(plain))
    assert labelled(plain) != labelled([*plain[:11], 0, *plain[12:]])
    assert labelled(plain) != labelled(plain, N - 1)
    assert prepared(tensors())[0].quick_hash() != prepared(tensors(N - 1))[0].quick_hash()
    # labels that make no array: of detection, say
    ragged = [[1], [1, 2], {"box": torch.ones(4)}]
    assert labelled(ragged) == labelled([[1], [1, 2], {"box": torch.ones(4)}])
    assert labelled(ragged) != labelled([[1], [1, 3], {"box": torch.ones(4)}])
    assert labelled(ragged) != labelled([[1], [1, 2], {"box": torch.zeros(4)}])


def test_hash_of_a_stream_is_of_its_first_batch():
    assert prepared(DataLoader(Stream()))[0].quick_hash() == prepared(DataLoader(Stream()))[0].quick_hash()
    assert prepared(DataLoader(Stream(), 4))[0].full_hash() != prepared(DataLoader(Stream(), 5))[0].full_hash()


# On a device


def test_to_changes_the_precision_of_what_is_floating_point():
    for data in (tensors(), Squares()):
        batches = prepared(data)[0].to(torch.device("cpu"), torch.float64)
        assert {(x.dtype, y.dtype) for x, y in batches} == {(torch.float64, torch.int64)}
    assert isinstance(batches, LoaderBatches)


def test_move_keeps_the_nesting():
    from collections import namedtuple

    Pair = namedtuple("Pair", "x y")
    batch = {"a": [torch.ones(2), (torch.ones(1, dtype=torch.int32), "text")], "b": Pair(torch.ones(3), None), "c": 4}
    moved = move(batch, torch.device("cpu"), torch.float64)
    assert moved["a"][0].dtype == torch.float64 and moved["a"][1][0].dtype == torch.int32
    assert moved["a"][1][1] == "text" and isinstance(moved["a"], list) and isinstance(moved["a"][1], tuple)
    assert type(moved["b"]) is Pair and moved["b"].x.dtype == torch.float64 and moved["b"].y is None
    assert moved["c"] == 4
