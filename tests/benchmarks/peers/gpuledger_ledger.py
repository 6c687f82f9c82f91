"""gpuledger's own verbs, as its workers use them: short tasks are held and settled together.

A task here takes no time, so a worker holds as many as it may at all, never more than its share.
Each has an attempt, two events, names, leases: all that a task of a sweep has.
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

from gpuledger.batches import MOST_HELD
from gpuledger.ledger import Ledger
from gpuledger.model import Claim, Ending, Finished, Outcome, WorkerIdentity
from gpuledger.sweep import read_sweep
from tests.benchmarks.peers import Step

LABEL = "gpuledger"
NEEDS = None
PER_S = 8000
ENDING = Ending(outcome=Outcome.COMPLETED, exit_code=0, duration_s=0.0)


def create(folder: Path, tasks: int) -> None:
    file = folder / "bench.toml"
    file.write_text(f'command = "true"\nseeds = {tasks}\n', encoding="utf-8")
    Ledger.create(folder / "ledger").add_sweep(read_sweep(file, allow_large=True))


def connect(folder: Path) -> Step:
    ledger = Ledger.open(folder / "ledger")
    pid = os.getpid()
    me = ledger.register(
        WorkerIdentity(
            nonce=f"{pid:016x}", name="b:cpu", host="b", machine="m", pid=pid, pid_start=1
        )
    )
    held: deque[Claim] = deque()
    done: list[Finished] = []

    def step() -> str | None:
        if not held:
            settled = ledger.settle(me, done, hold=MOST_HELD)
            done.clear()
            held.extend(settled.held)
            if isinstance(settled.next, Claim):
                held.append(settled.next)
        if not held:
            return None
        now = ledger.now()
        token = held[0].token
        done.append(Finished(token=token, ending=ENDING, started_at=now, ended_at=now))
        return held.popleft().task

    return step
