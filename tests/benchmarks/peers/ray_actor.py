"""Ray: a queue in the memory of an actor; nothing is kept if that dies."""

from __future__ import annotations

import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.peers import Step

LABEL = "Ray (server, in memory)"
NEEDS = "ray"
PER_S = 1500
NAMESPACE = "bench"


def server(folder: Path) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "port").write_text(str(port), encoding="ascii")
    program = Path(sys.executable).with_name("ray")
    options = ["--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1"]
    options += ["--include-dashboard=false", "--disable-usage-stats", "--num-cpus=2"]
    options += [f"--object-store-memory={100 << 20}", f"--temp-dir={folder}/ray"]
    return [str(program), "start", *options]


def _ray(folder: Path) -> Any:
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    import ray

    port = (folder / "port").read_text(encoding="ascii")
    ray.init(
        address=f"127.0.0.1:{port}",
        namespace=NAMESPACE,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    return ray


class Queue:
    """Which tasks wait, run and are done."""

    def __init__(self, tasks: int) -> None:
        self.waiting = list(range(tasks))
        self.running: set[int] = set()
        self.done: set[int] = set()

    def is_there(self) -> bool:
        """Answer."""
        return True

    def go_on(self, done: int | None) -> int | None:
        """End one and take the next."""
        if done is not None:
            self.running.remove(done)
            self.done.add(done)
        if not self.waiting:
            return None
        task = self.waiting.pop()
        self.running.add(task)
        return task


def create(folder: Path, tasks: int) -> None:
    ray = _ray(folder)
    actor = ray.remote(Queue).options(name="queue", lifetime="detached", num_cpus=0)
    ray.get(actor.remote(tasks).is_there.remote())


def connect(folder: Path) -> Step:
    ray = _ray(folder)
    queue = ray.get_actor("queue")
    ray.get(queue.is_there.remote())  # the first call makes the connection
    held: list[int] = []

    def step() -> str | None:
        task = ray.get(queue.go_on.remote(held.pop() if held else None))
        if task is None:
            return None
        held.append(task)
        return str(task)

    return step
