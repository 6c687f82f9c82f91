"""What one worker holds and has done, until the ledger knows of it.

Of short tasks a worker takes several at once (`rhythm.py`), starts them without another word, and
has the ledger record their ends together. Whatever ended is kept here, and on this machine's disk
while the ledger is out of reach, until it was recorded or somebody else has the task.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from gpuledger import outbox
from gpuledger.clock import Clock
from gpuledger.diary import Diary
from gpuledger.errors import LeaseLost, LedgerError
from gpuledger.ledger import Ledger
from gpuledger.machine import is_alive
from gpuledger.model import Claim, Ended, Ending, Finished, Outcome, Settled, Token, WorkerIdentity
from gpuledger.patience import HASTY_LOCK_S, OUT_OF_REACH, Patience, backoffs
from gpuledger.rhythm import Rhythm
from gpuledger.signals import Signals

ASK_AGAIN_S = 5.0
"""When a ledger out of reach is asked again while a task runs that it does not know of."""

SHORTEST_TICK_S = 0.05
TRIES = 3
"""How often an outcome is kept on this machine's disk while others tidy up there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """An attempt that ended here and that the ledger does not know of yet."""

    claim: Claim
    finished: Finished

    @property
    def ending(self) -> Ending:
        """How it ended."""
        return self.finished.ending


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Of what a worker takes more.

    Attributes:
        sweeps: Only tasks of these; empty means of all.
        time_left_s: How long the next task may take; None means no limit.
        room: How many attempts this worker may begin at once; 0: none now; None: no limit.
    """

    sweeps: tuple[str, ...]
    time_left_s: Callable[[], float | None]
    room: Callable[[], int | None]


class Recorder:
    """The worker's side of the ledger's record; `after` is called for each end that it took."""

    def __init__(
        self,
        ledger: Ledger,
        patience: Patience,
        *,
        rules: Rules,
        signals: Signals,
        clock: Clock,
        say: Callable[[str], None],
        after: Callable[[Claim, Ending, Ended], None],
    ) -> None:
        self.rhythm = Rhythm(clock)
        self._ledger = ledger
        self._patience = patience
        self._rules = rules
        self._signals = signals
        self._clock = clock
        self._say = say
        self._after = after
        self._letters: dict[Token, outbox.Letter] = {}
        self._held: deque[Claim] = deque()
        self._held_nudge = ledger.store.last_nudge()
        self._unopened: Claim | None = None
        self._done: list[Done] = []
        self._left: list[Done] = []
        self._visit_again_s = 0.0
        self._taken_away: str | None = None

    def close(self) -> None:
        """Leave nothing behind on this machine but what the ledger could not take."""
        outbox.tidy(self._ledger.uuid)

    def known_as(self, me: WorkerIdentity) -> None:
        """Record as this worker from now on."""
        self._me = me
        self._diary = Diary(self._ledger.folder, me)

    # --- what happens -------------------------------------------------------------------------

    def began(self, claim: Claim, *, at: float) -> None:
        """Write down on the shared disk that an attempt runs."""
        self._diary.started(claim, at=at)

    def ended(self, claim: Claim, ending: Ending, *, started_at: float) -> None:
        """Remember that an attempt is over, until the ledger knows."""
        self._unopened = None
        ended_at = self._clock.now()
        self._diary.ended(claim.token, ending, at=ended_at)
        finished = Finished(
            token=claim.token,
            ending=ending,
            started_at=started_at,
            ended_at=ended_at,
            params=claim.params,
        )
        self._done.append(Done(claim=claim, finished=finished))

    def take_reason(self, claim: Claim) -> str | None:
        """Return why the attempt that was just killed was no longer this worker's.

        None means that the worker lost all that it had.
        """
        why, self._taken_away = self._taken_away, None
        if why is not None:
            self._diary.refused(claim.token, at=self._clock.now())
        return why

    # --- the next task ------------------------------------------------------------------------

    def is_busy(self) -> bool:
        """Tell whether something is held to be run, or done to be recorded."""
        return bool(self._held or self._done)

    def start_held(self) -> Claim | None:
        """Return a held task that may start without another word to the ledger, or None."""
        if not self._held or self._rules.room() == 0:
            return None
        if any(done.ending.outcome is not Outcome.COMPLETED for done in self._done):
            return None
        # An operator's change may mean what is held: cancelled, paused, less urgent.
        if not self.rhythm.has_time() or self._ledger.store.last_nudge() != self._held_nudge:
            return None
        self._unopened = self._held.popleft()
        return self._unopened

    def visit(self) -> Claim | None:
        """Record what is done, however long it takes, and give back what is held.

        Returns:
            The next task when its attempt is open already; others may be held instead. None as
            well when the next worker has to record what was done.

        Raises:
            LeaseLost: Others found this worker dead.
            LedgerError: Nothing was recorded (the ledger is damaged, or newer than this version);
                what is done is in the outbox.
        """
        told = False
        for backoff_s in backoffs():
            try:
                settled = self._settle(hold=self._how_many())
                break
            except OUT_OF_REACH as error:
                if not told:
                    self._tell_trying_on(error)
                    self.keep()
                    told = True
            except LeaseLost:
                raise
            except LedgerError:
                self.keep()
                raise
            if self._patience.is_over():
                self._leave_it_to_the_next()
                return None
            self._signals.wait(backoff_s)
        self._settled(settled)
        return settled.next if isinstance(settled.next, Claim) else None

    def _how_many(self) -> int:
        """Return how many tasks to ask for: none when this worker cannot run another at once."""
        room = self._rules.room()
        return self.rhythm.count() if room is None else min(self.rhythm.count(), room)

    def _settle(self, *, hold: int, running: Token | None = None) -> Settled:
        """Visit the ledger once; what was done stays in `_done` until `_act_on`."""
        self._patience.hasten()
        nudge = self._ledger.store.last_nudge()
        began_s = self._clock.boottime()
        settled = self._patience.in_this_epoch(
            lambda: self._ledger.settle(
                self._me,
                [done.finished for done in self._done],
                running=running,
                hold=hold,
                sweeps=self._rules.sweeps,
                time_left_s=self._rules.time_left_s(),
            )
        )
        self.rhythm.visit_took(self._clock.boottime() - began_s)
        self._held_nudge = nudge
        return settled

    def _settled(self, settled: Settled) -> None:
        for token in list(self._letters):
            self._forget_letter(token)
        self._held = deque(settled.held)
        self._act_on(settled)

    def _act_on(self, settled: Settled) -> None:
        """Say what became of what was done."""
        done, self._done = self._done, []
        for one, ended in zip(done, settled.ended, strict=True):
            if isinstance(ended, LeaseLost):
                self._refused(one, ended)
            else:
                self._after(one.claim, one.ending, ended)

    # --- while a task runs --------------------------------------------------------------------

    def is_open(self) -> bool:
        """Tell whether the ledger knows that the running task runs."""
        return self._unopened is None

    def due_in_s(self, longest_s: float) -> float:
        """Return how long the running task may go unwatched, in seconds, at most so long."""
        if self._unopened is None:
            return longest_s
        return min(max(self.rhythm.due_in_s(), SHORTEST_TICK_S), longest_s)

    def open_running(self, claim: Claim) -> bool:
        """Let the ledger know that a held task runs, once it is not as short as expected.

        What else is held goes back to the others. A ledger out of reach is asked again later;
        meanwhile the task is held for this worker, as long as its lease lasts.

        Returns:
            False when the task is not this worker's any more.
        """
        if self._unopened is None:
            return True
        store, now_s = self._ledger.store, self._clock.boottime()
        is_due = self.rhythm.due_in_s() <= 0 or self._held_nudge != store.last_nudge()
        if not is_due or now_s < self._visit_again_s:
            return True
        patience_s, store.lock_timeout_s = store.lock_timeout_s, HASTY_LOCK_S
        try:
            settled = self._settle(hold=0, running=claim.token)
        except LeaseLost:
            return False
        except LedgerError:
            self._visit_again_s = now_s + ASK_AGAIN_S
            return True
        finally:
            store.lock_timeout_s = patience_s
        self._unopened = None
        self._held.clear()
        self._act_on(settled)
        if settled.lost_running is not None:
            self._taken_away = settled.lost_running.problem
        return settled.lost_running is None

    # --- what the ledger could not take -------------------------------------------------------

    def deliver_late(self) -> None:
        """Others found this worker dead: what it did counts where nobody has begun it anew."""
        done, self._done = self._done, []
        self._held.clear()
        self._unopened = None
        for one in done:
            try:
                self._deliver(self._me.name, one.finished)
            except OUT_OF_REACH:
                self._post(one.finished)
                continue  # the next worker on this machine delivers it
            except LedgerError as error:
                self._refused(one, error)
            self._forget_letter(one.finished.token)
        self._letters.clear()

    def deliver_what_others_left(self) -> None:
        """Record outcomes that dead workers of this machine could not."""
        folder = outbox.outbox_folder(self._ledger.uuid)
        if folder is None:
            return
        for letter in outbox.letters(folder):
            if is_alive(letter.machine, letter.pid, letter.pid_start):
                continue
            self._patience.hasten()
            try:
                self._deliver(letter.worker, letter.finished)
            except LeaseLost:
                self._say(f"{letter.token.task}: a late outcome came too late, others have it")
            except LedgerError:
                continue  # the next worker tries again
            outbox.forget(letter)

    def _deliver(self, worker: str, finished: Finished) -> None:
        self._patience.in_this_epoch(lambda: self._ledger.deliver(worker, finished))

    def _refused(self, one: Done, error: LedgerError) -> None:
        self._say(error.problem)
        self._diary.refused(one.claim.token, at=self._clock.now())

    def _leave_it_to_the_next(self) -> None:
        self._left, self._done = self._done, []
        self._held.clear()

    def hand_in(self) -> bool:
        """Try once more to record what a worker that must leave could not; False: in vain.

        Then it must not sign off: that would end as interrupted what the next worker on this
        machine is to record.
        """
        self._done, self._left = self._left, []
        if not self._done:
            return True
        try:
            settled = self._settle(hold=0)
        except LedgerError:
            for done in self._done:
                task = done.claim.task
                self._say(f"{task}: the next worker on this machine will record its outcome")
            self._done.clear()
            return False
        self._settled(settled)
        return True

    def _tell_trying_on(self, error: LedgerError) -> None:
        if not self._done:
            self._say(f"{error.problem}, trying on")
            return
        last = self._done[-1]
        more = f" (and {len(self._done) - 1} before it)" if len(self._done) > 1 else ""
        self._say(
            f"{error.problem}; {last.claim.task} ended as {last.ending.outcome}{more}, trying on"
        )

    def keep(self) -> None:
        """Keep what is done on this machine's disk, until it or the next worker here records it."""
        for done in self._done:
            self._post(done.finished)

    def _post(self, finished: Finished) -> None:
        for _ in range(TRIES):
            folder = outbox.outbox_folder(self._ledger.uuid)
            if folder is None:
                continue
            try:
                self._letters[finished.token] = outbox.post(folder, self._me, finished)
            except FileNotFoundError:
                continue  # a worker that leaves found the folder empty, and removed it
            except OSError:
                return  # the local disk is full as well: there is only this process's memory
            return

    def _forget_letter(self, token: Token) -> None:
        letter = self._letters.pop(token, None)
        if letter is not None:
            outbox.forget(letter)
