"""Completes names for the shell: quickly, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer

from gpuledger.cli.find import open_ledger
from gpuledger.ledger import Ledger

PATIENCE_S = 0.5
"""A person waits for the Tab key: rather no names than late ones."""


def task_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return names of tasks that start with what was typed."""
    return _ask(ctx, lambda ledger: ledger.task_names(starting_with=incomplete))


def sweep_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of the sweeps; typer leaves out those that do not fit."""
    return _ask(ctx, lambda ledger: [sweep.name for sweep in ledger.snapshot().sweeps])


def worker_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return names of workers, also of those that left; typer leaves out those that do not fit."""
    return _ask(ctx, lambda ledger: list(ledger.worker_names()))


def _ask(ctx: typer.Context, question: Callable[[Ledger], list[str]]) -> list[str]:
    try:
        given = ctx.params.get("ledger")  # as it was typed, in some versions of typer
        folder = None if given is None else Path(given)
        names = question(open_ledger(folder, lock_timeout_s=PATIENCE_S))
    except Exception:  # whatever it is, it must not spill into what somebody is typing
        return []
    return [name for name in names if name.isprintable()]
