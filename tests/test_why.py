"""show says why a pending task does not run: the rule, and what the ledger tells it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpuledger.heartbeat import beat_path
from gpuledger.ledger import Ledger
from gpuledger.model import Claim, Outcome
from gpuledger.routing import PastFailure
from gpuledger.selection import Selection
from gpuledger.why import LiveWorker, Waiting, why_pending
from tests.cli_support import Lab, make_lab
from tests.helpers import ManualClock, failure, identity, spec

A, B = LiveWorker(name="a:gpu0"), LiveWorker(name="b:gpu0")
BUSY_A, BUSY_B = replace(A, task="exp_7_0"), replace(B, task="exp_8_0")


def failed(worker: str, age_s: float = 20.0, **values: Any) -> PastFailure:
    return PastFailure(worker=worker, age_s=age_s, **{"outcome": Outcome.FAILED, **values})


def oom(worker: str, memory_mib: int, age_s: float = 20.0) -> PastFailure:
    return failed(worker, age_s, outcome=Outcome.OOM, gpu_memory_mib=memory_mib)


def told(**values: Any) -> str:
    return "\n".join(why_pending(Waiting(sweep="exp", **values)))


def test_a_paused_sweep_is_all_there_is_to_say() -> None:
    text = told(paused="by an operator", workers=(A,), ahead=9)
    assert text == ("Sweep exp is paused: by an operator; 'gpuledger resume exp' lets it go on.")


def test_a_held_task_is_next() -> None:
    assert told(held_by="a:gpu0", workers=(A,)) == "a:gpu0 starts it next."


def test_nobody_is_there() -> None:
    assert told() == "No worker is there; 'gpuledger work' starts one."
    silent = (replace(A, silent_s=300.0), replace(B, silent_s=70.0))
    assert "a:gpu0 and b:gpu0 gave no sign of life for 5 min" in told(workers=silent)
    assert "gave no sign" not in told(workers=(replace(A, silent_s=59.0),))


def test_all_are_busy_and_others_come_first() -> None:
    text = told(workers=(BUSY_A, BUSY_B), ahead=1200)
    assert "All 2 workers that may take it are busy." in text
    assert "1,200 tasks come before it" in text
    text = told(workers=(BUSY_A,))
    assert text.splitlines() == [
        "a:gpu0, which may take it, runs exp_7_0.",
        "It is the next in the queue.",
    ]
    assert "1 task comes before it" in told(workers=(BUSY_A,), ahead=1)


def test_an_idle_worker_may_take_it_unless_many_come_first() -> None:
    assert "a:gpu0 runs nothing now and may take it" in told(workers=(A, BUSY_B))
    assert "a:gpu0 and b:gpu0 run nothing now" in told(workers=(A, B), ahead=1)
    assert "runs nothing" not in told(workers=(A, BUSY_B), ahead=1)


def test_a_worker_that_cools_down_says_so() -> None:
    text = told(workers=(replace(A, note="suspect, cools down 60 s"), BUSY_B))
    assert "a:gpu0 runs nothing: suspect, cools down 60 s." in text
    assert "may take it at any moment" not in text


def test_who_failed_it_leaves_it_to_others_for_a_while() -> None:
    text = told(workers=(A, BUSY_B), past=(failed("a:gpu0", 20.0),))
    assert "a:gpu0 failed it lately and leaves it to b:gpu0 for 40 s more" in text
    assert "b:gpu0, which may take it, runs exp_8_0." in text
    assert "a:gpu0 runs nothing" not in text


@pytest.mark.parametrize(
    "past",
    [
        (failed("a:gpu0", 61.0),),  # long ago
        (failed("a:gpu0"), failed("b:gpu0")),  # all failed it: any may take it
        (failed("gone:gpu0"),),
    ],
)
def test_failures_that_keep_nobody_from_it_are_not_told(past: tuple[PastFailure, ...]) -> None:
    assert "lately" not in told(workers=(A, B), past=past)


def test_the_newest_of_a_workers_failures_counts() -> None:
    past = (failed("a:gpu0", 50.0), failed("a:gpu0", 5.0))
    assert "for 55 s more" in told(workers=(A, BUSY_B), past=past)
    assert "for 55 s more" in told(workers=(A, BUSY_B), past=past[::-1])


def test_out_of_memory_waits_for_a_larger_gpu_while_there_is_one() -> None:
    small, large = replace(A, gpu_memory_mib=24576), replace(BUSY_B, gpu_memory_mib=81920)
    text = told(workers=(small, large), past=(oom("a:gpu0", 24576, age_s=900.0),))
    assert "It ran out of memory on a GPU with 24 GiB: it is for b:gpu0 now." in text
    assert "b:gpu0, which may take it, runs exp_8_0." in text
    assert "a:gpu0 runs nothing" not in text
    assert "lately" not in text


def test_out_of_memory_where_no_worker_has_more() -> None:
    small, same = (replace(one, gpu_memory_mib=24576) for one in (A, B))
    text = told(workers=(small, same), past=(oom("a:gpu0", 24576),))
    assert "24 GiB, and no live worker has more" in text
    assert "a:gpu0 failed it lately and leaves it to b:gpu0" in text
    assert "out of memory" not in told(workers=(A,), past=(oom("a:gpu0", 0),))


def test_many_workers_are_counted() -> None:
    many = tuple(LiveWorker(name=f"h:gpu{n}") for n in range(5))
    assert "5 workers run nothing now" in told(workers=many)
    assert "h:gpu0, h:gpu1 and h:gpu2 run nothing" in told(workers=many[:3])


# --- from the ledger --------------------------------------------------------------------------


def waiting(ledger: Ledger, task: str) -> Waiting:
    found = ledger.waiting(task)
    assert found is not None
    return found


def test_the_ledger_knows_what_is_ahead_and_who_runs_what(tmp_path: Path) -> None:
    clock = ManualClock()
    ledger = Ledger.create(tmp_path / ".gpuledger", clock=clock)
    ledger.add_sweep(spec(name="one", points=3))
    ledger.add_sweep(spec(name="two", points=3, priority=5))
    ledger.add_sweep(spec(name="idle", points=2))
    worker = ledger.register(identity("n1", gpu_memory_mib=1000))
    assert waiting(ledger, "one_1_0").ahead == 4
    assert waiting(ledger, "two_0_0").ahead == 0
    ledger.pause("two")
    assert waiting(ledger, "one_1_0").ahead == 1
    assert waiting(ledger, "two_0_0").paused == "by an operator"
    claim = ledger.claim(worker)
    assert isinstance(claim, Claim)
    found = waiting(ledger, "one_1_0")
    assert (found.ahead, found.paused, found.lease_s) == (0, None, ledger.lease_s)
    assert found.workers == (
        LiveWorker(name="alpha:cpu", nonce="n1", gpu_memory_mib=1000, task="one_0_0"),
    )
    assert ledger.waiting("one_0_0") is None
    ledger.set_priority(Selection(names=("idle_1_0",)), 1)
    assert waiting(ledger, "one_1_0").ahead == 1
    assert waiting(ledger, "idle_1_0").ahead == 0


def test_the_ledger_knows_failures_until_they_are_forgiven(tmp_path: Path) -> None:
    clock = ManualClock()
    ledger = Ledger.create(tmp_path / ".gpuledger", clock=clock)
    ledger.add_sweep(spec(points=1, avoid_s=30.0))
    worker = ledger.register(identity("n1"))
    claim = ledger.claim(worker)
    assert isinstance(claim, Claim)
    ledger.fail(claim.token, failure())
    clock.advance(7)
    found = waiting(ledger, "exp_0_0")
    assert found.avoid_s == 30.0
    assert found.past == (failed("alpha:cpu", 7.0),)


def test_a_held_task_names_its_holder(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / ".gpuledger")
    lab.ledger.store.write(
        lambda db: db.execute("UPDATE task SET held_by = 'n1' WHERE point = 1"), operation="test"
    )
    assert waiting(lab.ledger, "exp1_1_42").held_by == "host:gpu0"
    assert waiting(lab.ledger, "exp1_2_42").ahead == 1


def test_show_says_why_of_pending_tasks_only(tmp_path: Path) -> None:
    lab: Lab = make_lab(tmp_path / ".gpuledger")
    lab.run("pause", "exp1")
    assert "Sweep exp1 is paused: by an operator" in lab.run("show", "exp1_0_42").stdout
    assert json.loads(lab.run("show", "exp1_0_42", "--json").stdout)["why_pending"] == [
        "Sweep exp1 is paused: by an operator; 'gpuledger resume exp1' lets it go on."
    ]
    lab.run("resume", "exp1")
    lab.complete()
    assert "why_pending" not in lab.run("show", "exp1_0_42", "--json").stdout
    assert "the next in the queue" in lab.run("show", "exp1_1_42").stdout
    assert "1 task comes before it" in lab.run("show", "exp1_2_42").stdout


def test_a_silent_worker_is_told_from_its_file(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / ".gpuledger")
    path = beat_path(lab.ledger.folder, lab.worker.name, lab.worker.nonce)
    path.write_bytes(b"")
    long_ago_s = path.stat().st_mtime - 600
    os.utime(path, (long_ago_s, long_ago_s))
    shown = lab.run("show", "exp1_0_42").stdout
    assert "No worker is alive: host:gpu0 gave no sign of life for 10 min" in shown


def test_a_suspect_worker_is_waited_for_by_what_ran_out_of_memory_only() -> None:
    large = LiveWorker(
        name="c:gpu0", gpu_memory_mib=24576, note="suspect", stands_back=True, is_suspect=True
    )
    small = replace(A, gpu_memory_mib=4096)
    workers = (small, large)
    ready = "a:gpu0 runs nothing now and may take it"
    ran_out = (oom("a:gpu0", 4096),)
    assert ready in told(workers=workers, past=(failed("a:gpu0"),))
    assert ready not in told(workers=workers, past=ran_out)
    gone = replace(large, is_suspect=False)
    assert ready in told(workers=(small, gone), past=ran_out)
