"""What happens inside the lab: `python -m tests.nfs.stories STORY`; its last line is JSON.

Every host of the lab has one clock (CLOCK_MONOTONIC is that of the kernel they share), so that
ticks of tasks on different hosts can be compared here, and only here.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gpuledger.errors import LedgerBusy, LedgerError
from gpuledger.ledger import Ledger
from gpuledger.line import stand
from gpuledger.store import Store, connect
from tests.helpers import spec, wait_until

SHARE = Path("/mnt/ledger")  # on every client
HERE = Path("/mnt/client1")  # the same, as client 1 sees it
ENV = {"PYTHONDONTWRITEBYTECODE": "1"}
ME = [sys.executable, "-m", "tests.nfs.stories"]
GPULEDGER = [sys.executable, "-m", "gpuledger"]


def start(client: int | str, *command: str, out: str | None = None) -> subprocess.Popen[str]:
    """Start a command on a host; its output goes to a file there, or can be read."""
    line = ["lab", "on", str(client), *command]
    if out is not None:
        line = ["lab", "on", str(client), "sh", "-c", f'exec "$@" >{out} 2>&1', "sh", *command]
    return subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **ENV}
    )


def run(client: int | str, *command: str, exit_code: int | None = 0) -> str:
    """Run a command on a host to its end and return its output."""
    done = subprocess.run(
        ["lab", "on", str(client), *command],
        capture_output=True, text=True, env={**os.environ, **ENV}, check=False,
    )  # fmt: skip
    if exit_code is not None:
        assert done.returncode == exit_code, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def lab(*arguments: str) -> None:
    """Tell the lab to do something: cut, join, server restart."""
    subprocess.run(["lab", *arguments], check=True, stdout=subprocess.DEVNULL)


# --- three hosts drain a queue while everything goes wrong ------------------------------------

SLOW = 15
SLOW_S = 32
LEASE_S = 18
CUT_S = 50

SWEEP = """
command = ["/bin/sh", "/mnt/ledger/task.sh", "{seconds}"]
order = "listed"
seeds = {number}
parameters.seconds = {seconds}

[run]
priority = {priority}
timeout = "5m"
avoid = "1s"
max_losses = 20
"""

TASK = """
ticks=/tmp/ticks-$GPULEDGER_TASK-$GPULEDGER_ATTEMPT
tick() { read up rest </proc/uptime; echo $up >>$ticks; }
tick
n=0
: >/mnt/ledger/begun/$(uname -n)-$GPULEDGER_TASK
while [ $n -lt $1 ]; do sleep 1; tick; n=$((n + 1)); done
tick
: >/mnt/ledger/done/$GPULEDGER_TASK
"""
LEDGER = "--ledger=/mnt/ledger/.gpuledger"


def write_sweep(name: str, *, number: int, seconds: int, priority: int) -> str:
    """Write a sweep of so many tasks of so many seconds; return its path on every client."""
    text = SWEEP.replace("{number}", str(number)).replace("= {seconds}", f"= {seconds}")
    (HERE / f"{name}.toml").write_text(text.replace("{priority}", str(priority)))
    return f"/mnt/ledger/{name}.toml"


def drain(tasks: str) -> dict[str, Any]:
    """Three clients, three workers each; a SIGKILL, a client cut off, a server restart.

    All but fifteen of the tasks are quick. The slow ones come once all hosts are at work, and
    every worker of two hosts has one when a worker is killed on one and the other is cut off.
    """
    number = int(tasks)
    for folder in ("begun", "done"):
        (HERE / folder).mkdir()
    (HERE / "task.sh").write_text(TASK)
    quick = write_sweep("quick", number=number - SLOW, seconds=0, priority=0)
    run(1, *GPULEDGER, "init", quick, LEDGER, f"--lease={LEASE_S}s", "--heartbeat=2s")
    run(1, *GPULEDGER, "pause", "quick", LEDGER)
    began_s = time.monotonic()
    workers = {
        (client, slot): start(
            client, *GPULEDGER, "work", "--cpu", LEDGER, out=f"/tmp/worker-{slot}.out"
        )
        for slot in range(3)
        for client in (1, 2, 3)
    }
    signs = HERE / ".gpuledger" / "workers"
    try:
        wait_until(
            lambda: len(list(signs.iterdir())) == len(workers),
            because="all workers gave a sign of life",
            timeout_s=300,
        )
    except AssertionError as error:
        names = sorted(path.name for path in signs.iterdir())
        raise AssertionError(f"{error}: {names} {what_workers_said()}") from None
    run(1, *GPULEDGER, "resume", "quick", LEDGER)
    story = []

    def tell(what: str) -> None:
        story.append(f"{time.monotonic() - began_s:.0f} s: {what}; {done()} done")

    def done() -> int:
        return len(list((HERE / "done").iterdir()))

    def reached(number: int) -> None:
        wait_until(lambda: done() >= number, because=f"{number} tasks are done", timeout_s=900)

    def at_slow_ones(client: int) -> bool:
        begun = {path.name for path in (HERE / "begun").glob(f"client{client}-slow*")}
        ended = {f"client{client}-{path.name}" for path in (HERE / "done").iterdir()}
        return len(begun - ended) == 3

    reached(number // 10)
    tell("adding slow ones")
    slow = write_sweep("slow", number=SLOW, seconds=SLOW_S, priority=10)
    run(2, *GPULEDGER, "init", slow, LEDGER)
    both = "all workers of both are at slow ones"
    wait_until(lambda: at_slow_ones(1) and at_slow_ones(3), because=both, timeout_s=600)
    with held_lock(2):  # NFSv3 would keep it for the other until that is back: nobody could go on
        lab("cut", "3", str(CUT_S))
    tell("cut client 3 off for longer than the lease")
    victim = run(1, "sh", "-c", f"pgrep -o -f '^{sys.executable} -m gpuledger work'").strip()
    run(1, "kill", "-9", victim)
    tell(f"killed worker {victim} on client 1")
    reached(number // 2)
    lab("server", "restart", "3")
    tell("restarted the server")
    reached(number)
    codes = {f"{at[0]}.{at[1]}": process.wait(300) for at, process in workers.items()}
    tell("all workers have left")
    rows = json.loads(run(2, *GPULEDGER, "tasks", "--json", LEDGER))
    return {
        "story": story,
        "codes": codes,
        "states": count(row["state"] for row in rows),
        "outcomes": count(attempt["outcome"] for row in rows for attempt in row["attempts"]),
        "lost_by": sorted(
            {
                attempt["worker"].partition(":")[0]
                for row in rows
                for attempt in row["attempts"]
                if attempt["outcome"] == "lost"
            }
        ),
        "failures": sum(row["failures"] for row in rows),
        "overlaps": overlaps(number),
        "integrity": integrity(),
        "said": what_workers_said(),
    }


@contextlib.contextmanager
def held_lock(client: int) -> Iterator[None]:
    """Let nobody but a process on this client hold the ledger's lock meanwhile."""
    with start(client, *ME, "hold-lock") as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield
        holder.communicate()


def what_workers_said() -> dict[int, str]:
    """Return, for each client, what its workers printed besides what they ran."""
    command = "cat /tmp/worker-*.out | grep -v 'started on\\|completed'"
    return {client: run(client, "sh", "-c", command, exit_code=None) for client in (1, 2, 3)}


def count(values: Any) -> dict[str, int]:
    """Return how often each value occurs."""
    counts: dict[str, int] = {}
    for value in values:
        counts[str(value)] = counts.get(str(value), 0) + 1
    return counts


def overlaps(number: int) -> list[str]:
    """Return the tasks of which two attempts ticked at the same time, on whatever host."""
    spans: dict[str, list[tuple[float, float, str]]] = {}
    for client in (1, 2, 3):
        text = run(client, "sh", "-c", "cd /tmp; grep . ticks-* || true")
        times: dict[str, list[float]] = {}
        for name, at in re.findall(r"^ticks-(\S+):([\d.]+)$", text, re.M):
            times.setdefault(name, []).append(float(at))
        for name, ticks in times.items():
            task = name.rpartition("-")[0]
            spans.setdefault(task, []).append((min(ticks), max(ticks), f"{client}:{name}"))
    found = []
    for task, attempts in spans.items():
        ordered = sorted(attempts)
        for before, after in itertools.pairwise(ordered):
            if after[0] < before[1]:
                found.append(f"{task}: {before} {after}")
    assert len(spans) == number, "every task ticked somewhere"
    return found


def integrity() -> str:
    """Return what SQLite says of the file, asked on the server itself."""
    code = (
        "import sqlite3; db = sqlite3.connect('/export/.gpuledger/ledger.db'); "
        "print(db.execute('PRAGMA integrity_check').fetchone()[0])"
    )
    return run("server", sys.executable, "-c", code).strip()


# --- a stray program that keeps the file open --------------------------------------------------

CHANGES = 20


def stray() -> dict[str, Any]:
    """A program keeps the db open on client 2; who reads there must not see old pages."""
    ledger = Ledger.create(HERE / ".gpuledger")
    ledger.add_sweep(spec(points=2))
    holder = start(2, *ME, "hold-open")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "open\n"
    found = {}
    for rule in ("kept", "broken"):
        reader = start(2, *ME, "read-along", rule)
        assert reader.stdin is not None
        assert reader.stdout is not None
        stale = 0
        for number in range(CHANGES):
            ledger.set_priority(selection(), 1000 + number)
            reader.stdin.write("look\n")
            reader.stdin.flush()
            stale += int(reader.stdout.readline()) != 1000 + number
        reader.stdin.close()
        reader.wait()
        found[rule] = stale
    holder.kill()
    holder.wait()
    return found


def selection() -> Any:
    """Return the selection of all tasks."""
    from gpuledger.selection import Selection

    return Selection(sweep="exp")


def hold_open() -> None:
    """Be the stray program: a db opened read-write and never closed."""
    descriptor = os.open(SHARE / ".gpuledger" / "ledger.db", os.O_RDWR)
    os.pread(descriptor, 65536, 0)
    print("open", flush=True)
    time.sleep(600)


def read_along(rule: str) -> None:
    """Answer each line with the priority as read through the product's own access."""
    if rule == "broken":
        Store.vfs = "vfs=unix-none"  # without SQLite's own lock
    store = Store(SHARE / ".gpuledger")
    for _ in sys.stdin:
        print(
            store.read(lambda db: db.execute("SELECT priority FROM task").fetchone()[0]), flush=True
        )


# --- a holder whose machine is gone -------------------------------------------------------------


def gone_holder() -> dict[str, Any]:
    """The machine that holds the lock is cut off: who waits is told which one it is."""
    Ledger.create(HERE / ".gpuledger")
    holder = start(1, *ME, "hold-lock")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    lab("cut", "1")
    waiters = [start(client, *ME, "try-lock") for client in (2, 2, 3)]
    said = [waiter.communicate(timeout=120)[0] for waiter in waiters]
    lab("join", "1")
    holder.kill()
    holder.wait()
    return {"said": said}


def hold_lock() -> None:
    """Hold both locks until stdin ends."""

    def work(db: sqlite3.Connection) -> None:
        print("held", flush=True)
        sys.stdin.read()

    Store(SHARE / ".gpuledger").write(work, operation="claim")


def try_lock() -> None:
    """Wait for the lock for a short while, and print what is said."""
    try:
        Store(SHARE / ".gpuledger", lock_timeout_s=8.0).read(lambda db: None)
        print("got it")
    except LedgerBusy as error:
        print(error)


# --- standing in line ----------------------------------------------------------------------------


class Stander:
    """A process on a client that can stand in line, and answers how far the first in it is."""

    def __init__(self, client: int) -> None:
        self._process = start(client, *ME, "stand")
        self._answer()

    def ask(self, what: str) -> int:
        self._tell(what)
        return self._answer()

    def die(self) -> None:
        """Kill it with SIGKILL there, and wait until it has ended."""
        self._tell("die")
        self._process.wait()

    def kill(self) -> None:
        """Kill it there, not only the way to it; its machine may be cut off."""
        self._process.kill()
        self._process.wait()

    def _tell(self, what: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()

    def _answer(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


def line() -> dict[str, Any]:
    """Two clients in one line: one is killed, one is cut off and passed over.

    All are started before the cut: the server forgets who is cut off once its lease is over.
    """
    standers = [Stander(client) for client in (1, 2, 1, 2, 2)]
    first, second, third, patient, late = standers
    found: dict[str, Any] = {"came": [who.ask("take") for who in (first, second, third)]}
    first.ask("leave")
    found["one left"] = [second.ask("look"), third.ask("look")]
    second.die()
    # Who is killed does not wait for the server to have its lock back.
    wait_until(lambda: third.ask("look") == 0, because="the lock of one who died is given back")
    lab("cut", "1")  # with the third
    found["one is cut off"] = patient.ask("take")
    patient.ask("pass")
    found["passed over"] = late.ask("take")
    patient.ask("leave")
    found["the first now"] = late.ask("look")
    lab("join", "1")
    found["back"] = third.ask("look")
    for stander in standers:
        stander.kill()
    return found


def stand_in_line() -> None:
    """Do what is asked, and answer with how far the first is."""
    with contextlib.ExitStack() as leave:
        place = leave.enter_context(stand(SHARE))
        print(0, flush=True)
        for line in sys.stdin:
            what = line.strip()
            if what == "take":
                assert place.take(sync=True)
            elif what == "leave":
                leave.close()
            elif what == "pass":
                place.pass_over()
            elif what == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            print(place.ahead() if what != "leave" else 0, flush=True)


# --- a crash in the middle, seen from another host ------------------------------------------------


def crash() -> dict[str, Any]:
    """Client 1 dies in a change; client 2 has looked before: PERSIST is seen, DELETE is not."""
    found: dict[str, Any] = {}
    for mode in ("PERSIST", "DELETE"):
        torn = 0
        for number in range(5):
            path = f"probe-{mode}-{number}.db"
            make_probe(HERE / path, mode)
            reader = start(2, *ME, "sum-along", path)
            assert reader.stdin is not None
            assert reader.stdout is not None
            assert reader.stdout.readline() == "0\n"
            run(1, *ME, "die-in-change", path, mode, exit_code=None)
            reader.stdin.write("look\n")
            reader.stdin.flush()
            torn += reader.stdout.readline() != "0\n"
            reader.stdin.close()
            reader.wait()
        found[mode] = torn
    return found


def make_probe(path: Path, mode: str) -> None:
    """Make a file of many pages."""
    path.touch()
    (HERE / f"{path.name}.lock").touch()
    with contextlib.closing(connect(path, vfs="vfs=unix-excl")) as db:
        db.execute(f"PRAGMA journal_mode = {mode}")
        db.execute("BEGIN IMMEDIATE")
        db.execute("CREATE TABLE probe (value INTEGER, padding TEXT)")
        db.executemany("INSERT INTO probe VALUES (0, ?)", [("x" * 200,)] * 2000)
        db.execute("COMMIT")


def die_in_change(name: str, mode: str) -> None:
    """Write half of a change into the file, and die."""
    db = connect(SHARE / name, vfs="vfs=unix-excl")
    db.execute(f"PRAGMA journal_mode = {mode}")
    db.execute("PRAGMA cache_spill = ON")
    db.execute("PRAGMA cache_size = 2")
    db.execute("BEGIN IMMEDIATE")
    db.execute("UPDATE probe SET value = value + 1")
    signal.raise_signal(signal.SIGKILL)


def sum_along(name: str) -> None:
    """Print 0 for a whole, unchanged file: now, and for each line; the folder is never opened."""
    journal = SHARE / f"{name}-journal"

    def look() -> object:
        journal.exists()
        try:
            with contextlib.closing(connect(SHARE / name, vfs="vfs=unix-excl")) as db:
                whole = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
                return (
                    db.execute("SELECT SUM(value) FROM probe").fetchone()[0]
                    if whole == "ok"
                    else whole
                )
        except sqlite3.Error as error:
            return str(error).replace("\n", " ")

    print(look(), flush=True)
    for _ in sys.stdin:
        print(look(), flush=True)


# --- one lock is enough, none is not; a connection that is kept is not ---------------------------

ROUNDS = 25


def counting() -> dict[str, Any]:
    """Two processes on each of two clients add one; how many of the additions got lost?"""
    found = {}
    for rule in ("kept", "flock-faked", "fcntl-faked", "kept-connection", "both-faked"):
        folder = HERE / f"{rule}.gpuledger"
        Ledger.create(folder)
        adders = [start(client, *ME, "add", rule) for client in (1, 2, 1, 2)]
        for adder in adders:
            assert adder.stdout is not None
            assert adder.stdout.readline() == "ready\n"
        for adder in adders:
            assert adder.stdin is not None
            adder.stdin.write("go\n")
            adder.stdin.flush()
        added = sum(int(adder.communicate(timeout=200)[0] or 0) for adder in adders)
        try:
            there = Ledger.open(folder).lease_s - 60
        except LedgerError:
            there = -1.0
        found[rule] = {"added": added, "lost": added - there}
    return found


def add(rule: str) -> None:
    """Add one to the lease of a ledger, again and again; print how often that was said to work."""
    from gpuledger import locks, store

    ledger = Store(SHARE / f"{rule}.gpuledger")
    if rule in ("flock-faked", "both-faked"):
        for name in ("lock_descriptor", "unlock_descriptor"):
            setattr(locks, name, lambda descriptor, *, blocking=True: True)
    if rule in ("fcntl-faked", "both-faked", "kept-connection"):
        Store.vfs = "vfs=unix-none"
    if rule == "kept-connection":
        kept = connect(ledger.path, vfs=Store.vfs)
        setattr(store, "connect", lambda path, *, vfs: kept)  # noqa: B010
        setattr(store, "closing", contextlib.nullcontext)  # noqa: B010
    print("ready", flush=True)
    sys.stdin.readline()
    added = 0
    for _ in range(ROUNDS):
        with contextlib.suppress(LedgerError):
            ledger.write(
                lambda db: db.execute("UPDATE ledger SET lease_s = lease_s + 1"), operation="add"
            )
            added += 1
    print(added)


# --- a journal that a client believes to be missing ----------------------------------------------

CRASHES = 2


def hidden() -> dict[str, Any]:
    """A shell dies in a change on client 1; client 2 remembers that there is no journal.

    On a file system where flock stays on the machine: there nothing but opening the folder tells
    client 2 of the journal.
    """
    found = {}
    for rule in ("kept", "broken"):
        torn = 0
        for number in range(CRASHES):
            folder = f"{rule}-{number}.gpuledger"
            Ledger.create(HERE / folder)
            run(1, *ME, "fill", folder)
            looker = start(2, *ME, "look-along", folder, rule)
            assert looker.stdin is not None
            assert looker.stdout is not None
            assert looker.stdout.readline() == "0\n"
            run(1, *ME, "die-in-change", f"{folder}/ledger.db", "DELETE", exit_code=None)
            looker.stdin.write("look\n")
            looker.stdin.flush()
            torn += looker.stdout.readline() != "0\n"
            looker.stdin.close()
            looker.wait()
        found[rule] = torn
    return found


def fill(folder: str) -> None:
    """Put a table of many pages into a ledger, as a sqlite3 shell would: it removes the journal."""
    with contextlib.closing(connect(SHARE / folder / "ledger.db", vfs="vfs=unix")) as db:
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("BEGIN IMMEDIATE")
        db.execute("CREATE TABLE probe (value INTEGER, padding TEXT)")
        db.executemany("INSERT INTO probe VALUES (0, ?)", [("x" * 200,)] * 2000)
        db.execute("COMMIT")


def look_along(folder: str, rule: str) -> None:
    """Print 0 for a whole, unchanged ledger, read as the product does: now, and for each line."""
    from gpuledger import locks

    for name in ("lock_descriptor", "unlock_descriptor"):
        setattr(locks, name, lambda descriptor, *, blocking=True: True)
    genuine = os.open

    def open_no_folder(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        return genuine("/dev" if flags & os.O_DIRECTORY else path, flags, *rest, **named)

    if rule == "broken":
        os.open = open_no_folder

    def question(db: sqlite3.Connection) -> object:
        whole = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
        return db.execute("SELECT SUM(value) FROM probe").fetchone()[0] if whole == "ok" else whole

    store = Store(SHARE / folder)

    def look() -> None:
        try:
            print(" ".join(str(store.read(question)).split()), flush=True)
        except LedgerError as error:
            print(error.problem, flush=True)

    look()
    for _ in sys.stdin:
        look()


# --- two hosts examine what they share ------------------------------------------------------------


def doctor() -> dict[str, Any]:
    """`doctor --peer` on clients 1 and 2, then a worker on each."""
    run(1, *GPULEDGER, "init", "/mnt/ledger/one.toml", "--ledger", "/mnt/ledger/.gpuledger",
        exit_code=None)  # fmt: skip
    (HERE / "one.toml").write_text('command = ["sleep", "600"]\nseeds = 2\n')
    run(1, *GPULEDGER, "init", "/mnt/ledger/one.toml", "--ledger", "/mnt/ledger/.gpuledger")
    first = start(1, *GPULEDGER, "doctor", "--peer", "--json", "/mnt/ledger")
    told = [
        json_of(run(2, *GPULEDGER, "doctor", "--peer", "--json", "/mnt/ledger", exit_code=None))
    ]
    told.append(json_of(first.communicate(timeout=120)[0]))
    worker = start(
        1, *GPULEDGER, "work", "--cpu", "--ledger", "/mnt/ledger/.gpuledger", out="/tmp/w"
    )
    wait_until(lambda: "started on" in run(1, "cat", "/tmp/w", exit_code=None), because="it works")
    second = start(
        2, *GPULEDGER, "work", "--cpu", "--ledger", "/mnt/ledger/.gpuledger", out="/tmp/w"
    )
    wait_until(
        lambda: (
            second.poll() is not None or "started on" in run(2, "cat", "/tmp/w", exit_code=None)
        ),
        because="the second works or is refused",
    )
    code = second.poll()
    said = run(2, "cat", "/tmp/w")
    for process, client in ((worker, 1), (second, 2)):
        if process.poll() is None:
            run(client, "sh", "-c", "kill -TERM $(pgrep -f 'gpuledger work')", exit_code=None)
            process.wait(60)
    return {
        "exit_codes": [value["exit_code"] for value in told],
        "findings": [
            {finding["what"]: finding["level"] for finding in value["findings"]} for value in told
        ],
        "second": code,
        "said": said,
    }


def odd() -> dict[str, Any]:
    """Hosts of one name, a mount with nocto (client 2), one with local locks (client 3).

    Workers run on the hosts of one name; client 3 is refused beside them, unless it insists.
    """
    (HERE / "odd.toml").write_text('command = ["sleep", "6"]\nseeds = 6\n')
    run(1, *GPULEDGER, "init", "/mnt/ledger/odd.toml", LEDGER)
    alone = {
        client: json_of(run(client, *GPULEDGER, "doctor", "--json", "/mnt/ledger", exit_code=None))
        for client in (1, 2, 3)
    }
    run(2, "hostname", "client1")
    first = start(1, *GPULEDGER, "doctor", "--peer", "--json", "/mnt/ledger")
    together = json_of(run(2, *GPULEDGER, "doctor", "--peer", "--json", "/mnt/ledger",
                           exit_code=None))  # fmt: skip
    first.communicate(timeout=120)
    work = [*GPULEDGER, "work", "--cpu", LEDGER]
    workers = [start(client, *work, out="/tmp/w") for client in (1, 2)]
    wait_until(
        lambda: all("started on" in run(n, "cat", "/tmp/w", exit_code=None) for n in (1, 2)),
        because="both work", timeout_s=120,
    )  # fmt: skip
    refused = subprocess.run(
        ["lab", "on", "3", *work], capture_output=True, text=True, env={**os.environ, **ENV},
        check=False,
    )  # fmt: skip
    insisted = start(3, *work, "--unsafe", "--max-tasks=1", out="/tmp/w")
    codes = [worker.wait(300) for worker in (*workers, insisted)]
    rows = json.loads(run(1, *GPULEDGER, "tasks", "--json", LEDGER))
    return {
        "alone": {client: [value["exit_code"], levels(value)] for client, value in alone.items()},
        "together": levels(together),
        "refused": [refused.returncode, refused.stderr],
        "insisted": run(3, "cat", "/tmp/w"),
        "codes": codes,
        "states": count(row["state"] for row in rows),
        "attempts": count(len(row["attempts"]) for row in rows),
        "integrity": integrity(),
    }


def levels(value: dict[str, Any]) -> list[str]:
    """Return what doctor said, a line each."""
    return [f"{each['level']} {each['what']}: {each['says']}" for each in value["findings"]]


def json_of(text: str) -> dict[str, Any]:
    """Return the JSON value among what a command printed."""
    value: dict[str, Any] = json.loads(text[text.index("{") : text.rindex("}") + 1])
    return value


# --- a log is followed from another host -------------------------------------------------------

TALKER = """
n=0
while [ $n -lt 8 ]; do echo "attempt $GPULEDGER_ATTEMPT line $n"; n=$((n + 1)); sleep 0.5; done
[ "$GPULEDGER_ATTEMPT" -gt 1 ]
"""


def follow() -> dict[str, Any]:
    """A task fails once on client 1 and is run again; `logs -f` and `events -f` on client 2."""
    (HERE / "talk.sh").write_text(TALKER)
    (HERE / "talk.toml").write_text(
        'command = ["/bin/sh", "/mnt/ledger/talk.sh"]\n[run]\navoid = "0s"\n'
    )
    run(1, *GPULEDGER, "init", "/mnt/ledger/talk.toml", LEDGER)
    looking = [
        start(2, "timeout", "90", *GPULEDGER, what, "-f", *task, LEDGER, out=f"/tmp/{what}.out")
        for what, task in (("logs", ["talk_0_0"]), ("events", []))
    ]
    worker = start(1, *GPULEDGER, "work", "--cpu", LEDGER, out="/tmp/w")
    code = worker.wait(90)
    codes = [looking[0].wait(60)]
    run(2, "sh", "-c", "pkill -INT -f 'gpuledger events'", exit_code=None)
    codes.append(looking[1].wait(60))
    texts = {what: run(2, "cat", f"/tmp/{what}.out") for what in ("logs", "events")}
    return {"code": code, "codes": codes, **texts}


# --- what the signature of the lock costs --------------------------------------------------


def price() -> dict[str, Any]:
    """Time transactions with and without the note in the lock file, in turn."""
    from gpuledger import locks

    Ledger.create(HERE / ".gpuledger")
    store = Store(HERE / ".gpuledger")
    genuine = locks.OuterLock._sign
    times: dict[str, list[float]] = {"signed": [], "unsigned": []}
    for number in range(160):
        kind = ("signed", "unsigned")[number % 2]
        sign = genuine if kind == "signed" else (lambda *_: None)
        setattr(locks.OuterLock, "_sign", sign)  # noqa: B010
        began_s = time.monotonic()
        store.write(lambda db: db.execute("UPDATE ledger SET lease_s = lease_s"), operation="x")
        times[kind].append(time.monotonic() - began_s)
    return {kind: sorted(values)[len(values) // 2] * 1000 for kind, values in times.items()}


STORIES: Mapping[str, Callable[..., Any]] = {
    "drain": drain,
    "stray": stray,
    "hold-open": hold_open,
    "read-along": read_along,
    "counting": counting,
    "add": add,
    "hidden": hidden,
    "fill": fill,
    "look-along": look_along,
    "gone-holder": gone_holder,
    "hold-lock": hold_lock,
    "try-lock": try_lock,
    "line": line,
    "stand": stand_in_line,
    "crash": crash,
    "die-in-change": die_in_change,
    "sum-along": sum_along,
    "doctor": doctor,
    "odd": odd,
    "follow": follow,
    "price": price,
}

if __name__ == "__main__":
    answer = STORIES[sys.argv[1]](*sys.argv[2:])
    if answer is not None:
        print(json.dumps(answer))
