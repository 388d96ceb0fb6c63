"""What a report of a fault needs: versions, MPI, GPUs, cores, launchers. What is missing is a line, never a traceback.

Of the environment's variables only those of a list are told: others may be secrets.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from typing import Any

from . import __version__
from .errors import UserError, printable
from .libraries import ask, is_open_mpi
from .progress import size
from .ranks.comm import launched, world
from .ranks.launcher import FAMILIES, RANKS_ALONE
from .ranks.places import cores, crowded, places
from .store import byte_lock

Sections = dict[str, dict[str, Any]]
WIDTH = 110
PACKAGES = (
    *("numpy", "PyYAML", "tqdm", "matplotlib", "plotly", "scipy", "xarray", "h5netcdf", "vtk", "gudhi", "gymnasium"),
    *("transformers", "safetensors", "torchvision"),
)
MPI_PACKAGES = ("mpich", "openmpi", "impi-rt")  # an MPI in the virtual environment
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
VARIABLES = (
    *("OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MKL_NUM_THREADS"),
    *("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF"),
    *("HDF5_USE_FILE_LOCKING", "MPI4PY_RC_INITIALIZE", "MPI4PY_RC_THREAD_LEVEL", "MPI4PY_MPIABI", "MPI4PY_LIBMPI"),
    *("SLURM_JOB_ID", "SLURM_JOB_NUM_NODES", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_CPUS_PER_TASK"),
    *("SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_TASK", "SLURM_MPI_TYPE", "SLURM_CPU_BIND", "PBS_JOBID", "LSB_JOBID"),
    *(name for family in FAMILIES for name in family),
    *RANKS_ALONE,
    *("LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX", "TMPDIR"),
)


def tell(as_json: bool = False) -> None:
    """Print it, once: where a launcher has started several processes, all of them have to call this.

    MPI is started last, and only where there are several: should it end the process, the rest has been said.
    """
    first = launched().rank == 0
    here = _here() if first else {}
    if first and not as_json:
        print(as_text(here), flush=True)
    ranks = _ranks()
    if first:
        print(json.dumps(here | ranks, indent=2) if as_json else as_text(ranks))


def as_text(sections: Sections) -> str:
    """The sections as lines of three columns: section, name, what there is."""
    lines = []
    wide = max((len(name) for facts in sections.values() for name in facts), default=0) + 2
    for title, facts in sections.items():
        for name, fact in facts.items():
            text = printable(_words(fact)) or "-"
            for row in textwrap.wrap(text, WIDTH - 12 - wide, break_long_words=False, break_on_hyphens=False):
                lines.append(f"{title:<12}{name:<{wide}}{row}")
                title = name = ""
    return "\n".join(lines)


def _words(fact: object) -> str:
    if isinstance(fact, dict):
        return ", ".join(f"{name} {_words(value)}" for name, value in fact.items())
    if isinstance(fact, (list, tuple)):
        return ", ".join(map(_words, fact))
    if isinstance(fact, bool):
        return "yes" if fact else "no"
    return str(fact)


def _here() -> Sections:
    """Of this process and its machine."""
    found: Sections = {
        "program": {
            "hpc_landscape": f"{__version__}, {os.path.dirname(os.path.abspath(__file__))}",
            "python": f"{platform.python_version()}, {sys.executable}",
            "packages": [f"{name} {version}" for name in PACKAGES if (version := _version(name))],
            "not installed": [name for name in PACKAGES if not _version(name)],
        },
        "machine": dict(_machine()),
        "torch": ask("torch"),
        "h5py": ask("h5py"),
        "MPI": ask("mpi4py"),
    }
    found["MPI"] |= dict(_launchers(found["MPI"], found["h5py"]))
    found["folder"] = dict(_folder())
    found["variables"] = {name: os.environ[name] for name in dict.fromkeys(VARIABLES) if name in os.environ}
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except Exception:  # not installed; or what is there of it is damaged
        return None


def _machine() -> Iterator[tuple[str, Any]]:
    yield "system", " ".join([platform.platform(), *filter(None, platform.libc_ver())])
    model, instructions = _processor()
    yield "CPU", f"{model} ({', '.join(instructions) or platform.machine()})"
    mine = cores()
    yield "cores", {"of this process": ranges(mine) or "?", "of the machine": os.cpu_count()} | _quota()
    with suppress(OSError, ValueError):
        yield "memory", size(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError):
        shared = shutil.disk_usage("/dev/shm")
        yield "/dev/shm", f"{size(shared.free)} free of {size(shared.total)}"


def _processor() -> tuple[str, list[str]]:
    """Its name, and those of its instructions that matter here."""
    text = _read("/proc/cpuinfo")
    names = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    have = flags[1].split() if flags else []
    return names[1] if names else platform.processor() or "?", [name for name in INSTRUCTIONS if name in have]


def _quota() -> dict[str, str]:
    """How many cores' time a control group, of a container say, allows."""
    words = _read("/sys/fs/cgroup/cpu.max").split()
    return {"by quota": f"{int(words[0]) / int(words[1]):g}"} if len(words) == 2 and words[0].isdigit() else {}


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def ranges(numbers: tuple[int, ...]) -> str:
    """Ascending numbers in short: 0-3, 8."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and parts[-1][-1] == n - 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def _launchers(mpi: dict[str, Any], h5py: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Those on PATH, whose they are, and whether they go together with what mpi4py is bound to."""
    wheels = [f"{name} {version}" for name in MPI_PACKAGES if (version := _version(name))]
    if wheels:
        yield "from packages", wheels
    foreign = []
    for name in ("mpirun", "mpiexec", "srun"):
        if (path := shutil.which(name)) is None:
            beside = os.path.join(os.path.dirname(sys.executable), name)
            yield name, f"not on PATH, but {beside}" if os.path.exists(beside) else "not found"
            continue
        said = _said([path, "--version"])
        whose = re.search(r"HYDRA|Open MPI|OpenRTE|PRRTE|Intel\(R\) MPI|slurm|$", said, re.IGNORECASE)
        number = re.search(r"\d+(\.\d+)+|$", said)
        yield name, f"{path}, {whose[0] if whose else ''} {number[0] if number else ''}".rstrip(", ")
        if name == "srun":
            yield "srun --mpi", " ".join(_said([path, "--mpi=list"]).split())
        elif whose and whose[0] and "library" in mpi and is_open_mpi(whose[0]) != is_open_mpi(mpi["library"]):
            foreign.append(name)
    notes = []
    if foreign:
        notes.append(f"{' and '.join(foreign)}: of another MPI than mpi4py's; what they start would not see each other")
    if len(wheels) > 1:
        notes.append("two MPIs in one environment: keep one of the packages")
    libraries = {path for facts in (mpi, h5py) for path in facts.get("libmpi", [])}
    if len(libraries) > 1:
        notes.append(f"h5py and mpi4py are bound to two MPIs, {' and '.join(sorted(libraries))}: build both with one")
    if notes:
        yield "note", "; ".join(notes)


def _said(command: list[str]) -> str:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return (done.stdout + done.stderr).decode(errors="replace")


def _folder() -> Iterator[tuple[str, Any]]:
    """The current one: what file system it is on, and whether files can be locked there."""
    with suppress(OSError):
        here = os.getcwd()
        yield "path", here
        yield "file system", f"{_file_system(here)}, {size(shutil.disk_usage(here).free)} free"
    try:
        with tempfile.TemporaryFile(dir=".") as file:
            import fcntl

            yield "locks", {"byte": byte_lock.take(file.fileno()) or False, "flock": _flock(fcntl, file.fileno())}
    except (OSError, ImportError) as error:
        yield "locks", f"cannot be tried: {error}"


def _flock(fcntl: Any, descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _file_system(path: str) -> str:
    """Its kind, by the longest mount point that the path begins with."""
    best = ("", "?")
    for line in _read("/proc/self/mountinfo").splitlines():
        mount, kind = line.split(" ")[4], line.rpartition(" - ")[2].split(" ")[0]
        if os.path.join(path, "").startswith(os.path.join(mount, "")) and len(mount) >= len(best[0]):
            best = mount, kind
    return best[1]


def _ranks() -> Sections:
    """What the launcher has started, whether MPI agrees, and where each rank is."""
    told = launched()
    found: dict[str, Any] = {"launcher": "none seen"}
    if told.variable:
        number = "several" if told.size_unknown else told.processes
        found["launcher"] = f"started {number} ({told.variable}={os.environ.get(told.variable, '')})"
    try:
        comm = world()
    except UserError as error:
        return {"ranks": found | {"note": str(error)}}
    found["MPI"] = f"sees {comm.size} ({comm.library})" if comm.size > 1 else "not started for one process"
    where = places(comm)
    for rank, place in enumerate(where):
        found[f"rank {rank}"] = {"on": place.host, "cores": ranges(place.cores) or "?", "device": place.device}
    if note := crowded(where):
        found["note"] = note
    return {"ranks": found}
