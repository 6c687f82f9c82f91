"""What several tests need: waiting for a condition, and a clock that is moved by hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from gpuledger.model import Ending, Outcome, WorkerIdentity
from gpuledger.spec import RunSettings, SweepSpec, TaskSpec

T = TypeVar("T")


def wait_until(condition: Callable[[], T], *, because: str, timeout_s: float = 20.0) -> T:
    """Return the first true value of `condition`; fail with `because` when none comes in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain: {because}"
        time.sleep(0.01)


@dataclass
class ManualClock:
    """A clock that stands still until `advance` is called."""

    wall: float = 1_700_000_000.0
    boot: float = 1_000.0

    def now(self) -> float:
        return self.wall

    def boottime(self) -> float:
        return self.boot

    def advance(self, seconds: float) -> None:
        self.wall += seconds
        self.boot += seconds


def identity(nonce: str = "n1", *, host: str = "alpha", **values: Any) -> WorkerIdentity:
    """Return a worker of a pretended host."""
    known = {"name": f"{host}:cpu", "machine": host, "pid": 1, "pid_start": 1, **values}
    return WorkerIdentity(nonce=nonce, host=host, **known)


def spec(
    *, name: str = "exp", points: int = 2, seeds: Sequence[int] = (0,), **settings: Any
) -> SweepSpec:
    """Return a sweep of so many points that differ in `lr`."""
    given = {"command": ("true",), "workdir": "/", **settings}
    priority = given.pop("priority", 0)
    values = given.pop("values", range(points))

    def tasks() -> Iterator[TaskSpec]:
        for point, lr in enumerate(values):
            for seed in seeds:
                yield TaskSpec(point=point, seed=seed, params={"lr": lr})

    return SweepSpec(
        name=name,
        file=f"/sweeps/{name}.toml",
        settings=RunSettings(**given),
        priority=priority,
        task_count=len(list(values)) * len(seeds),
        tasks=tasks,
    )


def failure(error: str = "KeyError: 'x'", **values: Any) -> Ending:
    """Return the ending of an attempt that failed quickly."""
    known = {"outcome": Outcome.FAILED, "exit_code": 1, "duration_s": 1.0, **values}
    return Ending(error=error, **known)
