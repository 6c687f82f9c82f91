"""The familiar one-line messages: pure functions of what happened."""

from __future__ import annotations

from gpuledger.model import Claim, Ended, Ending, Outcome, TaskState


def claimed_line(claim: Claim, worker: str) -> str:
    return f"Task {claim.task} started on {worker} (attempt {claim.failures + 1}/{claim.settings.max_attempts})"


def ended_line(claim: Claim, worker: str, ending: Ending, ended: Ended) -> str:
    k = f"attempt {min(claim.failures + 1, ended.max_attempts)}/{ended.max_attempts}"
    if ending.outcome is Outcome.COMPLETED:
        return f"Task {claim.task} completed on {worker} ({k})"
    after = "Reassigning." if ended.state is TaskState.PENDING else f"Now {ended.state}."
    return f"Task {claim.task} {ending.outcome} on {worker} ({k}): {ending.error} {after}"
