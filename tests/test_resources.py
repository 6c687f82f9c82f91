"""What tasks need: read from sweep files, matched with workers, said when nobody has it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gpuledger.display.lines import event_line
from gpuledger.errors import BadSweepFile
from gpuledger.ledger import Ledger
from gpuledger.model import Claim, Ending, NothingToDo, Outcome, WorkerIdentity
from gpuledger.resources import misfit, no_worker_fits, pattern_problem
from gpuledger.spec import RunSettings, settings_from_json, settings_to_json
from gpuledger.sweep import read_sweep
from tests.helpers import ManualClock, failure, identity, spec


def needs(**values: object) -> RunSettings:
    return RunSettings(command=("true",), workdir="/", **values)  # type: ignore[arg-type]


def on_gpu(
    nonce: str = "g", count: int = 1, memory: int | None = 16384, name: str | None = "Tesla T4"
) -> WorkerIdentity:
    return identity(
        nonce,
        name=f"alpha:{nonce}",
        gpus=tuple(str(n) for n in range(count)),
        gpu_memory_mib=memory,
        gpu_name=name,
    )


CPU = identity("c")


@pytest.mark.parametrize(
    ("settings", "worker", "why"),
    [
        (needs(), CPU, None),
        (needs(), on_gpu(), None),
        (needs(), on_gpu(count=2), "needs one GPU, alpha:g uses 2 for each task"),
        (needs(gpus=0), CPU, None),
        (needs(gpus=0), on_gpu(), "needs the CPU, alpha:g has one GPU"),
        (needs(gpus=1), CPU, "needs one GPU, alpha:cpu has the CPU"),
        (needs(gpus=1), on_gpu(), None),
        (needs(gpus=2), on_gpu(), "needs 2 GPUs, alpha:g has one GPU"),
        (needs(gpus=2), on_gpu(count=2), None),
        (needs(min_memory_mib=16384), on_gpu(), None),
        (needs(min_memory_mib=19074), on_gpu(), "needs 20 GB of GPU memory, alpha:g has 17 GB"),
        (needs(min_memory_mib=1), on_gpu(memory=None), "needs 0.0 GB, that of alpha:g is unknown"),
        (needs(min_memory_mib=1), CPU, "needs a GPU, alpha:cpu has none"),
        (needs(gpu_name="t4|a100"), on_gpu(), None),
        (
            needs(gpu_name="A100|H100"),
            on_gpu(),
            "needs a GPU named A100|H100, alpha:g has Tesla T4",
        ),
        (needs(gpu_name="A100"), on_gpu(name=None), "a GPU of unknown name"),
        (needs(gpu_name="(a*)*b"), on_gpu(), "needs a GPU named"),
    ],
)
def test_a_worker_fits_or_what_it_lacks_is_said(
    settings: RunSettings, worker: WorkerIdentity, why: str | None
) -> None:
    found = misfit(settings, worker)
    assert found is None if why is None else why in (found or "")


def test_what_nobody_has_is_said_of_a_few() -> None:
    big = needs(min_memory_mib=19074)
    assert no_worker_fits(big, []) is None
    assert no_worker_fits(big, [on_gpu(), on_gpu("h", memory=40000)]) is None
    assert no_worker_fits(big, [on_gpu(n) for n in "ghijk"]) == (
        "needs 20 GB of GPU memory: alpha:g has 17 GB, alpha:h has 17 GB, alpha:i has 17 GB,"
        " and 2 more"
    )
    assert no_worker_fits(big, [on_gpu(), CPU]) == (
        "needs 20 GB of GPU memory, alpha:g has 17 GB; needs a GPU, alpha:cpu has none"
    )


@pytest.mark.parametrize("pattern", ["A100|H100", "a100.*80GB", "^NVIDIA (A|H)100", r"RTX [34]090"])
def test_patterns_that_are_taken(pattern: str) -> None:
    assert pattern_problem(pattern) is None


@pytest.mark.parametrize(
    "pattern",
    ["", "x" * 101, "(a*)*", "(a+)+b", ".*.*.*.*x", "a{1,99}", "(?:x)", r"(a)\1", "[", "(", "\x1b",
     ".?.?.?.?x", "(a|b)?x", "(|.)" * 20, "*"],
)  # fmt: skip
def test_patterns_that_could_take_long_or_mean_nothing_are_refused(pattern: str) -> None:
    assert pattern_problem(pattern) is not None


def test_the_slowest_pattern_that_is_taken_is_quick() -> None:
    pattern = "(.|..)(.|..)(.|..)(.|..).*.*.*Z"
    assert pattern_problem(pattern) is None
    assert re.search(pattern, "a" * 96) is None  # seconds here would be a hanging test


# --- sweep files ------------------------------------------------------------------------------


def read(folder: Path, text: str) -> RunSettings:
    file = folder / "exp.toml"
    file.write_text('command = "true"\n' + text, encoding="utf-8")
    return read_sweep(file).settings


def test_resources_are_read_and_kept(tmp_path: Path) -> None:
    text = '[resources]\ngpus = 2\nmin_memory = "20GB"\ngpu_name = "A100|H100"\n'
    settings = read(tmp_path, text)
    assert (settings.gpus, settings.min_memory_mib, settings.gpu_name) == (2, 19074, "A100|H100")
    assert settings_from_json(settings_to_json(settings)) == settings
    bare = read(tmp_path, "")
    assert (bare.gpus, bare.min_memory_mib, bare.gpu_name) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[resources]\ngpu = 2", "unknown key 'resources.gpu'"),
        ("[resources]\ngpus = -1", "'gpus' must be at least 0"),
        ("[resources]\ngpus = 1.5", "whole number"),
        ("[resources]\ngpus = 9999", "at most 1024"),
        ("[resources]\nmin_memory = 'lots'", "resources.min_memory: 'lots' is not a size"),
        ("[resources]\ngpu_name = 7", "must be a text"),
        ("[resources]\ngpu_name = '(a*)*'", "is not understood"),
        ("[resources]\ngpus = 0\nmin_memory = '1GB'", "makes no sense with gpus = 0"),
        ("resources = 3", "'resources' must be a table"),
        ("[run]\nmin_memory = '1GB'", "min_memory belongs under [resources]"),
        ("gpus = 1", "gpus belongs under [resources]"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadSweepFile) as caught:
        read(tmp_path, text)
    assert said in f"{caught.value.problem} {caught.value.hint}"


# --- the ledger -------------------------------------------------------------------------------


def ledger_of(folder: Path) -> tuple[Ledger, ManualClock]:
    clock = ManualClock()
    return Ledger.create(folder / "ledger", clock=clock), clock


def test_a_worker_claims_past_the_sweeps_that_do_not_fit_it(tmp_path: Path) -> None:
    ledger, _ = ledger_of(tmp_path)
    ledger.add_sweep(spec(name="big", points=2, min_memory_mib=20000, priority=9))
    ledger.add_sweep(spec(name="small", points=1))
    small = ledger.register(on_gpu())

    claim = ledger.claim(small)
    assert isinstance(claim, Claim)
    assert claim.task == "small_0_0"
    ended = ledger.complete(claim.token, then=small)
    assert isinstance(ended.next, NothingToDo)
    assert ended.next.pending == 0
    assert "needs 21 GB" in ended.next.misfits["big"]
    assert ledger.outlook(small) == ended.next
    assert "needs 21 GB" in (ledger.snapshot().sweeps[0].misfit or "")
    large = ledger.register(on_gpu("large", memory=40000))
    assert ledger.snapshot().sweeps[0].misfit is None
    assert isinstance(ledger.claim(large), Claim)


def test_a_failed_task_is_not_kept_for_workers_that_cannot_take_it(tmp_path: Path) -> None:
    ledger, _ = ledger_of(tmp_path)
    ledger.add_sweep(spec(points=1, gpu_name="T4"))
    mine = ledger.register(on_gpu())
    ledger.register(on_gpu("other", memory=80000, name="A100"))
    ledger.register(identity("cpu"))
    claim = ledger.claim(mine)
    assert isinstance(claim, Claim)
    ended = ledger.fail(claim.token, failure(outcome=Outcome.OOM), then=mine)
    assert isinstance(ended.next, Claim)


def test_a_failed_task_is_not_kept_for_a_worker_that_stands_back(tmp_path: Path) -> None:
    ledger, _ = ledger_of(tmp_path)
    ledger.add_sweep(spec(points=1))
    mine = ledger.register(on_gpu())
    large = ledger.register(on_gpu("large", memory=80000))
    claim = ledger.claim(mine)
    assert isinstance(claim, Claim)
    ledger.fail(claim.token, failure(outcome=Outcome.OOM))
    assert isinstance(ledger.claim(mine), NothingToDo)
    ledger.stand_back(large.nonce, "GPU 0 is gone")
    assert len(ledger.live_workers()) == 2
    again = ledger.claim(mine)
    assert isinstance(again, Claim)
    ledger.release(again.token)
    ledger.stand_back(large.nonce, None)
    told = [event_line(event) for event in ledger.events()]
    assert sum("alpha:large claims nothing for now: GPU 0 is gone" in line for line in told) == 1
    assert sum("alpha:large claims tasks again" in line for line in told) == 1
    assert isinstance(ledger.claim(mine), NothingToDo)


def test_who_has_what_a_sweep_needs_but_stands_back_is_waited_for(tmp_path: Path) -> None:
    ledger, _ = ledger_of(tmp_path)
    ledger.add_sweep(spec(points=1, min_memory_mib=40000))
    ledger.register(on_gpu())
    assert ledger.snapshot().sweeps[0].misfit is not None
    large = ledger.register(on_gpu("large", memory=80000))
    ledger.stand_back(large.nonce, "GPU 0 is in use")
    assert ledger.snapshot().sweeps[0].misfit is None
    waiting = ledger.waiting("exp_0_0")
    assert waiting is not None
    assert waiting.misfit is None
    assert [worker.name for worker in waiting.workers] == ["alpha:large"]  # not who never may


def test_a_sweep_that_fails_on_all_who_may_run_it_is_paused(tmp_path: Path) -> None:
    ledger, _ = ledger_of(tmp_path)
    ledger.add_sweep(spec(points=9, gpu_name="T4", pause_after=2, max_attempts=1))
    mine = ledger.register(on_gpu())
    ledger.register(on_gpu("other", name="A100"))
    paused = None
    for _ in range(2):
        claim = ledger.claim(mine)
        assert isinstance(claim, Claim)
        paused = ledger.fail(claim.token, failure()).sweep_paused
    assert paused is not None


def test_the_peak_of_an_attempt_is_kept_however_it_ends(tmp_path: Path) -> None:
    ledger, _ = ledger_of(tmp_path)
    ledger.add_sweep(spec(points=3))
    mine = ledger.register(on_gpu())

    def next_token() -> Claim:
        claim = ledger.claim(mine)
        assert isinstance(claim, Claim)
        return claim

    ledger.complete(next_token().token, memory_peak_mib=100)
    ledger.fail(next_token().token, failure(memory_peak_mib=200, fatal=True))
    lost = Ending(outcome=Outcome.LOST, memory_peak_mib=300, error="GPU 0 is gone")
    ledger.release(next_token().token, lost)
    records = ledger.tasks()
    assert [r.attempts[0].memory_peak_mib for r in records] == [100, 200, 300]
    assert records[2].losses == 1
    assert records[2].failures == 0
