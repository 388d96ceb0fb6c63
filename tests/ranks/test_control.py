"""How a stop reaches many ranks: on a machine of the test's own, with its clock."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hpc_landscape.errors import STOPPED
from hpc_landscape.ranks import control as control_module
from hpc_landscape.ranks.comm import SerialComm
from hpc_landscape.ranks.control import POLL, Control

RANKS = 200
DONE = SimpleNamespace(Test=lambda: True)


class Mail(SerialComm):
    """One rank of many; what it sends is on its way."""

    def __init__(self, rank: int, sent: list):
        self.rank, self.size, self.sent = rank, RANKS, sent

    def isend(self, value, rank):
        self.sent.append((self.rank, rank, value))
        return DONE


@pytest.mark.parametrize("signalled", [[7], range(1, RANKS)])
def test_a_stop_that_rank_0_does_not_pass_on_is_told_by_few(monkeypatch, signalled):
    """Slurm signals all ranks: where each of them told all others, that would be ranks times ranks."""
    now, sent, told = 1000.0, [], 0
    monkeypatch.setattr(control_module, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(control_module, "orphaned", lambda: False)
    ranks = {}
    for rank in range(1, RANKS):
        code = STOPPED if rank in signalled else 0
        signals = SimpleNamespace(code=code, pressed=False, leave_by=lambda when: None)
        ranks[rank] = Control(Mail(rank, sent), signals)
    for _ in range(round(5 / POLL)):
        now += POLL
        for one in ranks.values():
            one.look()
        arrived, sent[:] = sent[:], []
        for sender, rank, (kind, content) in arrived:
            told += 1
            if rank:
                assert ranks[rank].receive(sender, kind, content)
    assert {one.stop_code for one in ranks.values()} == {STOPPED}
    assert told < 5 * RANKS
