"""Signals are counted, wake the loop, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuledger.guard import read_process
from gpuledger.signals import LISTENED, Signals, listen
from tests.helpers import wait_until


@pytest.fixture(autouse=True)
def dispositions_are_restored() -> Iterator[None]:
    before = {signum: signal.getsignal(signum) for signum in LISTENED}
    yield
    now = {signum: signal.getsignal(signum) for signum in LISTENED}
    for signum, handler in before.items():
        signal.signal(signum, handler)
    assert now == before


def send(*signums: int) -> None:
    for signum in signums:
        os.kill(os.getpid(), signum)


def test_every_signal_is_counted_under_its_meaning() -> None:
    with listen() as signals:
        send(signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
        send(signal.SIGCONT, signal.SIGCHLD)

        assert signals.interrupts == 2
        assert signals.terminates == 2
        assert signals.drain == 1
        assert not signals.take_suspend()


def test_a_suspend_is_told_once_and_does_not_stop_the_process() -> None:
    with listen() as signals:
        send(signal.SIGTSTP)

        assert signals.take_suspend()
        assert not signals.take_suspend()


def test_who_was_told_to_go_on_meanwhile_does_not_stop() -> None:
    with listen() as signals:
        send(signal.SIGTSTP, signal.SIGCONT)
        assert not signals.take_suspend()
        send(signal.SIGCONT)
        assert not signals.take_suspend()
        send(signal.SIGTSTP)
        assert signals.take_suspend()


@pytest.mark.parametrize("signum", LISTENED)
def test_a_signal_that_came_before_the_wait_ends_it(signum: signal.Signals) -> None:
    with listen() as signals:
        send(signum)

        assert signals.wait(None) == frozenset()


def test_a_signal_that_comes_during_the_wait_ends_it() -> None:
    with listen() as signals:
        timer = threading.Timer(0.05, send, [signal.SIGTERM])
        timer.start()
        signals.wait(None)
        timer.join()

        assert signals.terminates == 1


def test_the_end_of_a_child_ends_the_wait() -> None:
    with listen() as signals:
        child = subprocess.Popen(["true"])
        signals.wait(None)

        assert child.wait() == 0


def test_a_wait_ends_when_its_time_is_over_and_old_signals_do_not_end_it_again() -> None:
    with listen() as signals:
        send(signal.SIGTERM)
        signals.wait(None)

        assert signals.wait(0.01) == frozenset()
        assert signals.wait(-1) == frozenset()


def test_a_wait_longer_than_the_kernel_can_count_is_possible() -> None:
    with listen() as signals:
        send(signal.SIGTERM)

        assert signals.wait(1e9) == frozenset()


def test_a_wait_tells_which_descriptors_are_readable() -> None:
    reader, writer = os.pipe()
    other, other_writer = os.pipe()
    try:
        with listen() as signals:
            os.write(writer, b"x")

            assert signals.wait(None, also=[reader, other, -1]) == frozenset({reader})
    finally:
        for descriptor in (reader, writer, other, other_writer):
            os.close(descriptor)


def test_more_signals_than_the_pipe_holds_lose_nothing() -> None:
    with listen() as signals:
        for _ in range(70_000):
            send(signal.SIGUSR1)

        assert signals.drain == 70_000
        signals.wait(None)
        assert signals.wait(0) == frozenset()


def test_nothing_is_left_open_and_the_former_wakeup_descriptor_comes_back() -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    try:
        signal.set_wakeup_fd(writer)
        before = sorted(Path("/proc/self/fd").iterdir())
        with listen():
            pass
        assert sorted(Path("/proc/self/fd").iterdir()) == before
        assert signal.set_wakeup_fd(-1) == writer
    finally:
        signal.set_wakeup_fd(-1)
        os.close(reader)
        os.close(writer)


def test_handlers_come_back_after_an_exception() -> None:
    def fail() -> None:
        with listen():
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP, signal.SIGTSTP])
def test_what_nohup_made_ignored_stays_so(signum: signal.Signals) -> None:
    former = signal.signal(signum, signal.SIG_IGN)
    try:
        with listen() as signals:
            send(signum)

            assert signal.getsignal(signum) is signal.SIG_IGN
            assert signals.interrupts == signals.terminates == 0
        assert signal.getsignal(signum) is signal.SIG_IGN
    finally:
        signal.signal(signum, former)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD])
def test_other_ignored_signals_are_listened_to(signum: signal.Signals) -> None:
    former = signal.signal(signum, signal.SIG_IGN)
    try:
        with listen() as signals:
            send(signum)
            signals.wait(None)
        assert signal.getsignal(signum) is signal.SIG_IGN
    finally:
        signal.signal(signum, former)


def test_a_program_started_meanwhile_ignores_nothing() -> None:
    with listen():
        status = subprocess.run(
            ["cat", "/proc/self/status"], capture_output=True, text=True, check=True
        ).stdout

    ignored = next(line for line in status.splitlines() if line.startswith("SigIgn"))
    mask = int(ignored.split()[1], 16)
    assert not any(mask & 1 << (signum - 1) for signum in LISTENED)


def test_outside_the_main_thread_it_says_so() -> None:
    said: list[str] = []

    def attempt() -> None:
        try:
            with listen():
                pass
        except ValueError as problem:
            said.append(str(problem))

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()

    assert said == ["listen() works in the main thread only"]


SUSPENDING = """
from gpuledger.signals import listen
with listen() as signals:
    print("ready", flush=True)
    while not signals.take_suspend():
        signals.wait(None)
    signals.suspend_self()
    print("back", signals.take_suspend(), flush=True)
    while not signals.take_suspend():
        signals.wait(None)
    print("again", flush=True)
"""


def test_a_process_stops_itself_when_it_is_ready_and_goes_on() -> None:
    with subprocess.Popen([sys.executable, "-c", SUSPENDING], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGTSTP)
        wait_until(lambda: _state(child.pid) == "T", because="it should have stopped itself")
        child.send_signal(signal.SIGCONT)

        assert child.stdout.readline() == b"back False\n"
        child.send_signal(signal.SIGTSTP)
        assert child.stdout.readline() == b"again\n"


def _state(pid: int) -> str | None:
    process = read_process(pid)
    return None if process is None else process.state


def test_signals_can_be_made_by_hand_for_tests() -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    try:
        signals = Signals(reader)
        assert signals.wait(0) == frozenset()
        assert signals.interrupts == 0
    finally:
        os.close(reader)
        os.close(writer)
