"""The only module that installs signal handlers.

A handler only counts; the main loop waits on a descriptor that every signal makes readable, and
looks at the counts. Nothing in a handler takes a lock, so a signal can come at any moment.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from gpuledger.clock import SystemClock

LISTENED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGTSTP,
    signal.SIGCONT,
    signal.SIGCHLD,
)

LONGEST_WAIT_S = 86400.0
"""The kernel counts milliseconds in 31 bits."""

MAY_STAY_IGNORED = frozenset({signal.SIGINT, signal.SIGHUP, signal.SIGTSTP})
"""`nohup` and a shell's `&` start programs that ignore these, and mean it."""


class Signals:
    """How often each signal came since `listen` began, and a way to wait for the next."""

    def __init__(self, wake: int) -> None:
        self._wake = wake
        self._counts = dict.fromkeys(LISTENED, 0)
        self._terminated_s: float | None = None
        self._suspends_taken = 0
        self._resumes_taken = 0

    @property
    def interrupts(self) -> int:
        """How often SIGINT (Ctrl-C) came."""
        return self._counts[signal.SIGINT]

    @property
    def terminates(self) -> int:
        """How often SIGTERM or SIGHUP came."""
        return self._counts[signal.SIGTERM] + self._counts[signal.SIGHUP]

    @property
    def must_leave(self) -> bool:
        """Whether this process must leave now, handing back what runs: SIGTERM, or Ctrl-C twice."""
        return bool(self.terminates or self.interrupts >= 2)

    @property
    def terminated_s(self) -> float | None:
        """When the first of those came, on this machine's clock since boot; None: none came."""
        return self._terminated_s

    @property
    def drain(self) -> int:
        """How often SIGUSR1 came: finish what runs, take nothing new."""
        return self._counts[signal.SIGUSR1]

    def take_suspend(self) -> bool:
        """Tell whether SIGTSTP (Ctrl-Z) came since this was last asked, and no SIGCONT.

        It stopped nothing: `suspend_self` does, when everything is ready for it. Whoever was
        told to go on meanwhile must not stop: nobody would tell it once more.
        """
        asked, resumed = self._counts[signal.SIGTSTP], self._counts[signal.SIGCONT]
        wanted = asked != self._suspends_taken and resumed == self._resumes_taken
        self._suspends_taken, self._resumes_taken = asked, resumed
        return wanted

    def suspend_if_asked(self) -> None:
        """Do what Ctrl-Z asks for, where nothing runs that had to be frozen first."""
        if self.take_suspend():
            self.suspend_self()

    def wait(self, timeout_s: float | None, also: Iterable[int] = ()) -> frozenset[int]:
        """Wait for a signal, for a descriptor, or for the time to pass.

        Returns at once when a signal came since the last call. SIGCHLD wakes, too.

        Args:
            timeout_s: Longest time in seconds; None means no limit.
            also: Descriptors that end the wait when they are readable; negative ones are left
                out.

        Returns:
            Those of `also` that are readable (or closed at their other end).
        """
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        for descriptor in also:
            if descriptor >= 0:
                poll.register(descriptor, select.POLLIN)
        limit_s = None if timeout_s is None else min(max(timeout_s, 0), LONGEST_WAIT_S)
        events = poll.poll(None if limit_s is None else limit_s * 1000)
        ready = {descriptor for descriptor, _ in events}
        if self._wake in ready:
            ready.remove(self._wake)
            with suppress(BlockingIOError):
                while os.read(self._wake, 4096):
                    pass
        return frozenset(ready)

    def suspend_self(self) -> None:
        """Stop this process as Ctrl-Z would have; return when it was continued."""
        os.kill(os.getpid(), signal.SIGSTOP)
        self._resumes_taken = self._counts[signal.SIGCONT]

    def _count(self, signum: int, frame: FrameType | None) -> None:
        self._counts[signal.Signals(signum)] += 1
        if self._terminated_s is None and self.terminates:
            self._terminated_s = SystemClock().boottime()


@contextmanager
def listen() -> Iterator[Signals]:
    """Count signals instead of dying of them; the former handlers come back afterwards.

    SIGINT, SIGHUP and SIGTSTP stay ignored where this process was started so. Programs started
    meanwhile begin with default handlers.

    Raises:
        ValueError: Called outside the main thread, where Python handles no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ValueError("listen() works in the main thread only")
    wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signals = Signals(wake)
    former = {}
    # A full pipe is no loss: what counts is that it is readable, the handlers do the counting.
    former_wakeup = signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    try:
        for signum in LISTENED:
            handler = signal.getsignal(signum)
            if handler is signal.SIG_IGN and signum in MAY_STAY_IGNORED:
                continue
            former[signum] = handler
            signal.signal(signum, signals._count)
        yield signals
    finally:
        for signum, handler in former.items():
            # None: set by a library, not by Python, and beyond its reach.
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(former_wakeup)
        os.close(wake)
        os.close(woken)
