"""The loop of one worker: claim, run, record, and again; all that it needs is passed to it."""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from gpuledger import outbox, runner
from gpuledger.allocation import Allocation
from gpuledger.backups import Keeper
from gpuledger.clock import Clock
from gpuledger.diary import Diary
from gpuledger.display.lines import claimed_line, ended_line
from gpuledger.errors import (
    LeaseLost,
    LedgerBusy,
    LedgerDamaged,
    LedgerError,
    LedgerReplaced,
    LedgerUnreachable,
    NoLedger,
    NotAllowed,
    NotShared,
    Unavailable,
)
from gpuledger.gpu_gate import GpuGate, Standing
from gpuledger.heartbeat import beat_path, written_at
from gpuledger.hook import call_hook
from gpuledger.launcher import Launcher
from gpuledger.ledger import Ledger
from gpuledger.lookout import Lookout
from gpuledger.model import (
    COUNTED_AS_FAILURE,
    Claim,
    Ended,
    Ending,
    Finished,
    NothingToDo,
    Outcome,
    Settled,
    TaskState,
    Token,
    WorkerIdentity,
)
from gpuledger.origin import Origin
from gpuledger.origin_reader import PATIENCE_S, OriginReader, Start
from gpuledger.process import is_alive, kill_marked
from gpuledger.pulse import Pulse
from gpuledger.rhythm import Rhythm
from gpuledger.signals import Signals

T = TypeVar("T")

OUT_OF_REACH = (LedgerBusy, LedgerUnreachable, NoLedger, NotAllowed, Unavailable)
"""What may mend itself, or be mended by somebody, while a worker waits."""

FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 30.0
IDLE_POLL_S = 1.0
IDLE_POLL_PER_WORKER_S = 0.05  # many idle workers look less often
LONGEST_IDLE_POLL_S = 10.0
LOOK_AGAIN_S = 5.0
LOOK_AGAIN_PER_WORKER_S = 0.1  # ten locks a second in all, where tasks wait that none may take
HASTY_LOCK_S = 2.0
"""How long a worker that must leave waits for the ledger: its outcome is safe in the outbox."""

SHORTEST_TICK_S = 0.05

SOON_S = 0.1
QUIET_S = 2.0
"""The memory of the last task needs a moment to come back: that is not worth a word."""

STAND_BACK_S = 10.0
"""A worker whose GPUs are not ready for so long says so in the ledger: nobody waits for it."""

COOL_DOWN_S = 60.0
LONGEST_COOL_DOWN_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What the operator asked of a worker.

    Attributes:
        sweeps: Only tasks of these; empty means of all.
        max_tasks: Leave after so many attempts; None means no limit.
        stay: Wait for new tasks when the queue is empty, instead of leaving.
        on_failure: Command line to run after each failed attempt, its JSON on stdin; or None.
    """

    sweeps: tuple[str, ...] = ()
    max_tasks: int | None = None
    stay: bool = False
    on_failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What a worker works with.

    Attributes:
        signals: What the operator asks of this process.
        clock: This machine's.
        say: Prints one line.
        environ: The environment that tasks inherit.
        pulse: Starts the signs of life of a registered worker.
        identify: Returns a fresh identity for this process.
        admit: Raises NotShared when a live worker of another host shares no lock with this one.
        gpus: Decides when this worker's GPUs may take a task; None for the CPU.
        allocation: Limits this worker's time; None means no limit.
    """

    signals: Signals
    clock: Clock
    say: Callable[[str], None]
    environ: Mapping[str, str]
    pulse: Callable[[WorkerIdentity], Pulse]
    identify: Callable[[], WorkerIdentity]
    admit: Callable[[], None] = lambda: None
    gpus: GpuGate | None = None
    allocation: Allocation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """An attempt that ended here and that the ledger does not know of yet."""

    claim: Claim
    finished: Finished

    @property
    def ending(self) -> Ending:
        """How it ended."""
        return self.finished.ending


class Worker:
    """One worker: runs one task after another until told to leave, or nothing is left.

    Attributes:
        me: Its identity, as registered.
        failed_for_good: How many tasks it saw fail for the last time.
        attempts_run: How many it began.
    """

    def __init__(self, ledger: Ledger, options: WorkerOptions, tools: Tools) -> None:
        self.ledger = ledger
        self.failed_for_good = 0
        self._options = options
        self._tools = tools
        self._signals = tools.signals
        self._outbox = outbox.outbox_folder(ledger.uuid)
        self._keeper = Keeper(
            ledger.store, clock=tools.clock, now_there=self._now_there, say=tools.say
        )
        self._launcher = Launcher(say=tools.say, clock=tools.clock)
        self._origins = OriginReader(ledger.folder, environ=tools.environ, clock=tools.clock)
        self.attempts_run = 0
        self._cool_downs = 0
        self._live: tuple[WorkerIdentity, ...] = ()
        self._hosts: set[str] = set()
        self._unwelcome = False
        self._live_seen: int | None = None
        self._live_at_s = self._looked_at_s = -LOOK_AGAIN_S
        self._nudge = ledger.store.last_nudge()
        self._told_nudge = self._nudge
        self._drain_told = False
        self._gpus = tools.gpus
        self._not_ready_s: float | None = None
        self._stands_back = False
        self._outlook_s = -LOOK_AGAIN_S
        self._outlook_seen: int | None = None
        self._told: str | None = None
        self._rhythm = Rhythm(tools.clock)
        self._held: deque[Claim] = deque()
        self._held_nudge = self._nudge
        self._unopened: Claim | None = None
        self._done: list[Done] = []
        self._visit_again_s = 0.0
        self._taken_away: str | None = None
        self._pause_s = 0.0

    def run(self) -> None:
        """Work until told to leave, or until nothing is left to do."""
        self._deliver_what_others_left()
        if not self._enlist():
            return
        try:
            claim = self._next()
            while claim is not None:
                began_s = self._tools.clock.boottime()
                is_over = self._work_on(claim)
                self._rhythm.task_took(self._tools.clock.boottime() - began_s)
                claim = (self._go_on() if is_over else None) or self._next()
        finally:
            self._sign_off()

    # --- being known --------------------------------------------------------------------------

    def _enlist(self) -> bool:
        """Register as a new worker; False when told to leave before that was possible."""
        me = self._patiently(lambda: self.ledger.register(self._tools.identify()))
        if me is None:
            return False
        self.me = me
        self._stands_back = False
        if self._gpus is not None:
            self._gpus.known_as(me.nonce)
        self._pulse = self._tools.pulse(me)
        self._diary = Diary(self.ledger.folder, me)
        self._lookout = Lookout(
            self.ledger.folder, me.nonce, lease_s=self.ledger.lease_s, clock=self._tools.clock
        )
        return True

    def _enlist_again(self) -> bool:
        self._deliver_late()
        self._pulse.stop()
        self._lookout.close()
        self._say("found dead by others (no sign of life for too long): signing on anew")
        return self._enlist()

    def _now_there(self) -> float | None:
        """Return the file server's time, as of our last sign of life."""
        return written_at(beat_path(self.ledger.folder, self.me.name, self.me.nonce))

    def _sign_off(self) -> None:
        self._launcher.close()
        self._hasten()
        try:
            self.ledger.leave(self.me.nonce)
        except LedgerError as error:
            self._say(f"could not sign off: {error.problem}")
        self._pulse.stop()
        self._lookout.close()

    def _deliver_what_others_left(self) -> None:
        """Record outcomes that dead workers of this machine could not."""
        if self._outbox is None:
            return
        for letter in outbox.letters(self._outbox):
            if is_alive(letter.machine, letter.pid, letter.pid_start):
                continue
            try:
                self._deliver(letter)
            except LeaseLost:
                self._say(f"{letter.token.task}: a late outcome came too late, others have it")
            except LedgerError:
                continue  # the next worker tries again
            outbox.forget(letter)

    def _deliver(self, letter: outbox.Letter) -> None:
        self._hasten()
        self._in_this_epoch(lambda: self.ledger.deliver(letter.worker, letter.finished))

    # --- finding work -------------------------------------------------------------------------

    def _next(self) -> Claim | None:
        """Return the next attempt to run; None when it is time to leave."""
        while not self._is_leaving():
            self._reap()
            if not self._gpus_are_ready():
                if self._is_nothing_left():
                    return None
                self._signals.wait(SOON_S if self._told is None else IDLE_POLL_S)
                continue
            try:
                found = self._patiently(
                    lambda: self.ledger.claim(
                        self.me, sweeps=self._options.sweeps, time_left_s=self._time_left_s()
                    )
                )
            except LeaseLost:
                if not self._enlist_again():
                    return None
                continue
            if isinstance(found, Claim):
                return found
            if self._gpus is not None:
                self._gpus.let_others_start()
            if found is None or self._is_done(found):
                return None
            self._wait_for_work(found)
        return None

    def _is_leaving(self) -> bool:
        signals = self._signals
        limit = self._options.max_tasks
        if self._unwelcome:
            return True
        if limit is not None and self.attempts_run >= limit:
            return True
        return bool(signals.interrupts or signals.terminates or signals.drain)

    def _is_done(self, found: NothingToDo) -> bool:
        """Tell whether nothing can come back; waiting tasks of paused sweeps may."""
        if self._tools.allocation is not None and not self._options.stay and not found.pending:
            self._tell_misfits(found)
            return True  # an idle allocation costs money
        if self._options.stay or found.pending or found.running or found.held:
            if self._told is None:
                unfit = found.misfits and not found.pending
                self._pulse.note("no pending task fits" if unfit else None)
            return False
        self._tell_misfits(found)
        for sweep in found.broken:
            self._say(
                f"sweep {sweep} is paused because its tasks fail everywhere: "
                f"see 'gpuledger status', then 'gpuledger resume {sweep}'"
            )
        return True

    def _tell_misfits(self, found: NothingToDo) -> None:
        for sweep, why in found.misfits.items():
            self._say(f"the pending tasks of {sweep} are not for this worker: it {why}")

    def _wait_for_work(self, found: NothingToDo) -> None:
        """Wait until the ledger changed, somebody died, or it is time to look again."""
        clock = self._tools.clock
        seen = self.ledger.store.change_counter()
        again_s = clock.boottime() + (
            max(LOOK_AGAIN_S, LOOK_AGAIN_PER_WORKER_S * len(self._live))
            if found.pending
            else max(6 * LOOK_AGAIN_S, 5 * LOOK_AGAIN_PER_WORKER_S * len(self._live))
        )
        longest_s = min(LONGEST_IDLE_POLL_S, self.ledger.heartbeat_s)
        while not self._is_leaving() and clock.boottime() < again_s:
            poll_s = min(max(IDLE_POLL_S, IDLE_POLL_PER_WORKER_S * len(self._live)), longest_s)
            self._signals.wait(random.uniform(poll_s / 2, poll_s), also=self._lookout.descriptors())
            self._keeper.see_to_it()
            if self._reap() or self.ledger.store.change_counter() != seen:
                return

    # --- the GPUs -----------------------------------------------------------------------------

    def _gpus_are_ready(self) -> bool:
        """Tell whether the next task may start; if not, say why, here and in `status`."""
        if self._gpus is None:
            return True
        standing = self._gpus.standing(self._sharers())
        now_s = self._tools.clock.boottime()
        if standing.closed is None:
            self._not_ready_s = None
            self._show(standing)
            self._stand_back(None)
            return True
        if self._not_ready_s is None:
            self._not_ready_s = now_s
        waited_s = now_s - self._not_ready_s
        if standing.lost or waited_s > QUIET_S:
            self._show(standing)
        if standing.lost or waited_s > STAND_BACK_S:
            self._stand_back(standing.closed)
        return False

    def _sharers(self) -> frozenset[str]:
        """Return the nonces of the workers whose tasks may be on the same GPUs."""
        here = (self.me.machine, self.me.gpus)
        others = {other.nonce for other in self._live if (other.machine, other.gpus) == here}
        return frozenset({self.me.nonce} | others)

    def _show(self, standing: Standing) -> None:
        note = standing.closed or standing.note
        if note is not None or self._told is not None:
            self._pulse.note(note)
        if note == self._told:
            return
        if note is not None and _without_numbers(note) != _without_numbers(self._told or ""):
            self._say(f"{note}; {'claiming nothing' if standing.closed else 'going on'}")
        elif note is None:
            self._say("the GPU can take the next task")
        self._told = note

    def _stand_back(self, why: str | None) -> None:
        """Record whether others should count on this worker; only when that changed."""
        if self._stands_back == (why is not None):
            return
        with contextlib.suppress(LedgerError):
            self.ledger.stand_back(self.me.nonce, why)
            self._stands_back = why is not None

    def _is_nothing_left(self) -> bool:
        """Tell whether a worker that cannot claim has nothing to wait for; asked now and then."""
        now_s = self._tools.clock.boottime()
        if now_s - self._outlook_s < LOOK_AGAIN_S:
            return False
        self._outlook_s = now_s
        changes = self.ledger.store.change_counter()
        if changes is None or changes == self._outlook_seen:
            return False
        try:
            found = self.ledger.outlook(self.me, sweeps=self._options.sweeps)
        except LedgerError:
            return False
        self._outlook_seen = changes
        if found.pending or found.running or found.held or self._options.stay:
            return False
        return self._is_done(found)

    # --- watching the others ------------------------------------------------------------------

    def _reap(self, *, busy: bool = False) -> bool:
        """Look at the other workers and end what the dead ones had; True when there was any."""
        now_s = self._tools.clock.boottime()
        self._refresh_live(now_s, busy=busy)
        dead = dict(self._lookout.dead_here(self._live))
        here = set(dead)
        if now_s - self._looked_at_s >= self.ledger.heartbeat_s:
            self._looked_at_s = now_s
            dead |= self._lookout.silent(self._live, only_share=busy)
        if not dead:
            return False
        for nonce in here:
            kill_marked(nonce)  # whatever a dead worker's task left running on this machine
        try:
            lost = self.ledger.reap(dead)
        except LedgerError:
            return False
        self._live = tuple(worker for worker in self._live if worker.nonce not in dead)
        for claim in lost:
            self._say(f"{claim.task}: its worker died in attempt {claim.number}; it goes back")
        return bool(lost)

    def _refresh_live(self, now_s: float, *, busy: bool) -> None:
        """Ask the ledger who is there, but seldom, and only when it changed."""
        pace_s = self.ledger.lease_s if busy else self.ledger.heartbeat_s
        if now_s - self._live_at_s < pace_s:
            return
        self._live_at_s = now_s
        changes = self.ledger.store.change_counter()
        if changes is None or changes == self._live_seen:
            return
        with contextlib.suppress(LedgerError):
            self._live = self.ledger.live_workers()
            self._live_seen = changes
            self.ledger.store.expect_crowd(len(self._live))
            self._look_for_strangers()

    def _look_for_strangers(self) -> None:
        """Leave, after the running task, when a host has come that shares no lock with this one."""
        hosts = {worker.machine.partition(":")[0] for worker in self._live}
        if hosts == self._hosts:
            return
        try:
            self._tools.admit()
            self._hosts = hosts
        except NotShared as error:
            self._say(f"{error}; leaving")
            self._unwelcome = True

    # --- one attempt --------------------------------------------------------------------------

    def _work_on(self, claim: Claim) -> bool:
        """Run one attempt; False when this worker was found dead and began anew."""
        files = runner.files_of(self.ledger.folder, claim)
        self._say(claimed_line(claim, self.me.name))
        self._pulse.show(claim, files.report)
        started_at = self._tools.clock.now()
        self._diary.started(claim, at=started_at)
        self.attempts_run += 1
        self._origins.begin(self._start_of(claim, files))
        if self._gpus is not None:
            self._gpus.begin()
        try:
            ending = runner.run(claim, files, self._surroundings(claim, files))
        except runner.LeaseGone:
            return self._without_lease(claim)
        except OSError as error:
            self._release_unstarted(claim, error, started_at=started_at)
            return True
        finally:
            memory_peak_mib = self._gpus.end() if self._gpus is not None else None
            self._pulse.show(None)
        ending = replace(ending, memory_peak_mib=memory_peak_mib, origin=self._origin())
        self._note_end(claim, self._judged(ending), started_at=started_at)
        return True

    def _note_end(self, claim: Claim, ending: Ending, *, started_at: float) -> None:
        """Remember that an attempt is over, until the ledger knows."""
        self._unopened = None
        ended_at = self._tools.clock.now()
        self._diary.ended(claim.token, ending, at=ended_at)
        finished = Finished(
            token=claim.token, ending=ending, started_at=started_at, ended_at=ended_at
        )
        self._done.append(Done(claim=claim, finished=finished))

    def _without_lease(self, claim: Claim) -> bool:
        """The running task was killed: it, or all that this worker had, is not its own now."""
        why, self._taken_away = self._taken_away, None
        if why is not None:
            self._say(f"{why}; its processes were killed")
            self._diary.refused(claim.token, at=self._tools.clock.now())
            return True
        self._say(f"{claim.task}: lease lost, its processes were killed")
        self._enlist_again()
        return False

    def _start_of(self, claim: Claim, files: runner.Files) -> Start:
        return Start(
            argv=runner.command(claim, files),
            workdir=claim.settings.workdir,
            env=runner.environment(claim, self.me, files, self._tools.environ),
            host=self.me.host,
            gpus=self.me.gpus,
            record_diff=claim.settings.record_diff,
        )

    def _origin(self) -> Origin | None:
        """Return where the attempt came from; a worker in a hurry waits for nothing."""
        hurried = self._signals.terminates or self._signals.interrupts >= 2
        return self._origins.take(patience_s=0.0 if hurried else PATIENCE_S)

    def _judged(self, ending: Ending) -> Ending:
        """A failure on a GPU that is gone now is the machine's, not the task's."""
        if self._gpus is None or ending.outcome not in COUNTED_AS_FAILURE:
            return ending
        lost = self._gpus.lost()
        if lost is None:
            return ending
        error = f"{lost}: {ending.error}" if ending.error else lost
        return replace(ending, outcome=Outcome.LOST, error=error, fatal=False)

    def _surroundings(self, claim: Claim, files: runner.Files) -> runner.Surroundings:
        return runner.Surroundings(
            worker=self.me,
            signals=self._signals,
            lease=lambda: self._lease(claim, files),
            gpu_lost=self._gpus.lost_for_long if self._gpus is not None else lambda: None,
            time_is_up=self._time_is_up(claim),
            leaving_grace_s=(
                runner.LEAVING_GRACE_S
                if self._tools.allocation is None
                else self._tools.allocation.grace_s
            ),
            stop_requested=lambda: self._stop_requested(claim),
            say=self._say,
            launcher=self._launcher,
            started=self._pulse.covers,
            environ=self._tools.environ,
            clock=self._tools.clock,
            tick_s=self._tick_s,
        )

    def _tick_s(self) -> float:
        """Return how long the running task may go unwatched."""
        if self._unopened is None:
            return runner.TICK_S
        return min(max(self._rhythm.due_in_s(), SHORTEST_TICK_S), runner.TICK_S)

    def _time_left_s(self) -> float | None:
        allocation = self._tools.allocation
        return None if allocation is None else allocation.time_left_s()

    def _time_is_up(self, claim: Claim) -> Callable[[], str | None]:
        """Return what tells whether the running task must be handed back for want of time."""
        allocation, began_s = self._tools.allocation, self._tools.clock.boottime()
        if allocation is None:
            return lambda: None

        def ask() -> str | None:
            return allocation.verdict(
                usual_s=claim.usual_s,
                elapsed_s=self._tools.clock.boottime() - began_s,
                warned=bool(self._signals.drain),
            )

        return ask

    def _lease(self, claim: Claim, files: runner.Files) -> str:
        """Answer whether the running attempt is still ours; see `runner.Surroundings`."""
        if self._gpus is not None:
            self._gpus.tick(files.report)
        self._tell_drain()
        self._reap(busy=True)
        self._keeper.see_to_it()
        if self._unopened is not None and not self._open_running(claim):
            return "lost"
        if self._unopened is None and self._was_taken_away(claim):
            return "lost"
        if not self._pulse.lapsed():
            return "ours"
        if self._pulse.is_late():
            return "unsure"
        try:
            alive = self.ledger.confirm(self.me)
        except LedgerError:
            return "unsure"
        if not alive:
            return "lost"
        self._pulse.trust_again()
        return "regained"

    def _was_taken_away(self, claim: Claim) -> bool:
        """Ask, after a nudge, whether a recovered ledger still knows of this attempt."""
        nudge = self.ledger.store.last_nudge()
        if nudge == self._told_nudge:
            return False
        try:
            taken = not self.ledger.is_open(claim.token)
        except LeaseLost:
            taken = True
        except LedgerError:
            return False
        self._told_nudge = nudge
        return taken

    def _stop_requested(self, claim: Claim) -> bool:
        """Read the ledger when an operator nudged the workers."""
        nudge = self.ledger.store.last_nudge()
        if nudge == self._nudge:
            return False
        try:
            wanted = self.ledger.stop_requested(claim.token)
        except LedgerError:
            return False
        self._nudge = nudge
        return wanted

    def _tell_drain(self) -> None:
        if self._drain_told or not (self._signals.interrupts or self._signals.drain):
            return
        self._drain_told = True
        self._pulse.note("leaves after this task")
        self._say(
            "finishing this task, then leaving (Ctrl-C again hands it back, a third time kills it)"
        )

    # --- recording ----------------------------------------------------------------------------

    def _go_on(self) -> Claim | None:
        """Return the next task when there is one already; the ledger hears what it must."""
        while self._held or self._done:
            if self._may_start_held():
                self._unopened = self._held.popleft()
                return self._unopened
            claim = self._visit()
            if claim is not None:
                return claim
        return None

    def _may_start_held(self) -> bool:
        """Tell whether a held task may start without another word to the ledger."""
        if not self._held or self._wants_next() is None:
            return False
        if any(done.ending.outcome is not Outcome.COMPLETED for done in self._done):
            return False
        # An operator's change may mean what is held: cancelled, paused, less urgent.
        return self._rhythm.has_time() and self.ledger.store.last_nudge() == self._held_nudge

    def _visit(self) -> Claim | None:
        """Record what is done, however long it takes, and give back what is held.

        Returns:
            The next task when its attempt is open already; others may be held instead. None as
            well when others have what was done, or when the next worker has to record it.
        """
        if self._rhythm.count() > 1:  # between short tasks is the only time to look around
            self._reap(busy=True)
            self._keeper.see_to_it()
        letters: list[outbox.Letter] = []
        backoff_s = FIRST_BACKOFF_S
        told = False
        while True:
            try:
                settled = self._settle(hold=self._how_many())
                break
            except LeaseLost:
                self._enlist_again()
                settled = Settled()
                break
            except LedgerDamaged:
                self._post_all()
                raise
            except OUT_OF_REACH as error:
                if not told:
                    self._tell_trying_on(error)
                    letters = self._post_all()
                    told = True
            if self._signals.terminates or self._signals.interrupts >= 2:
                for done in self._done:
                    self._say(
                        f"{done.claim.task}: the next worker on this machine will record its "
                        "outcome"
                    )
                self._done.clear()
                self._held.clear()
                return None
            self._signals.wait(random.uniform(backoff_s / 2, backoff_s))
            backoff_s = min(backoff_s * 2, LONGEST_BACKOFF_S)
        for letter in letters:
            outbox.forget(letter)
        self._held = deque(settled.held)
        self._act_on(settled)
        return settled.next if isinstance(settled.next, Claim) else None

    def _settle(self, *, hold: int, running: Token | None = None) -> Settled:
        """Visit the ledger once; what was done stays in `_done` until `_act_on`."""
        self._hasten()
        nudge = self.ledger.store.last_nudge()
        began_s = self._tools.clock.boottime()
        settled = self._in_this_epoch(
            lambda: self.ledger.settle(
                self.me,
                [done.finished for done in self._done],
                running=running,
                hold=hold,
                sweeps=self._options.sweeps,
                time_left_s=self._time_left_s(),
            )
        )
        self._rhythm.visit_took(self._tools.clock.boottime() - began_s)
        self._held_nudge = nudge
        return settled

    def _how_many(self) -> int:
        """Return how many tasks to ask for: none when this worker cannot run another at once."""
        if self._wants_next() is None:
            return 0
        limit = self._options.max_tasks
        count = self._rhythm.count()
        return count if limit is None else min(count, limit - self.attempts_run)

    def _act_on(self, settled: Settled) -> None:
        """Say what became of what was done."""
        done, self._done = self._done, []
        for one, ended in zip(done, settled.ended, strict=False):
            if isinstance(ended, LeaseLost):
                self._say(ended.problem)
                self._diary.refused(one.claim.token, at=self._tools.clock.now())
            else:
                self._after(one.claim, one.ending, ended)
        if self._pause_s:
            pause_s, self._pause_s = self._pause_s, 0.0
            self._pause(pause_s)

    def _open_running(self, claim: Claim) -> bool:
        """Let the ledger know that a held task runs, once it is not as short as expected.

        What else is held goes back to the others. A ledger out of reach is asked again later;
        meanwhile the task is held for this worker, as long as its lease lasts.

        Returns:
            False when the task is not this worker's any more.
        """
        store, now_s = self.ledger.store, self._tools.clock.boottime()
        is_due = self._rhythm.due_in_s() <= 0 or self._held_nudge != store.last_nudge()
        if not is_due or now_s < self._visit_again_s:
            return True
        patience_s, store.lock_timeout_s = store.lock_timeout_s, HASTY_LOCK_S
        try:
            settled = self._settle(hold=0, running=claim.token)
        except LeaseLost:
            return False
        except LedgerError:
            self._visit_again_s = now_s + LOOK_AGAIN_S
            return True
        finally:
            store.lock_timeout_s = patience_s
        self._unopened = None
        self._held.clear()
        self._act_on(settled)
        if settled.lost_running is not None:
            self._taken_away = settled.lost_running.problem
        return settled.lost_running is None

    def _tell_trying_on(self, error: LedgerError) -> None:
        if not self._done:
            self._say(f"{error.problem}, trying on")
            return
        last = self._done[-1]
        more = f" (and {len(self._done) - 1} before it)" if len(self._done) > 1 else ""
        self._say(
            f"{error.problem}; {last.claim.task} ended as {last.ending.outcome}{more}, trying on"
        )

    def _deliver_late(self) -> None:
        """Others found this worker dead: what it did counts where nobody has begun it anew."""
        done, self._done = self._done, []
        self._held.clear()
        self._unopened = None
        for one in done:
            finished = one.finished
            try:
                self._in_this_epoch(lambda: self.ledger.deliver(self.me.name, finished))  # noqa: B023
            except OUT_OF_REACH:
                self._post(finished)
            except LedgerError as error:
                self._say(error.problem)
                self._diary.refused(one.claim.token, at=self._tools.clock.now())

    def _accept_recovery(self) -> None:
        """The ledger was recovered from a backup: our token will be judged by what it knows now."""
        self._say("the ledger was recovered from a backup meanwhile, looking at it anew")
        self.ledger.reopen()

    def _hasten(self) -> None:
        if self._signals.terminates or self._signals.interrupts >= 2:
            self.ledger.store.lock_timeout_s = HASTY_LOCK_S

    def _in_this_epoch(self, operation: Callable[[], T]) -> T:
        try:
            return operation()
        except LedgerReplaced:
            self._accept_recovery()
            return operation()

    def _wants_next(self) -> WorkerIdentity | None:
        """Return this worker when it can run another task at once."""
        if self._is_leaving() or self._pause_s:
            return None
        if self._gpus is not None and self._gpus.standing(self._sharers()).closed is not None:
            return None  # `_next` waits until they are ready
        return self.me

    def _post_all(self) -> list[outbox.Letter]:
        """Keep what is done on this machine's disk until the ledger knows."""
        letters = [self._post(done.finished) for done in self._done]
        return [letter for letter in letters if letter is not None]

    def _post(self, finished: Finished) -> outbox.Letter | None:
        if self._outbox is None:
            return None
        try:
            return outbox.post(self._outbox, self.me, finished)
        except OSError:
            return None  # the local disk is full as well: there is only this process's memory

    def _release_unstarted(self, claim: Claim, error: OSError, *, started_at: float) -> None:
        """The attempt's files could not be made: not the task's fault, so it is handed back."""
        self._say(f"{claim.task}: no files could be made for it ({error}); handed back")
        ending = Ending(outcome=Outcome.INTERRUPTED, error=f"could not start: {error}")
        self._note_end(claim, ending, started_at=started_at)
        self.attempts_run -= 1
        self._pause_s = LOOK_AGAIN_S

    def _after(self, claim: Claim, ending: Ending, ended: Ended) -> None:
        """Say what became of the task and act on what the ledger thinks of this worker."""
        self._say(ended_line(claim, self.me.name, ending, ended))
        if ended.state is TaskState.FAILED:
            self.failed_for_good += 1
        if ending.outcome is Outcome.COMPLETED:
            self._cool_downs = 0
        if ending.outcome in COUNTED_AS_FAILURE and self._options.on_failure is not None:
            problem = call_hook(self._options.on_failure, claim, self.me.name, ending, ended)
            if problem is not None:
                self._say(f"the --on-failure command failed: {problem}")
        if ended.sweep_paused is not None:
            self._say(f"sweep {claim.sweep} is paused: {ended.sweep_paused}")
        if ended.suspect:
            self._cool_down()

    def _cool_down(self) -> None:
        pause_s = min(COOL_DOWN_S * 2**self._cool_downs, LONGEST_COOL_DOWN_S)
        self._cool_downs += 1
        self._say(
            f"three tasks in a row failed quickly here and nowhere else: {self.me.name} is "
            f"suspect and cools down for {pause_s:g} s; the tasks got those attempts back"
        )
        self._pulse.note(f"suspect, cools down {pause_s:g} s")
        self._pause(pause_s)
        self._pulse.note(None)

    def _pause(self, pause_s: float) -> None:
        if self._gpus is not None:
            self._gpus.let_others_start()
        until_s = self._tools.clock.boottime() + pause_s
        while not self._is_leaving():
            left_s = until_s - self._tools.clock.boottime()
            if left_s <= 0:
                return
            self._signals.wait(min(left_s, IDLE_POLL_S))

    # --- patience -----------------------------------------------------------------------------

    def _patiently(self, operation: Callable[[], T]) -> T | None:
        """Repeat until the ledger can be reached; None when told to leave before that."""
        backoff_s = FIRST_BACKOFF_S
        told: str | None = None
        while True:
            try:
                answer = self._in_this_epoch(operation)
            except OUT_OF_REACH as error:
                if error.problem != told:
                    self._say(f"{error}; waiting until it is mended")
                    told = error.problem
            else:
                if told is not None:
                    self._say("the ledger is back, going on")
                return answer
            if self._is_leaving():
                return None
            self._signals.wait(random.uniform(backoff_s / 2, backoff_s))
            backoff_s = min(backoff_s * 2, LONGEST_BACKOFF_S)

    def _say(self, line: str) -> None:
        self._tools.say(line)


def _without_numbers(text: str) -> str:
    """Return what makes a sentence worth saying again: not that a process took 2 MB more."""
    return "".join(char for char in text if not char.isdigit() and char != ".")
