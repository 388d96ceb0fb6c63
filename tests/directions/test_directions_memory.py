"""Where directions are kept: the same numbers, what each way takes, and which one is chosen."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from problems_for_tests.small_problem_for_tests import network
from programs import PROBLEMS, read
from torch import Tensor, nn

from hpc_landscape import Problem
from hpc_landscape.campaign import keeping
from hpc_landscape.campaign.keeping import CPU, Needs, choose_memory
from hpc_landscape.directions.base import DEVICE, HOST, SEED, Origin
from hpc_landscape.directions.random import drawn_directions
from hpc_landscape.directions.registry import make_directions
from hpc_landscape.errors import UserError
from hpc_landscape.model import placement
from hpc_landscape.model.lazy import Lazy
from hpc_landscape.model.placement import Placement, flat_bytes
from hpc_landscape.ranks.base import SerialComm
from hpc_landscape.settings import Settings

SMALL = f"{PROBLEMS / 'small_problem_for_tests.py'}:small"
SHAPES = {"conv": (6, 3, 3, 3), "bias": (7,), "large": (33, 65), "norm": (1,), "last": (5, 11)}


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    real = torch.float64 if dtype in (torch.complex128, torch.float64) else torch.float32
    kind = {torch.float32: torch.complex64, torch.float64: torch.complex128}[real] if dtype.is_complex else real
    return {name: torch.randn(shape, generator=generator, dtype=kind).to(dtype) for name, shape in SHAPES.items()}


def bits(tensor: Tensor) -> Tensor:
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).contiguous().view(torch.uint8)


@pytest.mark.parametrize("normalization", ["filter", "layer", "model", "none"])
@pytest.mark.parametrize("ignore", ["biasbn", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_parts_that_are_drawn_again_are_the_same_to_the_bit(normalization, ignore, dtype):
    weights = tensors(1, dtype)
    weights["large"][3] = 0  # a filter that does not move
    for distribution in ("normal", "uniform"):
        asked = Settings(normalization=normalization, ignore=ignore, distribution=distribution, seed=5).for_directions
        wanted = make_directions(asked, Origin(weights, 2)).vectors
        drawn = pickle.loads(pickle.dumps(drawn_directions(asked, weights, 2)))  # as other ranks get them
        blank = {name: torch.empty_like(w, device="meta") for name, w in weights.items()}
        for one, other in zip(drawn, wanted, strict=True):
            found = one.tensors(blank)
            assert {type(part) for part in found.values()} == {Lazy}
            assert all(torch.equal(bits(found[name].clone()), bits(other[name])) for name in other)


CASES = {
    "as they are": {},
    "in float64": {"dtype": torch.float64},
    "in bfloat16": {"compute_dtypes": dict.fromkeys(SHAPES, torch.bfloat16)},
    "channels last, two rows": {"channels_last": True, "rows": 2},
    "to other models": {"targets": True},
}


@pytest.fixture
def threads() -> Iterator[None]:
    """Several parts are made at a time."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("chunk", [1, 100, 2**24])
@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        *((case, torch.float32) for case in CASES),
        *((case, dtype) for case in CASES if case != "in bfloat16" for dtype in (torch.bfloat16, torch.complex64)),
    ],
)
def test_points_are_the_same_to_the_bit(case, dtype, chunk, monkeypatch, threads):
    monkeypatch.setattr(placement, "CHUNK", chunk)
    origin, options = tensors(1, dtype), CASES[case]
    directions = [tensors(2), tensors(3)] if not dtype.is_complex else [tensors(2, dtype), tensors(3, dtype)]
    if not options.get("targets"):
        del directions[1]["large"]  # does not move
    kept, brought = (Placement(origin, directions, keeps_directions=keeps, **options) for keeps in (True, False))
    for coordinates in ((0, 0), (0.3, -0.7), (1, 0), (0, 1), (1, 1), (-1.25, 0.5)):
        for row in range(options.get("rows", 1)):
            kept.place(coordinates, row)
            brought.place(coordinates, row)
        for name in origin:
            assert torch.equal(bits(kept.stacked[name]), bits(brought.stacked[name])), (coordinates, name)


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("options", [{}, {"dtype": torch.float64}, CASES["in bfloat16"]], ids=str)
def test_the_bytes_of_the_flat_buffers(keeps, options):
    """As they are counted before they are there; but for what aligns them."""
    origin = {name: torch.randn(64, 16) for name in SHAPES}
    made = Placement(origin, [origin, origin], keeps_directions=keeps, **options)
    (flat,) = made._flats
    buffers = [flat.origin, flat.points, *flat.directions, *([] if flat.cast is flat.points else [flat.cast])]
    given = {"dtype": None, "compute_dtypes": {}, **options}
    ((where, (point, direction)),) = flat_bytes(origin, None, **given).items()
    assert where == CPU and sum(t.nbytes for t in buffers) == point + 2 * direction * keeps
    assert len(flat.directions) == 2 * keeps


# The choice

GPU = torch.device("cuda", 0)


def test_what_each_way_takes():
    """Of a plane of 1,000 numbers in float32, on 4 ranks of a node."""
    on_gpu = Needs({GPU: (8000, 4000)}, directions=8000, count=2, part=700, drawing=600, ranks=4)
    assert on_gpu.where(DEVICE) == {GPU: 8000 + 2 * 4000, CPU: 4 * 8000}
    assert on_gpu.where(HOST) == {GPU: 8000 + 700, CPU: 8000}
    assert on_gpu.where(SEED) == {GPU: 8000 + 700, CPU: 4 * 600}
    on_cpu = Needs({CPU: (8000, 4000)}, directions=8000, count=2, part=700, drawing=600, ranks=4)
    assert on_cpu.where(DEVICE) == {CPU: 4 * (8000 + 2 * 4000) + 4 * 8000}
    assert on_cpu.where(HOST) == {CPU: 4 * (8000 + 700) + 8000}
    assert on_cpu.where(SEED) == {CPU: 4 * (8000 + 700 + 600)}


def chosen(monkeypatch: pytest.MonkeyPatch, on_gpu: int, on_host: int, **options: Any) -> str:
    """For a plane of four times 250,000 numbers, where so many MB are free. Drawing one tensor takes 4."""
    free = {GPU: on_gpu * 10**6, CPU: on_host * 10**6}
    monkeypatch.setattr(keeping, "free_memory", lambda device, ranks: free[device])
    monkeypatch.setattr(keeping, "shared_gpus", lambda comm, devices: 1)
    monkeypatch.setattr(keeping, "CHUNK", 1000)
    monkeypatch.setattr(keeping, "AHEAD", 1)
    problem = Problem(nn.Sequential(*[nn.Linear(500, 500, bias=False) for _ in range(4)]), nn.MSELoss())
    settings = Settings(**options)
    asked = settings.for_speed.directions_memory, settings.for_directions, settings.dimensions
    return choose_memory(*asked, settings.for_evaluation.precision, problem, [GPU], SerialComm())


@pytest.mark.parametrize(
    ("on_gpu", "on_host", "way"),
    [
        (21, 100, DEVICE),  # 16 of the GPU, 8 of the host
        (19, 100, HOST),  # 10 of the GPU
        (21, 9.9, SEED),
        (13, 8, SEED),
        (13, 4, None),
        (12, 100, None),
    ],
)
def test_the_first_way_that_fits_into_most_of_what_is_free(monkeypatch, on_gpu, on_host, way):
    if way is None:
        with pytest.raises(
            UserError, match="--directions_memory auto: does not fit: device takes .*; seed takes"
        ) as error:
            chosen(monkeypatch, on_gpu, on_host)
        assert "let less move (--include)" in str(error.value) and "\n" not in str(error.value)
    else:
        assert chosen(monkeypatch, on_gpu, on_host) == way


def test_what_was_asked_for_is_taken_where_it_fits_and_else_it_is_said_what_would(monkeypatch):
    assert chosen(monkeypatch, 17, 9, directions_memory=DEVICE) == DEVICE
    with pytest.raises(UserError) as error:
        chosen(monkeypatch, 15, 9, directions_memory=DEVICE)
    assert str(error.value) == (
        "--directions_memory device: does not fit: device takes 15.3 MiB on cuda:0, of which 14.3 MiB are free; use "
        "host or seed"
    )
    with pytest.raises(UserError, match="host takes 7.6 MiB of a node's memory, of which 6.7 MiB are free; use seed"):
        chosen(monkeypatch, 15, 7, directions_memory=HOST)
    with pytest.raises(UserError, match="let less move"):  # others cannot be drawn again
        chosen(monkeypatch, 15, 7, directions_memory=HOST, normalization="none", orthogonalize=True)


@pytest.mark.parametrize(
    "words", [("--directions", "interpolation", "--to", "b.pt"), ("--normalization", "none", "--orthogonalize")]
)
def test_only_random_directions_are_drawn_again(program, tmp_path, words):
    done = program(*words, "--directions_memory", "seed")
    assert done.code == 2 and done.err.count("\n") == 1 and not list(tmp_path.iterdir())
    assert "--directions_memory seed: only random directions that are not orthogonalized" in done.err


@pytest.mark.parametrize(
    "options",
    [
        {"to": "b.pt", "directions": "interpolation"},
        {"orthogonalize": True, "normalization": "model"},
        {"precision": "fp64", "metrics": "loss,gradient_norm"},
        {"block": 3, "ignore": "none"},
        {"precision": "bf16"},
    ],
    ids=str,
)
def test_every_kind_and_mode_gives_the_same_bits(program, options):
    torch.save(network(1).state_dict(), "b.pt")
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    for memory in ("device", "host", "seed"):
        if memory != "seed" or not {"to", "orthogonalize"} & {*options}:
            job = ("--problem", SMALL, "--x=-1:1:3", "--y", "none", *words, "--plot=false", "--save_directions=false")
            done = program(*job, "--directions_memory", memory, "--output", f"{memory}.h5")
            assert done.code == 0, done.err
            assert np.array_equal(read(f"{memory}.h5", "loss"), read("device.h5", "loss"))
