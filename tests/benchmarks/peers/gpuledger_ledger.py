"""gpuledger's own verbs: register, claim, then `complete` with the next claim in it."""

from __future__ import annotations

import os
from pathlib import Path

from gpuledger.ledger import Ledger
from gpuledger.model import Claim, WorkerIdentity
from gpuledger.sweep import read_sweep
from tests.benchmarks.peers import Step

LABEL = "gpuledger"
NEEDS = None
PER_S = 2000


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
    held: list[Claim] = []

    def step() -> str | None:
        found = ledger.complete(held.pop().token, then=me).next if held else ledger.claim(me)
        if not isinstance(found, Claim):
            return None
        held.append(found)
        return found.task

    return step
