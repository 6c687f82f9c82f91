"""Tells the operator's own command about a failed attempt: JSON on its standard input."""

from __future__ import annotations

import json
from collections.abc import Callable

from gpuledger.model import Claim, Ended, Ending
from gpuledger.process import run_hook

HOOK_TIMEOUT_S = 60.0


def call_hook(
    command: str,
    claim: Claim,
    worker: str,
    ending: Ending,
    ended: Ended,
    *,
    hurry: Callable[[], bool],
) -> str | None:
    """Run the command; return what went wrong with it, or None.

    Once `hurry` answers True it has a few seconds left.

    Its standard input is one JSON object: task, sweep, attempt, worker, outcome, exit_code,
    signal, error, traceback, state (after the failure), failures, max_attempts, params, seed.
    """
    failure = {
        "task": claim.task,
        "sweep": claim.sweep,
        "attempt": claim.number,
        "worker": worker,
        "outcome": ending.outcome,
        "exit_code": ending.exit_code,
        "signal": ending.signal,
        "error": ending.error,
        "traceback": ending.traceback,
        "state": ended.state,
        "failures": ended.failures,
        "max_attempts": ended.max_attempts,
        "params": dict(claim.params),
        "seed": claim.seed,
    }
    message = json.dumps(failure) + "\n"
    return run_hook(command, message, timeout_s=HOOK_TIMEOUT_S, hurry=hurry)
