"""The loop of one worker: claim, run, record, and again; all that it needs is passed to it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from traceback import format_exception, format_exception_only

from gpuledger import runner
from gpuledger.allocation import LEAVE_WITHIN_S, Allocation
from gpuledger.backups import Keeper
from gpuledger.clock import Clock
from gpuledger.company import Company
from gpuledger.display.lines import claimed_line, ended_line
from gpuledger.display.text import one_line, several
from gpuledger.errors import LeaseLost, LedgerError
from gpuledger.gpu_gate import GpuGate
from gpuledger.heartbeat import beat_path, written_at
from gpuledger.hook import call_hook
from gpuledger.launcher import Launcher
from gpuledger.ledger import Ledger
from gpuledger.model import (
    COUNTED_AS_FAILURE,
    Claim,
    Ended,
    Ending,
    NothingToDo,
    Outcome,
    TaskState,
    WorkerIdentity,
)
from gpuledger.origin import Origin
from gpuledger.origin_reader import PATIENCE_S, OriginReader, Start
from gpuledger.patience import AT_THE_START, OUT_OF_REACH, Patience
from gpuledger.process import CannotStart
from gpuledger.pulse import Pulse
from gpuledger.readiness import Readiness
from gpuledger.recorder import Recorder, Rules
from gpuledger.room import Room
from gpuledger.signals import Signals
from gpuledger.suspicion import SUSPECT
from gpuledger.traceback_reader import ERROR_CHARS, limited

IDLE_POLL_S = 1.0
IDLE_POLL_PER_WORKER_S = 0.05  # many idle workers look less often
LONGEST_IDLE_POLL_S = 10.0
IDLE_POLL_STRETCH = 2.5  # at most, where whoever finds work wakes the others of its machine
IDLE_POLL_SPREAD = 0.8  # who began to wait at the same time does not go on looking at the same time
LOOK_AGAIN_S = 5.0
FULL_PATIENCE_S = 600.0
ASK_AGAIN_S = 5.0
ASK_AGAIN_PER_WORKER_S = 0.1  # ten locks a second in all, where tasks wait that none may take
ASK_IN_VAIN_S = 30.0
ASK_IN_VAIN_PER_WORKER_S = 3.0
SOON_S = 0.1
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


def idle_wait_s(*, workers: int, within_reach: int, look_in_s: float) -> float:
    """Return how long to wait before the ledger, and perhaps the others, are looked at again.

    Many look less often. Where those of one machine that wait wake each other, each of them looks
    less often still: one of them looks soon.

    Args:
        workers: How many live.
        within_reach: How many others of this machine can be woken.
        look_in_s: After how many seconds the others want to be looked at.
    """
    poll_s = min(max(IDLE_POLL_S, IDLE_POLL_PER_WORKER_S * workers), LONGEST_IDLE_POLL_S)
    poll_s *= min(1 + within_reach, IDLE_POLL_STRETCH) * random.uniform(IDLE_POLL_SPREAD, 1.0)
    look_s = max(look_in_s, SOON_S)
    return look_s if look_s * IDLE_POLL_SPREAD < poll_s else poll_s  # one waking does for both


class Worker:
    """One worker: runs one task after another until told to leave, or nothing is left.

    Attributes:
        me: Its identity, as registered.
        failed_for_good: How many tasks it saw fail for the last time.
        attempts_run: How many it began.
        gave_up: It left its allocation although work is left, which no other could do either.
    """

    def __init__(self, ledger: Ledger, options: WorkerOptions, tools: Tools) -> None:
        clock, say = tools.clock, tools.say
        self.ledger = ledger
        self.failed_for_good = 0
        self.attempts_run = 0
        self.gave_up = False
        self._options = options
        self._tools = tools
        self._signals = tools.signals
        self._gpus = tools.gpus
        self._patience = Patience(
            ledger,
            signals=tools.signals,
            clock=clock,
            say=say,
            leave_within_s=(
                LEAVE_WITHIN_S if tools.allocation is None else tools.allocation.leave_within_s
            ),
        )
        self._company = Company(ledger, clock=clock, say=say, admit=tools.admit)
        self._room_on_disk = Room(ledger.folder / "runs", clock=clock)
        self._readiness = Readiness(tools.gpus, self._room_on_disk, ledger, clock=clock, say=say)
        self._recorder = Recorder(
            ledger,
            self._patience,
            rules=Rules(sweeps=options.sweeps, time_left_s=self._time_left_s, room=self._room),
            signals=tools.signals,
            clock=clock,
            say=say,
            after=self._after,
        )
        self._keeper = Keeper(ledger.store, clock=clock, now_there=self._now_there, say=say)
        self._launcher = Launcher(say=say, clock=clock)
        self._origins = OriginReader(ledger.folder, environ=tools.environ, clock=clock)
        self._nudge = self._told_nudge = ledger.store.last_nudge()
        self._drain_told = self._held_told = False
        self._outlook_s = -LOOK_AGAIN_S
        self._outlook_seen: int | None = None
        self._cool_downs = 0
        self._pause_s = 0.0

    def run(self) -> None:
        """Work until told to leave, or until nothing is left to do."""
        self._recorder.deliver_what_others_left()
        if not self._enlist(waits_for=AT_THE_START):
            return
        crash: str | None = None
        try:
            claim = self._next()
            while claim is not None:
                began_s = self._tools.clock.boottime()
                is_over = self._work_on(claim)
                self._recorder.rhythm.task_took(self._tools.clock.boottime() - began_s)
                claim = (self._go_on() if is_over else None) or self._next()
        except LedgerError:
            raise
        except Exception as error:
            crash = f"its worker crashed: {_in_one_line(error)}"
            raise
        finally:
            self._sign_off(crash=crash)

    # --- being known --------------------------------------------------------------------------

    def _enlist(self, *, waits_for: tuple[type[LedgerError], ...] = OUT_OF_REACH) -> bool:
        """Register as a new worker; False when told to leave before that was possible."""
        me = self._patience.until_reached(
            lambda: self.ledger.register(self._tools.identify()),
            is_leaving=self._is_leaving,
            waits_for=waits_for,
        )
        if me is None:
            return False
        self.me = me
        try:
            self._pulse = self._tools.pulse(me)
        except CannotStart:
            with suppress(LedgerError):  # then the others find that this process is gone
                self.ledger.leave(me.nonce)
            raise
        self._company.known_as(me)
        self._readiness.known_as(me, self._pulse)
        self._recorder.known_as(me)
        return True

    def _enlist_again(self) -> bool:
        self._recorder.deliver_late()
        self._pulse.stop()
        self._company.close()
        self._say("found dead by others (no sign of life for too long): signing on anew")
        return self._enlist()

    def _now_there(self) -> float | None:
        """Return the file server's time, as of our last sign of life."""
        return written_at(beat_path(self.ledger.folder, self.me.name, self.me.nonce))

    def _sign_off(self, *, crash: str | None) -> None:
        self._launcher.close()
        self._patience.hasten()
        if crash is not None:
            self._recorder.keep()
        if self._recorder.hand_in():
            try:
                self.ledger.leave(self.me.nonce, crash=crash)
            except LedgerError as error:
                self._say(f"could not sign off: {error.problem}")
        self._pulse.stop()
        self._company.close()
        self._recorder.close()

    # --- finding work -------------------------------------------------------------------------

    def _next(self) -> Claim | None:
        """Return the next attempt to run; None when it is time to leave."""
        has_waited = False
        while not self._is_leaving():
            self._signals.suspend_if_asked()
            self._company.reap()
            if not self._readiness.may_start(self._company.sharers()):
                if self._is_nothing_left() or self._gives_up():
                    return None
                self._signals.wait(SOON_S if self._readiness.told is None else IDLE_POLL_S)
                continue
            seen = self.ledger.store.change_counter()  # before the claim: what comes later is news
            try:
                found = self._patience.until_reached(self._claim, is_leaving=self._is_leaving)
            except LeaseLost:
                if not self._enlist_again():
                    return None
                continue
            if isinstance(found, Claim):
                if has_waited:  # there may be work for them, too
                    self._company.wake_neighbours()
                return found
            if self._gpus is not None:
                self._gpus.let_others_start()
            if found is None or self._is_done(found):
                return None
            self._wait_for_work(found, seen)
            has_waited = True
        return None

    def _claim(self) -> Claim | NothingToDo:
        return self.ledger.claim(
            self.me, sweeps=self._options.sweeps, time_left_s=self._time_left_s()
        )

    def _is_leaving(self) -> bool:
        signals = self._signals
        limit = self._options.max_tasks
        if self._company.is_unwelcome:
            return True
        if self._tools.allocation is not None and self._tools.allocation.is_over():
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
            if self._readiness.told is None:
                unfit = found.misfits and not found.pending
                self._pulse.note("no pending task fits" if unfit else None)
            self._tell_held(found)
            return False
        self._tell_misfits(found)
        for sweep in found.broken:
            self._say(
                f"sweep {sweep} is paused because its tasks fail everywhere: "
                f"see 'gpuledger status', then 'gpuledger resume {sweep}'"
            )
        return True

    def _tell_held(self, found: NothingToDo) -> None:
        """Say, once until it changes, that an operator's pause is what this worker waits for."""
        waits = bool(found.held) and not found.pending and not found.running
        if waits and not self._held_told:
            tasks = several(found.held, "pending task")
            self._say(f"{tasks} of paused sweeps: waiting ('gpuledger resume' lets them go on)")
        self._held_told = waits

    def _tell_misfits(self, found: NothingToDo) -> None:
        for sweep, why in found.misfits.items():
            self._say(f"the pending tasks of {sweep} are not for this worker: it {why}")

    def _wait_for_work(self, found: NothingToDo, seen: int | None) -> None:
        """Wait until the ledger changed since `seen`, somebody died, or it is time to ask again."""
        clock, company = self._tools.clock, self._company
        spread = random.uniform(IDLE_POLL_SPREAD, 1.0)
        began_s = clock.boottime()
        while not self._is_leaving():
            if clock.boottime() - began_s >= spread * self._ask_again_s(found):
                return
            wait_s = idle_wait_s(
                workers=len(company.live),
                within_reach=company.within_reach(),
                look_in_s=company.look_in_s(),
            )
            ended = self._signals.wait(wait_s, also=company.descriptors())
            self._signals.suspend_if_asked()
            self._keeper.see_to_it()
            changes = self.ledger.store.change_counter()
            is_due = bool(ended) or company.is_due(changes)
            if (is_due and company.reap(changes=changes)) or changes != seen:
                return

    def _ask_again_s(self, found: NothingToDo) -> float:
        """Return after how long a claim may find what the last one did not, in an unchanged ledger.

        What waits may become this worker's with time; where nothing waits, only the change of
        a ledger whose counter could not be read is found.
        """
        crowd = len(self._company.live)
        if found.pending:
            return max(ASK_AGAIN_S, ASK_AGAIN_PER_WORKER_S * crowd)
        return max(ASK_IN_VAIN_S, ASK_IN_VAIN_PER_WORKER_S * crowd)

    def _gives_up(self) -> bool:
        """Tell whether an allocation has waited in vain for a disk with room for long enough."""
        if self._tools.allocation is None or self._room_on_disk.full_for_s() < FULL_PATIENCE_S:
            return False
        self._say("the disk stays full: leaving, since an allocation that waits costs money")
        self.gave_up = True
        return True

    def _is_nothing_left(self) -> bool:
        """Tell whether a worker that cannot claim has nothing to wait for, and say so."""
        found = self._empty_outlook()
        return found is not None and self._is_done(found)

    def _empty_outlook(self) -> NothingToDo | None:
        """Return what the ledger says when it has nothing to wait for; it is asked now and then."""
        now_s = self._tools.clock.boottime()
        if now_s - self._outlook_s < LOOK_AGAIN_S:
            return None
        self._outlook_s = now_s
        changes = self.ledger.store.change_counter()
        if changes is None or changes == self._outlook_seen:
            return None
        try:
            found = self.ledger.outlook(self.me, sweeps=self._options.sweeps)
        except LedgerError:
            return None
        if found.pending or found.running or found.held or self._options.stay:
            self._outlook_seen = changes
            return None
        return found

    # --- one attempt --------------------------------------------------------------------------

    def _work_on(self, claim: Claim) -> bool:
        """Run one attempt; False when this worker was found dead and began anew."""
        files = runner.files_of(self.ledger.folder, claim)
        self._say(claimed_line(claim, self.me.name))
        started_at = self._tools.clock.now()
        self._recorder.began(claim, at=started_at)
        self.attempts_run += 1
        try:
            self._pulse.show(claim, files.report)
        except CannotStart as problem:
            self._pulse.show(None)
            self._release_unstarted(claim, problem, started_at=started_at)
            return True
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
        except LedgerError:
            raise
        except Exception as error:  # a fault of ours with this task must not stop the others
            ending = _our_fault(error)
        finally:
            memory_peak_mib = self._gpus.end() if self._gpus is not None else None
            self._pulse.show(None)
        ending = replace(ending, memory_peak_mib=memory_peak_mib, origin=self._origin())
        self._recorder.ended(claim, self._judged(ending), started_at=started_at)
        return True

    def _without_lease(self, claim: Claim) -> bool:
        """The running task was killed: it, or all that this worker had, is not its own now."""
        why = self._recorder.take_reason(claim)
        if why is not None:
            self._say(f"{why}; its processes were killed")
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
        return self._origins.take(patience_s=0.0 if self._patience.is_over() else PATIENCE_S)

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
            disk_is_full=self._room_on_disk.is_full,
            shares_signals=(
                self._tools.allocation is not None and self._tools.allocation.shares_signals
            ),
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
            tick_s=lambda: self._recorder.due_in_s(runner.TICK_S),
        )

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
        self._company.reap(busy=True)
        self._keeper.see_to_it()
        if not self._recorder.open_running(claim):
            return "lost"
        if self._recorder.is_open() and self._was_taken_away(claim):
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
        while self._recorder.is_busy():
            claim = self._recorder.start_held() or self._visit()
            if claim is not None:
                return claim
        return None

    def _visit(self) -> Claim | None:
        """Have the ledger record what is done; return the next task if it comes with that."""
        if self._recorder.rhythm.count() > 1:  # between short tasks is the only time to look round
            self._company.reap(busy=True)
            self._keeper.see_to_it()
        try:
            claim = self._recorder.visit()
        except LeaseLost:
            self._enlist_again()
            claim = None
        pause_s, self._pause_s = self._pause_s, 0.0
        self._pause(pause_s)
        return claim

    def _room(self) -> int | None:
        """Return how many attempts this worker may begin at once; None means no limit."""
        if self._is_leaving() or self._pause_s:
            return 0
        if not self._readiness.is_open(self._company.sharers()):
            return 0  # `_next` waits until they are ready
        limit = self._options.max_tasks
        return None if limit is None else limit - self.attempts_run

    def _release_unstarted(
        self, claim: Claim, error: OSError | CannotStart, *, started_at: float
    ) -> None:
        """It got no files or no guard: not the task's fault, so it is handed back."""
        lacks = (
            "guard could be started" if isinstance(error, CannotStart) else "files could be made"
        )
        self._say(f"{claim.task}: no {lacks} for it ({error}); handed back")
        ending = Ending(outcome=Outcome.INTERRUPTED, error=f"could not start: {error}")
        self._recorder.ended(claim, ending, started_at=started_at)
        self.attempts_run -= 1
        self._pause_s = LOOK_AGAIN_S
        if isinstance(error, OSError):
            self._room_on_disk.is_full()  # what it says is told before the next claim

    def _after(self, claim: Claim, ending: Ending, ended: Ended) -> None:
        """Say what became of the task and act on what the ledger thinks of this worker."""
        self._say(ended_line(claim, self.me.name, ending, ended))
        if ended.state is TaskState.FAILED:
            self.failed_for_good += 1
        if ending.outcome is Outcome.COMPLETED:
            self._cool_downs = 0
        if ending.outcome in COUNTED_AS_FAILURE and self._options.on_failure is not None:
            problem = call_hook(
                self._options.on_failure,
                claim,
                self.me.name,
                ending,
                ended,
                hurry=self._patience.is_over,
            )
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
        why = f"{SUSPECT}, cools down {pause_s:g} s"
        self._pulse.note(why)
        with suppress(LedgerError):  # then others keep failed tasks for it in vain, for a while
            self.ledger.stand_back(self.me.nonce, why)
        self._pause(pause_s)
        self._patience.until_reached(
            lambda: self.ledger.stand_back(self.me.nonce, None), is_leaving=self._is_leaving
        )
        self._pulse.note(None)

    def _pause(self, pause_s: float) -> None:
        """Run nothing for a while; what an operator does meanwhile may be the mending: go on."""
        if not pause_s:
            return
        if self._gpus is not None:
            self._gpus.let_others_start()
        nudge = self.ledger.store.last_nudge()
        until_s = self._tools.clock.boottime() + pause_s
        while not self._is_leaving() and self.ledger.store.last_nudge() == nudge:
            left_s = until_s - self._tools.clock.boottime()
            if left_s <= 0 or self._empty_outlook() is not None:
                return
            self._signals.suspend_if_asked()
            self._company.reap()
            self._signals.wait(min(left_s, IDLE_POLL_S), also=self._company.descriptors())

    def _say(self, line: str) -> None:
        self._tools.say(line)


def _our_fault(error: Exception) -> Ending:
    """Return the ending of an attempt that this worker could not see through.

    Were it handed back, it would come first again, and stop one worker after another.
    """
    return Ending(
        outcome=Outcome.LOST,
        error=f"a fault of gpuledger itself: {_in_one_line(error)}",
        traceback=limited("".join(format_exception(error))),
    )


def _in_one_line(error: Exception) -> str:
    return one_line("".join(format_exception_only(error)), limit=ERROR_CHARS)
