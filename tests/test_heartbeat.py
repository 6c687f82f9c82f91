"""Liveness files: what is written is read, and nobody alive is ever called dead."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuledger.heartbeat import (
    MISSING,
    RECORD_BYTES,
    TICK_BYTES,
    Beat,
    HeartbeatFile,
    Pacemaker,
    Verdict,
    Watcher,
    beat_path,
    decode,
    encode,
    idle_pace_s,
    read_raw,
    read_sign_of_life,
    shows_idle,
)
from gpuledger.views import GpuView
from tests.helpers import ManualClock, wait_until

BEAT = Beat(
    nonce="0123456789abcdef", name="ada:gpu0", host="ada", machine="m", pid=1, pid_start=2, seq=3,
    task="exp_0_0", number=1, elapsed_s=4.5, step=1, total=9, metrics={"loss": 0.5},
    gpus=(GpuView(index="0", name="A100", memory_total_mib=40960),), note="leaves",
)  # fmt: skip


# --- the record -------------------------------------------------------------------------------


def test_a_beat_is_read_as_it_was_written() -> None:
    assert decode(encode(BEAT)) == BEAT
    assert len(encode(BEAT)) == RECORD_BYTES


@given(st.dictionaries(st.text(), st.text(), max_size=30), st.text(max_size=50))
def test_whatever_a_task_reports_fits(metrics: dict[str, str], note: str) -> None:
    beat = replace(BEAT, metrics={**metrics, "long": "x" * 10_000}, note=note)
    read = decode(encode(beat))

    assert read is not None
    assert (read.nonce, read.task, read.note) == (BEAT.nonce, BEAT.task, note)
    assert read.gpus == BEAT.gpus
    assert encode(beat).endswith(b" " * TICK_BYTES)


def test_every_torn_record_is_known_as_torn() -> None:
    """The front of one record and the back of another is what a racing reader may see."""
    first, second = encode(BEAT), encode(replace(BEAT, seq=4, metrics={"loss": 0.25, "lr": 1}))
    for cut in range(1, 400):
        mixed = second[:cut] + first[cut:]
        assert decode(mixed) in (None, BEAT, decode(second))


@given(st.binary(max_size=200))
def test_garbage_is_no_beat(raw: bytes) -> None:
    assert decode(raw) is None
    assert decode(raw.ljust(RECORD_BYTES)[:RECORD_BYTES]) is None


# --- the file ---------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "workers").mkdir()
    return beat_path(tmp_path, "ada:gpu0", BEAT.nonce)


def test_the_file_is_rewritten_in_place(path: Path) -> None:
    file = HeartbeatFile(path)
    file.write(BEAT)
    inode = path.stat().st_ino
    file.write(replace(BEAT, seq=4))

    assert path.stat().st_ino == inode
    assert path.stat().st_size == RECORD_BYTES
    beat, age_s = read_sign_of_life(path, now=path.stat().st_mtime + 7)
    assert beat == replace(BEAT, seq=4)
    assert age_s == pytest.approx(7)

    file.remove()
    assert read_raw(path) == MISSING
    assert read_sign_of_life(path, now=0) == (None, None)
    file.remove()


def test_a_tick_is_a_sign_of_life_that_leaves_the_beat_as_it_was(path: Path) -> None:
    for beat in (BEAT, replace(BEAT, note="x" * 3000, metrics={"long": "x" * 5000})):
        file = HeartbeatFile(path)
        file.write(beat)
        seen = [read_raw(path)]
        read = decode(seen[0] or b"")
        for seq in (4, 5, 10**15):
            file.tick(seq)
            seen.append(read_raw(path))
            assert decode(seen[-1] or b"") == read
        assert len(set(seen)) == 4
        assert path.stat().st_size == RECORD_BYTES


def test_a_tick_makes_no_file(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        HeartbeatFile(path).tick(4)
    assert read_raw(path) == MISSING


def test_workers_of_the_same_name_have_files_of_their_own(tmp_path: Path) -> None:
    assert beat_path(tmp_path, "a:cpu", "0" * 16) != beat_path(tmp_path, "a:cpu", "1" * 16)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "a\nb", "a\0b", "ü:gpu0", ".."])
def test_no_name_leaves_the_folder(tmp_path: Path, name: str) -> None:
    assert beat_path(tmp_path, name, BEAT.nonce).parent == tmp_path / "workers"
    assert "\0" not in str(beat_path(tmp_path, name, BEAT.nonce))


def test_what_cannot_be_read_is_unknown_and_not_missing(path: Path) -> None:
    path.mkdir()
    assert read_raw(path) is None
    assert read_raw(path.parent / "gone" / "file") is None


# --- who is dead ------------------------------------------------------------------------------

LEASE_S = 60.0


def watch(clock: ManualClock) -> Watcher:
    return Watcher(clock=clock, lease_s=LEASE_S)


def look(watcher: Watcher, raw: bytes | None) -> Verdict:
    return watcher.observe("n", raw, asked_s=watcher.now())


def test_a_worker_is_dead_after_a_whole_lease_without_change(clock: ManualClock) -> None:
    watcher = watch(clock)
    verdicts = []
    for _ in range(13):
        verdicts.append(look(watcher, b"same"))
        clock.advance(5)

    assert verdicts == [Verdict.UNKNOWN] * 12 + [Verdict.DEAD]


@pytest.mark.parametrize("raw", [b"same", MISSING])
def test_two_readings_are_never_enough(clock: ManualClock, raw: bytes) -> None:
    watcher = watch(clock)
    look(watcher, raw)
    clock.advance(LEASE_S / 2)
    assert look(watcher, raw) is Verdict.UNKNOWN
    clock.advance(LEASE_S / 2)
    assert look(watcher, raw) is Verdict.DEAD


def test_one_change_is_a_new_life(clock: ManualClock) -> None:
    watcher = watch(clock)
    for _ in range(12):
        look(watcher, b"same")
        clock.advance(5)
    assert look(watcher, b"other") is Verdict.ALIVE
    clock.advance(5)
    assert look(watcher, b"other") is Verdict.UNKNOWN


def test_a_reading_that_failed_starts_the_measurement_anew(clock: ManualClock) -> None:
    """The server hung for everybody: nobody is dead for that."""
    watcher = watch(clock)
    for _ in range(12):
        look(watcher, b"same")
        clock.advance(5)
    assert look(watcher, None) is Verdict.UNKNOWN
    clock.advance(5)
    assert look(watcher, b"same") is Verdict.UNKNOWN


def test_after_a_sleep_of_the_reader_nobody_is_dead_at_once(clock: ManualClock) -> None:
    watcher = watch(clock)
    for _ in range(6):
        look(watcher, b"same")
        clock.advance(5)
    clock.advance(3600)
    assert look(watcher, b"same") is Verdict.UNKNOWN


def test_the_wall_clock_means_nothing(clock: ManualClock) -> None:
    watcher = watch(clock)
    for _ in range(10):
        assert look(watcher, b"same") is Verdict.UNKNOWN
        clock.wall += 86_400
        clock.boot += 1


def test_a_slow_reading_counts_from_the_moment_it_was_asked(clock: ManualClock) -> None:
    watcher = watch(clock)
    look(watcher, b"same")
    clock.advance(25)
    look(watcher, b"same")
    clock.advance(25)
    asked_s = watcher.now()
    clock.advance(25)  # the reading itself took so long
    assert watcher.observe("n", b"same", asked_s=asked_s) is Verdict.UNKNOWN


@given(st.lists(st.tuples(st.floats(0.1, 25), st.sampled_from(["same", "change", "fail"]))))
def test_whoever_showed_a_sign_of_life_within_the_lease_is_not_dead(
    history: list[tuple[float, str]],
) -> None:
    clock = ManualClock()
    watcher = watch(clock)
    content, since_s = 0, clock.boottime()
    for pause_s, what in history:
        if what == "change":
            content += 1
            since_s = clock.boottime()
        verdict = look(watcher, None if what == "fail" else str(content).encode())
        if verdict is Verdict.DEAD:
            assert clock.boottime() - since_s >= LEASE_S
        clock.advance(pause_s)


def test_those_who_left_are_forgotten(clock: ManualClock) -> None:
    watcher = watch(clock)
    for _ in range(12):
        look(watcher, b"same")
        clock.advance(5)
    watcher.forget_all_but(set())
    assert look(watcher, b"same") is Verdict.UNKNOWN


# --- the pacemaker ----------------------------------------------------------------------------


def pacemaker(beat: Any, clock: ManualClock, renewed: list[float]) -> Pacemaker:
    return Pacemaker(beat, interval_s=lambda: 0.01, clock=clock, on_renewed=renewed.append)


def test_it_beats_on_and_survives_errors(clock: ManualClock) -> None:
    calls: list[int] = []
    renewed: list[float] = []

    def beat() -> None:
        calls.append(1)
        if len(calls) % 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    maker = pacemaker(beat, clock, renewed)
    maker.start()
    wait_until(lambda: len(renewed) >= 3, because="it stopped beating")
    maker.stop()

    assert len(calls) >= 6
    assert set(renewed) == {clock.boottime()}


def test_a_renewal_counts_from_before_the_writing_began(clock: ManualClock) -> None:
    renewed: list[float] = []
    began = clock.boottime()

    def slow() -> None:
        clock.advance(30)

    maker = pacemaker(slow, clock, renewed)
    maker.start()
    wait_until(lambda: renewed, because="no renewal")
    maker.stop()
    assert renewed[0] == began


def test_a_beat_that_hangs_holds_up_nobody(clock: ManualClock) -> None:
    release = threading.Event()
    entered = threading.Event()

    def hang() -> None:
        entered.set()
        release.wait(20)

    maker = pacemaker(hang, clock, [])
    maker.start()
    assert entered.wait(5)
    maker.beat_soon()
    release.set()
    maker.stop()


def test_a_worker_that_runs_nothing_shows_it_and_gives_fewer_signs() -> None:
    assert shows_idle(encode(replace(BEAT, task=None)))
    assert not shows_idle(encode(BEAT))
    assert not shows_idle(None)
    assert idle_pace_s(heartbeat_s=5, lease_s=60) == 20
    assert idle_pace_s(heartbeat_s=5, lease_s=600) == 20
    assert idle_pace_s(heartbeat_s=10, lease_s=60) == 20
    assert idle_pace_s(heartbeat_s=20, lease_s=60) == 20
