"""A ledger in any state, and commands run on it, without a worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from gpuledger.cli.app import app
from gpuledger.ledger import Ledger
from gpuledger.model import Claim, Ending, Outcome, WorkerIdentity
from gpuledger.spec import RunSettings, SweepSpec, TaskSpec

TRACEBACK = (
    "Traceback (most recent call last):\n"
    '  File "train.py", line 3, in <module>\n'
    "    open('data')\n"
    "FileNotFoundError: data\n"
)


def sweep(
    name: str = "exp1",
    *,
    points: Sequence[Mapping[str, Any]] = ({"lr": 0.1}, {"lr": 0.01}, {"lr": 0.001}),
    seeds: Sequence[int] = (42,),
    max_attempts: int = 3,
) -> SweepSpec:
    """Return a sweep of these points, each with these seeds."""
    settings = RunSettings(command=("true",), workdir="/", max_attempts=max_attempts, pause_after=0)
    specs = [
        TaskSpec(point=number, seed=seed, params=point)
        for number, point in enumerate(points)
        for seed in seeds
    ]
    return SweepSpec(
        name=name,
        file=f"/{name}.toml",
        settings=settings,
        priority=0,
        task_count=len(specs),
        tasks=lambda: iter(specs),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """A ledger, one worker of it, and the command line."""

    ledger: Ledger
    worker: WorkerIdentity

    def run(self, *arguments: str, exit_code: int = 0, stdin: str | None = None) -> Result:
        """Run a command on the ledger; assert its exit code."""
        return run(
            *arguments,
            exit_code=exit_code,
            stdin=stdin,
            env={"GPULEDGER_DIR": str(self.ledger.folder)},
        )

    def claim(self) -> Claim:
        """Let the worker take the first pending task."""
        claim = self.ledger.claim(self.worker)
        assert isinstance(claim, Claim)
        return claim

    def complete(self, **metrics: Any) -> Claim:
        """Run the first pending task to a good end."""
        claim = self.claim()
        self.ledger.complete(claim.token, metrics=metrics, duration_s=2.0)
        return claim

    def fail(
        self,
        error: str = "FileNotFoundError: data",
        *,
        fatal: bool = True,
        traceback: str = TRACEBACK,
    ) -> Claim:
        """Let the first pending task fail, for good unless told."""
        claim = self.claim()
        ending = Ending(
            outcome=Outcome.FAILED, exit_code=1, error=error, traceback=traceback, fatal=fatal
        )
        self.ledger.fail(claim.token, ending)
        return claim

    def write_log(self, claim: Claim, content: bytes) -> Path:
        """Write what the attempt's command printed."""
        path = self.ledger.folder / "runs" / claim.task / f"attempt-{claim.number}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path


def make_lab(folder: Path, *sweeps: SweepSpec) -> Lab:
    """Make a ledger with these sweeps, or with one of three tasks, and a worker."""
    ledger = Ledger.create(folder)
    for spec in sweeps or (sweep(),):
        ledger.add_sweep(spec)
    worker = WorkerIdentity(
        nonce="n1", name="host:gpu0", host="host", machine="m", pid=1, pid_start=1, gpus=("0",)
    )
    return Lab(ledger=ledger, worker=ledger.register(worker))


def run(
    *arguments: str,
    exit_code: int = 0,
    stdin: str | None = None,
    env: Mapping[str, str | None] | None = None,
) -> Result:
    """Run a command in this process; assert its exit code, and that it ended as meant."""
    result = CliRunner().invoke(app, list(arguments), input=stdin, env=dict(env or {}))
    told = f"{arguments}: {result.stdout}\n{result.stderr}\n{result.exception!r}"
    assert isinstance(result.exception, SystemExit | None), told
    assert result.exit_code == exit_code, told
    return result
