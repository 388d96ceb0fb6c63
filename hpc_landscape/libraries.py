"""What libraries say of themselves, each in a process of its own: one that cannot be imported may end it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from .ranks.launcher import alone

SECONDS = 120.0  # for an import from a slow, shared file system
_BEGIN = """
import sys
sys.path = [p for p in sys.path if p]  # not the folder we happen to be in
import json, os, re

def tell(**facts):
    print("\\n" + json.dumps(facts))

def libmpi():
    try:
        with open("/proc/self/maps") as maps:
            return sorted(set(re.findall(r"/.*/libmpi(?:ch|_cray|_gnu\\w*|_intel\\w*)?[.]so.*", maps.read())))
    except OSError:
        return []
"""
_CODE = {
    "torch": """
import torch
built = torch.version.cuda and f"CUDA {torch.version.cuda}" or torch.version.hip and f"ROCm {torch.version.hip}"
gpus = {}
if torch.cuda.is_available():
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        gpus[f"cuda:{i}"] = f"{p.name}, {p.total_memory / 2**30:.1f} GiB, compute capability {p.major}.{p.minor}"
    gpus["cuDNN"] = torch.backends.cudnn.version()
try:
    with open("/proc/driver/nvidia/version") as file:
        gpus["driver"] = file.readline().strip()
except OSError:
    pass
mps = getattr(torch.backends, "mps", None)
if mps is not None and mps.is_available():
    gpus["mps"] = "available"
if not torch.cuda.is_available() and built:
    gpus["GPUs"] = "none is visible"
tell(version=f"{torch.__version__}, {os.path.dirname(torch.__file__)}", built=f"for {built or 'CPUs alone'}",
     threads=torch.get_num_threads(), **gpus)
""",
    "h5py": """
import h5py
tell(version=f"{h5py.__version__}, {os.path.dirname(h5py.__file__)}", HDF5=h5py.version.hdf5_version,
     MPI=bool(h5py.get_config().mpi), libmpi=libmpi())
""",
    "mpi4py": """
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
tell(mpi4py=f"{mpi4py.__version__}, {os.path.dirname(mpi4py.__file__)}",
     library=" ".join(re.split("\\n|, package", MPI.Get_library_version().replace(chr(0), ""))[0].split()),
     standard=".".join(map(str, MPI.Get_version())), libmpi=libmpi(), **mpi4py.get_config())
""",
}


def ask(name: str) -> dict[str, Any]:
    """What torch, h5py or mpi4py says; where it cannot be imported, why, in a line. MPI is not started.

    libmpi: the files of the MPI libraries in the process, where the system tells.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", _BEGIN + _CODE[name]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=alone(),
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return {name: f"cannot be imported: that did not end in {SECONDS:g} s"}
    except OSError as error:
        return {name: f"cannot be asked: {error}"}
    told = [line for line in done.stdout.decode(errors="replace").splitlines() if line.startswith("{")]
    if told:
        return dict(json.loads(told[-1]))
    if done.returncode < 0:
        return {name: f"cannot be imported: the process that tried was ended by signal {-done.returncode}"}
    said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
    missing = said[0] == f"ModuleNotFoundError: No module named '{name}'"
    return {name: "not installed" if missing else f"cannot be imported: {said[0]}"}


def is_open_mpi(text: str) -> bool:
    """Whether this, a library's or launcher's name, is Open MPI's."""
    return any(name in text.lower() for name in ("open mpi", "openrte", "prrte"))
