"""retry, cancel and set: what they select, what they change, what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpuledger.model import Claim, Ending, Outcome, TaskState
from gpuledger.selection import Selection
from tests.cli_support import Lab, make_lab, sweep


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return make_lab(tmp_path / ".gpuledger")


def state(lab: Lab, name: str) -> TaskState:
    return lab.ledger.task(name).state


def test_retry_failed_puts_failed_tasks_back_and_nothing_else(lab: Lab) -> None:
    lab.fail()
    lab.complete()
    lab.ledger.cancel(Selection(names=("exp1_2_42",)))

    told = lab.run("retry", "--failed").stdout

    assert "Retried 1 task: exp1_0_42." in told
    assert state(lab, "exp1_0_42") is TaskState.PENDING
    assert state(lab, "exp1_1_42") is TaskState.COMPLETED
    assert state(lab, "exp1_2_42") is TaskState.CANCELLED


def test_retry_without_a_selection_is_wrong_usage_and_says_what_to_say(lab: Lab) -> None:
    lab.fail()
    for arguments in ([], ["--completed"], ["--sweep", "exp1"], ["--set", "lr=1"]):
        told = lab.run("retry", *arguments, exit_code=2).stderr
        assert told.startswith("error: nothing says which tasks to retry")
        assert "--failed" in told
    assert state(lab, "exp1_0_42") is TaskState.FAILED


def test_retry_by_error_takes_failed_tasks_with_that_error_only(lab: Lab) -> None:
    lab.fail("RuntimeError: CUDA out of memory", traceback="")
    lab.fail("KeyError: 'x'", traceback="")

    assert "exp1_0_42" in lab.run("retry", "--error", "cuda OUT of").stdout

    assert state(lab, "exp1_0_42") is TaskState.PENDING
    assert state(lab, "exp1_1_42") is TaskState.FAILED


def test_retry_by_name_leaves_running_and_completed_tasks_alone_and_says_so(lab: Lab) -> None:
    lab.complete()
    running = lab.claim()

    told = lab.run("retry", "exp1_0_42", "exp1_1_42", "exp1_2_42").stdout

    assert "Retried no task" in told
    assert "Left alone: 1 running, 1 completed, 1 pending." in told
    assert "--completed" in told
    assert state(lab, running.task) is TaskState.RUNNING
    assert state(lab, "exp1_0_42") is TaskState.COMPLETED


def test_retry_completed_by_name_or_by_sweep_redoes_completed_tasks(lab: Lab) -> None:
    lab.complete()
    lab.run("retry", "exp1_0_42", "--completed")
    assert state(lab, "exp1_0_42") is TaskState.PENDING

    lab.complete()
    lab.fail()
    lab.run("retry", "--completed", "--sweep", "exp1")
    assert state(lab, "exp1_0_42") is TaskState.PENDING
    assert state(lab, "exp1_1_42") is TaskState.FAILED


def test_retry_failed_of_one_sweep_leaves_the_others(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / ".gpuledger", sweep("a", points=[{}]), sweep("b", points=[{}]))
    lab.fail()
    lab.fail()
    lab.run("retry", "--failed", "--sweep", "b")
    assert state(lab, "a_0_42") is TaskState.FAILED
    assert state(lab, "b_0_42") is TaskState.PENDING


def test_retry_with_set_changes_the_parameter(lab: Lab) -> None:
    lab.fail()
    lab.run("retry", "exp1_0_42", "--set", "lr=0.5")
    assert lab.ledger.task("exp1_0_42").params == {"lr": 0.5}


def test_retry_with_set_of_an_unknown_parameter_changes_nothing(lab: Lab) -> None:
    lab.fail()
    told = lab.run("retry", "--failed", "--set", "learning_rate=1", exit_code=2).stderr
    assert "learning_rate" in told
    assert "lr" in told
    assert state(lab, "exp1_0_42") is TaskState.FAILED


def test_retry_of_an_unknown_task_changes_nothing_and_suggests_a_name(lab: Lab) -> None:
    lab.fail()
    told = lab.run("retry", "exp1_0_42", "exp1_0_43", exit_code=65).stderr
    assert "no task is named 'exp1_0_43'" in told
    assert state(lab, "exp1_0_42") is TaskState.FAILED


def test_retry_as_json_says_it_in_numbers(lab: Lab) -> None:
    lab.fail()
    lab.claim()
    told = json.loads(lab.run("retry", "exp1_0_42", "exp1_1_42", "--json").stdout)
    assert told == {
        "changed": 1,
        "running": 1,
        "withdrawn": 0,
        "skipped": {},
        "names": ["exp1_0_42"],
        "resumed": [],
    }


def test_many_names_are_shortened(tmp_path: Path) -> None:
    points = [{"n": n} for n in range(9)]
    lab = make_lab(tmp_path / ".gpuledger", sweep(points=points))
    for _ in points:
        lab.fail()
    told = lab.run("retry", "--failed").stdout
    assert "Retried 9 tasks: exp1_0_42, " in told
    assert "exp1_4_42 and 4 more." in told


def test_cancel_takes_pending_and_failed_tasks_out(lab: Lab) -> None:
    lab.fail()
    assert "Cancelled 3 tasks" in lab.run("cancel", "--sweep", "exp1").stdout
    assert lab.ledger.snapshot().counts.cancelled == 3


def test_cancel_lets_a_running_task_finish_unless_told_to_kill(lab: Lab) -> None:
    claim = lab.claim()
    told = lab.run("cancel", claim.task).stdout
    assert "1 task running" in told
    assert "--kill" in told
    assert not lab.ledger.stop_requested(claim.token)

    assert "told to stop now" in lab.run("cancel", claim.task, "--kill").stdout
    assert lab.ledger.stop_requested(claim.token)


def test_cancel_without_a_selection_is_wrong_usage(lab: Lab) -> None:
    assert "nothing says which" in lab.run("cancel", exit_code=2).stderr
    assert "nothing says which" in lab.run("cancel", "--kill", exit_code=2).stderr
    assert lab.ledger.snapshot().counts.pending == 3


def test_set_priority_brings_a_task_to_the_front(lab: Lab) -> None:
    lab.run("set", "exp1_2_42", "--priority", "5")
    claim = lab.ledger.claim(lab.worker)
    assert isinstance(claim, Claim)
    assert claim.task == "exp1_2_42"


@pytest.mark.parametrize(
    "arguments",
    [["exp1_0_42"], ["--priority", "1"], ["exp1_0_42", "--priority", "99999999999999999999"]],
)
def test_set_without_task_or_sensible_value_is_wrong_usage(lab: Lab, arguments: list[str]) -> None:
    told = lab.run("set", *arguments, exit_code=2).stderr
    assert "nothing was changed" in told
    assert lab.ledger.task("exp1_0_42").priority == 0


def test_a_retry_takes_back_the_cancellation_of_a_running_task(lab: Lab) -> None:
    running = lab.claim()
    lab.run("cancel", running.task)
    told = lab.run("retry", running.task).stdout
    assert "1 task running: not cancelled any more." in told
    lab.run("cancel", running.task, "--kill")
    told = lab.run("retry", running.task).stdout
    assert "not cancelled" not in told, "it is being killed"
    lab.run("cancel", running.task)
    told = lab.run("retry", running.task, "--set", "lr=7").stdout
    assert "not cancelled" not in told, "it goes on with the former value"
    lab.run("retry", running.task)
    lab.ledger.fail(running.token, Ending(outcome=Outcome.FAILED, error="x"))
    assert state(lab, running.task) is TaskState.PENDING


def test_cancelling_what_runs_does_not_begin_with_a_no(lab: Lab) -> None:
    running = lab.claim()
    told = lab.run("cancel", running.task, "--kill").stdout
    assert told == "1 task running: the workers were told to stop now.\n"


def test_a_filter_that_meets_no_failed_task_says_what_it_means(lab: Lab) -> None:
    lab.run("cancel", "exp1_0_42")
    told = lab.run("retry", "--where", "state == 'cancelled'").stdout
    assert "--state cancelled takes those" in told
    assert (
        "exp1_0_42"
        in lab.run("retry", "--where", "state == 'cancelled'", "--state", "cancelled").stdout
    )


@pytest.mark.parametrize("verb", ["show", "logs", "retry", "cancel"])
def test_a_number_that_no_ledger_has_is_no_task(lab: Lab, verb: str) -> None:
    for name in ("exp1_0_9223372036854775808", "exp1_0_-9223372036854775809"):
        told = lab.run(verb, "--", name, exit_code=65).stderr
        assert f"no task is named '{name}'" in told


def test_the_name_of_a_sweep_is_no_task_and_is_said_to_be_one(lab: Lab) -> None:
    told = lab.run("show", "exp1", exit_code=65).stderr
    assert "exp1 is a sweep: 'gpuledger tasks --sweep exp1'" in told
