"""Memory that is out, or would be: of the host, of a GPU, in /dev/shm, and of what a file unpacks to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fault_table
import numpy as np
import pytest
import torch
from programs import PROBLEMS, PROGRAM, TINY, Finished, Job, assert_same_landscape
from torch.utils.data import DataLoader, Dataset

from hpc_landscape.data.prepare import prepare
from hpc_landscape.directions.reading import read_directions
from hpc_landscape.errors import UserError, is_out_of_memory
from hpc_landscape.model import archives
from hpc_landscape.ranks.memory import free_memory
from hpc_landscape.ranks.out_of_memory import explain

ROOM = f"{PROBLEMS / 'room_problem_for_tests.py'}:room"
JOB = ("--x=-1:1:2", "--y=none", "--plot=false", "--metrics=loss")
ONE_LINE = "hpc_landscape: error: "

OUT = {
    "CUBLAS_STATUS_ALLOC_FAILED": "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDNN_STATUS_ALLOC_FAILED": "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN 9": "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuSOLVER": "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "cuFFT": "cuFFT error: CUFFT_ALLOC_FAILED",
    "CUDA": "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "the driver": "CUDA driver error: CUDA_ERROR_OUT_OF_MEMORY",
    "the runtime": "cudaErrorMemoryAllocation",
    "NCCL": "NCCL error: unhandled cuda error. Last error: Failed to CUDA calloc 'out of memory'",
}


@pytest.mark.parametrize("words", OUT.values(), ids=OUT)
def test_a_gpu_s_libraries_in_their_words(words: str) -> None:
    error = RuntimeError(words)
    assert is_out_of_memory(error)
    said = explain(error, None, 512, 1, 4)
    assert said.startswith("out of GPU memory on rank 1 of 4") and "\n" not in said and "--batch_size" in said


def test_the_host_in_its_words() -> None:
    with pytest.raises(MemoryError) as numpy_s:
        np.empty(2**62, dtype=np.int8)
    out = [
        numpy_s.value,
        OSError(12, "Cannot allocate memory"),
        RuntimeError("unable to mmap 800 bytes from file </x>: Cannot allocate memory (12)"),
        RuntimeError("Caught _ArrayMemoryError in DataLoader worker process 0.\nOriginal Traceback ..."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's ..."),
        RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)"),
    ]
    assert all(map(is_out_of_memory, out))
    others = [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), OSError(5, "Input/output error")]
    others += [ValueError("out of memory"), RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED")]
    assert not any(map(is_out_of_memory, others))
    fault_table.record("memory is out in a library's words", tries=len(OUT) + len(out), then="exit 2, one line")


def test_a_library_that_does_not_start_on_a_full_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    error = RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`")
    for free, out in ((2**20, True), (2**34, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_, free=free: (free, 2**36))
        assert is_out_of_memory(error) == out


def test_free_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch keeps in this process counts as free here; what the device has is shared with other ranks."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8000, 10**6))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    assert free_memory("cuda") == 8500
    assert free_memory(torch.device("cuda", 1), ranks=4) == 2500


class Rows(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> int:
        return i


def test_memory_is_pinned_where_the_run_is_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("CUDA was asked"))

    def pinned(asked: bool, **given: bool) -> bool:
        loader = DataLoader(Rows(), batch_size=2, pin_memory=asked)
        return prepare(loader, 2, None, 0, "data", print, **given).loader.pin_memory

    assert pinned(False, pin=True) and not pinned(True, pin=False)
    assert pinned(True) and not pinned(False)


def _in_small_shm(folder: Path, *command: object) -> Finished:
    """A command where /dev/shm has 8 MiB."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs Linux, root, and unshare")
    mount = "mount -t tmpfs -o size=8m tmpfs /dev/shm"
    if (tried := subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, text=True)).returncode:
        pytest.skip(f"nothing can be mounted here: {tried.stderr.strip()}")
    with Job(["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh", *command], None, folder) as job:
        return job.wait()


POOL = """
import os, shutil, sys, torch
from hpc_landscape.ranks import shared
from hpc_landscape.ranks.base import SerialComm

mine = {0: torch.arange(2.0**22)}  # 16 MiB
print(all(torch.equal(shared.pool(mine, SerialComm())[key], mine[key]) for key in mine))
del os.memfd_create
print(shared.pool(mine, SerialComm()))
shutil.disk_usage = lambda path: shutil._ntuple_diskusage(2**40, 0, 2**40)  # gone before it is taken
print(shared.pool(mine, SerialComm()), os.listdir("/dev/shm"))
print(all(shared.pool({0: torch.arange(2.0**20)}, SerialComm())[0] == torch.arange(2.0**20)))
"""


@pytest.mark.slow
def test_data_that_dev_shm_has_no_room_for(tmp_path: Path) -> None:
    """It is shared in memory without a name; where there is none such, not at all, and never ended by SIGBUS."""
    done = _in_small_shm(tmp_path, sys.executable, "-c", POOL)
    assert done.code == 0 and done.out.splitlines() == ["True", "None", "None []", "True"], done
    fault_table.record(
        "/dev/shm is too small for data that ranks share", tries=4, then="shared without it, or not: told"
    )


@pytest.mark.slow
def test_workers_where_there_is_little_shared_memory(tmp_path: Path, program: Callable[..., Finished]) -> None:
    """Read with fewer ahead, or without workers; what cannot be read otherwise is refused, before, or in one line."""
    kind, workers = "--problem.kind", "--problem.workers"
    reference = program(*JOB, "--problem", ROOM, kind, "rows", workers, 0, "--output=reference.h5")
    assert reference.code == 0, reference
    room = (*PROGRAM, *JOB, "--problem", ROOM)
    done = _in_small_shm(tmp_path, *room, kind, "rows", "--resident=0")
    assert done.code == 0 and done.err == "", done
    assert "a batch takes 2.0 MiB, and /dev/shm" in done.out and "it is read without workers" in done.out, done
    assert_same_landscape(tmp_path / "landscape.h5", tmp_path / "reference.h5", ["loss"])
    refused = _in_small_shm(tmp_path, *room, kind, "stream", "--output=stream.h5")
    assert refused.code == 2 and refused.err.count("\n") == 1 and "fewer workers" in refused.err, refused
    died = _in_small_shm(tmp_path, *room, kind, "own", workers, 1, "--output=own.h5")
    assert died.code == 2 and died.err.count(ONE_LINE) == 1 and "Traceback" not in died.err, died
    assert "out of shared memory: a data-loading worker found no room" in died.err and "--shm-size" in died.err, died
    then = "read without workers, and said: the same bits; a stream or an own loader: exit 2, one line"
    fault_table.record("/dev/shm is too small for data-loading workers", tries=3, then=then)


@pytest.mark.parametrize("suffix", ["npz", "pt"])
def test_an_archive_that_unpacks_to_more_than_memory(
    program: Callable[..., Finished], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """By its declared size: not one byte of it is unpacked."""
    if suffix == "npz":
        np.savez_compressed(tmp_path / "large.npz", **{"last.weight": np.zeros(2**20)})
    else:
        torch.save({"last.weight": torch.zeros(2**20, dtype=torch.float64)}, tmp_path / "large.pt")
    monkeypatch.setattr(archives, "free_memory", lambda: 2**20)
    done = program(
        "--problem", TINY, "--y=none", "--plot=false", "--directions=file", "--direction_files", f"large.{suffix}"
    )
    assert done.code == 2 and done.err.count("\n") == 1, done
    assert "unpacks to 8.0 MiB, and 1.0 MiB of memory are available" in done.err and f"large.{suffix}" in done.err
    fault_table.record("an archive that unpacks to more than memory", then="exit 2, one line")


@pytest.mark.parametrize("dtype, fits", [("f4", True), ("f8", True), ("f2", False), ("i1", False)])
def test_directions_that_fit_as_they_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, fits: bool
) -> None:
    """Of what PyTorch takes as it is there is no second copy; of what is widened that is looked at too."""
    np.savez_compressed(tmp_path / "d.npz", weight=np.ones(2**20, dtype))
    monkeypatch.setattr(archives, "free_memory", lambda: np.dtype(dtype).itemsize * 2**20 + 2**12)
    path, weights = str(tmp_path / "d.npz"), {"weight": torch.ones(2**20)}
    if fits:
        assert torch.equal(read_directions([path], weights, 1)[0]["weight"], weights["weight"])
        return
    with pytest.raises(UserError, match="d.npz: unpacks to 8.0 MiB"):
        read_directions([path], weights, 1)
