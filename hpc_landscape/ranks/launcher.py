"""What launchers tell each process they start: how many processes there are, and which one this is."""

from __future__ import annotations

import os
from typing import NamedTuple

from ..errors import UserError, printable

STEP = "SLURM_STEP_NUM_TASKS"
FAMILIES = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("PALS_SIZE", "PALS_RANKID"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK"),
    ("FLUX_JOB_SIZE", "FLUX_TASK_RANK"),
    (STEP, "SLURM_PROCID"),  # only inside a step: SLURM_NTASKS is set in batch scripts too
)
# Of launchers that tell no size, since MPI knows it: the rank, and what is there as well
RANKS_ALONE = {"PMIX_RANK": "PMIX_NAMESPACE", "ALPS_APP_PE": "ALPS_APP_PE"}
# How all those begin by which a process is told that it is a rank.
_PREFIXES = ("OMPI_", "PMI", "HYDI_", "MPI_", "SLURM_", "PALS_", "FLUX_", "JSM_", "MV2_", "ALPS_", "PRTE_")
HYDRA = ("PMI_FD", "PMI_PORT")  # by which a process reaches MPICH's mpirun; one of them is not inherited from afar


class Told(NamedTuple):
    """processes: how many, at least; rank: this one's number; variable: who says so, "" where nobody does."""

    processes: int
    rank: int
    variable: str

    @property
    def size_unknown(self) -> bool:
        return self.variable in RANKS_ALONE


def alone() -> dict[str, str]:
    """The environment of a process that this one starts, and that is no rank: a parallel h5py starts no MPI in it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_PREFIXES)}
    return environment | {"MPI4PY_RC_INITIALIZE": "0"}


def launched() -> Told:
    """As the launcher tells; of several, one in another, the one that has started most."""
    found = families()
    if [(told.processes, told.variable) for told in found] == [(1, STEP)] and _within_step():
        found = []
    return max(found, key=lambda told: told.processes, default=_rank_alone())


def families() -> list[Told]:
    """What each launcher has left in the environment; what is no number is left out."""
    found = []
    for size, rank in FAMILIES:
        if processes := _number(size):
            number = _number(rank) or 0
            found.append(Told(processes, number if number < processes else 0, size))
    return found


def _within_step() -> bool:
    """Whether a launcher that tells no size runs in Slurm's step: salloc's shell is a step of one process."""
    return _number("PMIX_RANK") is not None and not os.environ.get("PMIX_NAMESPACE", "slurm.").startswith("slurm.")


def _rank_alone() -> Told:
    for variable, beside in RANKS_ALONE.items():
        if (rank := _number(variable)) is not None and beside in os.environ:
            return Told(rank + 1, rank, variable)
    return Told(1, 0, "")


def check_launcher() -> None:
    """UserError where a launcher's numbers are none: several processes might each believe to be the first."""
    for size, rank in FAMILIES:
        processes, number = _number(size), _number(rank)
        alone = processes == 1 and rank not in os.environ
        if os.environ.get(size) and not (processes and number is not None and number < processes or alone):
            texts = [printable(os.environ.get(name, ""))[:40] for name in (size, rank)]
            raise UserError(
                f"the launcher's {size}={texts[0]} and {rank}={texts[1]} are no number of processes and the number of "
                "one of them; unset both, or start the program by mpirun or srun"
            )


def _number(variable: str) -> int | None:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() and len(text) < 10 else None


_parent = os.getppid()


def orphaned() -> bool:
    """Whether the launcher of this process has died since: Open MPI's leaves a rank without MPI running."""
    return os.getppid() != _parent and bool(launched().variable)  # looked at all the time: the cheaper first
