"""Labtasker: a server over SQLite; each worker claims and completes by a request to it.

The requests are those of its worker's loop, by its own client, over a Unix socket.
"""

from __future__ import annotations

import secrets
import sys
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.peers import Step

LABEL = "Labtasker (server)"
NEEDS = "labtasker"
PER_S = 300
PATIENCE_S = 30.0


def server(folder: Path) -> list[str]:
    program = Path(sys.executable).with_name("labtasker-server")
    where = ["--connection", "socket", "--socket", str(folder / "socket")]
    return [str(program), "serve", *where, "--database", str(folder / "server.db")]


def _client(folder: Path) -> Any:
    from labtasker import Client

    client = Client(socket=folder / "socket", labtasker_root=folder / "root", queue="bench")
    until_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            client.list_queues()
            return client
        except Exception:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.1)


def create(folder: Path, tasks: int) -> None:
    client = _client(folder)
    client.create_queue("bench")
    for number in range(tasks):
        client.submit_task({"number": number})


def connect(folder: Path) -> Step:
    client = _client(folder)
    held: list[Any] = []

    def step() -> str | None:
        if held:
            done = held.pop()
            client._complete(task_id=done.task.id, run_id=done.run_id, result={})
        claimed = client._claim(route="default", run_id=f"r_{secrets.token_urlsafe(9)}")
        if claimed is None:
            return None
        held.append(claimed)
        return str(claimed.task.id)

    return step
