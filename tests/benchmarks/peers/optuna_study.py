"""An Optuna study with enqueued trials: ask takes one, tell ends it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from tests.benchmarks.peers import Step


def fill(storage: Any, tasks: int) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(storage=storage, study_name="bench")
    for number in range(tasks):
        study.enqueue_trial({"x": float(number)}, user_attrs={"n": number})


def stepper(storage: Any) -> Step:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.RandomSampler()
    study = optuna.load_study(storage=storage, study_name="bench", sampler=sampler)
    told_twice = (ValueError, optuna.exceptions.UpdateFinishedTrialError)
    held: list[Any] = []

    def step() -> str | None:
        if held:
            with suppress(*told_twice):  # another worker got the same trial as well
                study.tell(held.pop(), 0.0)
        trial = study.ask()
        number = trial.user_attrs.get("n")
        if number is None:
            return None  # nothing waits: Optuna made a new trial
        held.append(trial)
        return str(number)

    return step
