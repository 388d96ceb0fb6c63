"""Checkpoints in shards and of torch.distributed.checkpoint: read tensor by tensor, and never run."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from test_checkpoint import Malicious, assert_loaded, network, refused
from torch import nn

from hpc_landscape.model.checkpoint import find_checkpoints, labels, load_checkpoint, read_parameters

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")  # by save, of one process


# An index of shards


def save_shards(folder: Path, tensors: dict[str, torch.Tensor], kind: str) -> Path:
    """Each tensor in a file of its own, and their index; the path of the index."""
    name = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
    places = {key: f"shard{i}.{kind}" for i, key in enumerate(tensors)}
    for key, tensor in tensors.items():
        if kind == "safetensors":
            save_file({key: tensor.contiguous()}, folder / places[key])
        else:
            torch.save({key: tensor}, folder / places[key], _use_new_zipfile_serialization=kind == "bin")
    (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": places}))
    return folder / f"{name}.index.json"


@pytest.mark.parametrize("kind", ["safetensors", "bin", "legacy"])
def test_an_index_of_shards(tmp_path, kind):
    source = network(1)
    index = save_shards(tmp_path, source.state_dict(), kind)
    assert_loaded(index, source)
    assert_loaded(tmp_path, source)
    names = [name for name, _ in source.named_parameters()]
    found = read_parameters(str(index), network(2), names)
    assert all(
        torch.equal(t, found[name]) and type(found[name]) is torch.Tensor for name, t in source.named_parameters()
    )


class Widened(nn.Linear):
    """Loads what was saved of a layer of half as many outputs, twice."""

    def _load_from_state_dict(self, tensors, prefix, *rest):
        if tensors[f"{prefix}weight"].shape[0] < self.out_features:
            tensors.update({f"{prefix}{key}": torch.cat([tensors[f"{prefix}{key}"]] * 2) for key in ("weight", "bias")})
        super()._load_from_state_dict(tensors, prefix, *rest)


def test_shards_that_a_layer_loads_in_a_way_of_its_own(tmp_path):
    source, model = nn.Sequential(nn.Linear(3, 2)), nn.Sequential(Widened(3, 4))
    load_checkpoint(str(save_shards(tmp_path, source.state_dict(), "safetensors")), model)
    assert torch.equal(model[0].weight, torch.cat([source[0].weight] * 2))


LOAD = """
import sys, torch, torch.distributed.checkpoint
from hpc_landscape.model.checkpoint import load_checkpoint

def megabytes(what):
    return next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith(what))

model = torch.nn.Sequential(*[torch.nn.Linear(1000, 5000, bias=False) for _ in range(20)])  # 20 MB each
for path in sys.argv[1:]:
    model[7].weight.data.zero_()
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    before = megabytes("VmRSS")
    load_checkpoint(path, model)
    print(megabytes("VmHWM") - before, float(model[7].weight[0, 0]))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="memory is measured as Linux tells it")
def test_memory_stays_near_one_shard(tmp_path):
    tensors = {f"{i}.weight": torch.full((5000, 1000), float(i)) for i in range(20)}
    kinds = ["safetensors", "bin", "distributed"]
    for kind in kinds[:2]:
        (tmp_path / kind).mkdir()
        save_shards(tmp_path / kind, tensors, kind)
    dcp.save(tensors, checkpoint_id=tmp_path / "distributed")
    command = [sys.executable, "-c", LOAD, *(tmp_path / kind for kind in kinds)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    found = [tuple(map(float, line.split())) for line in run.stdout.splitlines()]
    assert [value for _, value in found] == [7, 7, 7]
    assert all(0 <= above < 80 for above, _ in found), found  # of 400


# Of torch.distributed.checkpoint

RANKS = """
import sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.fsdp import fully_shard
from test_checkpoint import network

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}.meeting", rank=rank, world_size=2)
model = network(1, width=5)  # in unequal parts
fully_shard(model[0])
fully_shard(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=0)
model(torch.ones(2, 2, 3, 3)).sum().backward()
optimizer.step()
model[1].running_mean.fill_(0.5), model[1].running_var.fill_(2), model[1].num_batches_tracked.fill_(1)
weights, state = get_state_dict(model, optimizer)
dcp.save({"model": weights, "optimizer": state, "step": 3}, checkpoint_id=folder)
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory) -> Path:
    """What 2 processes saved of a model that they share by FSDP2, and of its optimizer."""
    folder = tmp_path_factory.mktemp("distributed") / "step-3"
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"}
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANKS, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=100)[1].decode() for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), said
    return folder


def test_what_two_ranks_saved_of_a_sharded_model(of_two_ranks):
    source, model = network(1, width=5), network(2, width=5)
    said = load_checkpoint(str(of_two_ranks), model)
    assert said.name == "model" and all(map(torch.equal, model.parameters(), source.parameters()))
    assert float(model[1].running_mean[4]) == 0.5 and int(model[1].num_batches_tracked) == 1
    assert find_checkpoints(str(of_two_ranks.parent), "--to") == [str(of_two_ranks)] and labels([str(of_two_ranks)])
    assert "belongs to another architecture" in refused(of_two_ranks)


def test_a_plain_one(tmp_path):
    source = network(3)
    dcp.save(source.state_dict(), checkpoint_id=tmp_path / "a")
    assert_loaded(tmp_path / "a", source)
    dcp.save({"state_dict": source.half().state_dict(), "epoch": 5}, checkpoint_id=tmp_path / "b")
    assert_loaded(tmp_path / "b", source)


def test_code_in_metadata_is_refused_and_does_not_run(tmp_path):
    trace = tmp_path / "it_ran"
    dcp.save(network(1).state_dict(), checkpoint_id=tmp_path / "a")
    metadata = pickle.loads((tmp_path / "a" / ".metadata").read_bytes())
    metadata.planner_data["extra"] = Malicious(str(trace))
    (tmp_path / "a" / ".metadata").write_bytes(pickle.dumps(metadata))
    text = refused(tmp_path / "a")
    assert ".metadata: holds more than metadata, posix.mkdir" in text and "--weights_only false" in text
    assert not trace.exists()
    assert_loaded(tmp_path / "a", network(1), weights_only=False)
    assert trace.exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x04\x95\xff", b"garbage" * 50, pickle.dumps([1]), pickle.dumps({})])
def test_metadata_that_is_something_else(tmp_path, content):
    (tmp_path / ".metadata").write_bytes(content)
    assert "--weights_only" not in refused(tmp_path)


def test_files_that_are_not_there_or_not_whole(tmp_path):
    folder = tmp_path / "a"
    dcp.save(network(1).state_dict(), checkpoint_id=folder)
    file, content = folder / "__0_0.distcp", (folder / "__0_0.distcp").read_bytes()
    file.write_bytes(content[:-100])
    assert "__0_0.distcp is cut short" in refused(folder)
    file.write_bytes(bytes(len(content)))
    assert "cannot be read" in refused(folder)
    file.unlink()
    assert "__0_0.distcp is missing" in refused(folder)
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    for place in metadata.storage_data.values():
        place.relative_path = "../b"
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    assert "outside of its directory" in refused(folder)
