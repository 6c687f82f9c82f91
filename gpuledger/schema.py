"""The only module that knows the tables: numbered migrations, never edited once released.

What must always hold is written here as far as SQL can say it (CHECKs, partial unique indexes,
triggers), so that a mistake in the code above ends in an error, not in a wrong ledger. Instants
are seconds since the epoch (UTC) of the machine that wrote them and are for people and for that
machine alone; durations are seconds.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

APPLICATION_ID = 0x67706C64  # "gpld", so that file(1) and `gpuledger` know the file

Migration = tuple[str, ...]

V1: Migration = (
    """
    CREATE TABLE ledger (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        uuid TEXT NOT NULL,
        epoch INTEGER NOT NULL DEFAULT 1,
        seq INTEGER NOT NULL DEFAULT 0, -- counts committed changes
        lease_s REAL NOT NULL,
        heartbeat_s REAL NOT NULL,
        created_at REAL NOT NULL,
        CHECK (heartbeat_s > 0 AND lease_s >= 3 * heartbeat_s)
    ) STRICT
    """,
    # The ids of the latest operations, a ring: a COMMIT that raised is looked up here.
    "CREATE TABLE operation (slot INTEGER PRIMARY KEY, id TEXT NOT NULL) STRICT",
    """
    CREATE TABLE sweep (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        file TEXT NOT NULL,
        settings TEXT NOT NULL,
        priority INTEGER NOT NULL DEFAULT 0,
        created_at REAL NOT NULL,
        next_point INTEGER NOT NULL DEFAULT 0,
        paused TEXT, -- why; NULL: not paused
        paused_by TEXT CHECK (paused_by IN ('operator', 'gpuledger')),
        failing TEXT NOT NULL DEFAULT '{}', -- tasks and workers that failed since its last success
        completed_n INTEGER NOT NULL DEFAULT 0, -- with completed_s: the mean duration, for the ETA
        completed_s REAL NOT NULL DEFAULT 0,
        CHECK ((paused IS NULL) = (paused_by IS NULL))
    ) STRICT
    """,
    """
    CREATE TABLE task (
        id INTEGER PRIMARY KEY,
        sweep_id INTEGER NOT NULL REFERENCES sweep (id),
        point INTEGER NOT NULL CHECK (point >= 0),
        seed INTEGER NOT NULL,
        params TEXT NOT NULL,
        digest BLOB NOT NULL, -- of params: equal content is the same task
        file_digest BLOB, -- of the params in the sweep file, when an operator changed them
        state TEXT NOT NULL DEFAULT 'pending'
            CHECK (state IN ('pending', 'running', 'completed', 'failed', 'cancelled')),
        priority INTEGER NOT NULL DEFAULT 0,
        failures INTEGER NOT NULL DEFAULT 0 CHECK (failures >= 0),
        losses INTEGER NOT NULL DEFAULT 0 CHECK (losses >= 0),
        forgiven_until INTEGER NOT NULL DEFAULT 0, -- attempts up to this number do not count
        stop TEXT CHECK (stop IN ('after', 'now')), -- an operator cancelled it while it ran
        UNIQUE (sweep_id, point, seed),
        UNIQUE (sweep_id, digest, seed)
    ) STRICT
    """,
    # Matches the claim's ORDER BY; any other order costs a sort of all pending tasks.
    """
    CREATE INDEX task_pending ON task (sweep_id, priority DESC, id) WHERE state = 'pending'
    """,
    "CREATE INDEX task_failed ON task (sweep_id, id) WHERE state = 'failed'",
    """
    CREATE INDEX task_file_digest ON task (sweep_id, file_digest, seed)
        WHERE file_digest IS NOT NULL
    """,
    """
    CREATE TABLE attempt (
        task_id INTEGER NOT NULL REFERENCES task (id),
        number INTEGER NOT NULL CHECK (number >= 1),
        worker TEXT NOT NULL,
        nonce TEXT NOT NULL,
        gpu_memory_mib INTEGER,
        started_at REAL NOT NULL,
        ended_at REAL,
        duration_s REAL,
        outcome TEXT CHECK (outcome IN
            ('completed', 'failed', 'oom', 'timed_out', 'lost', 'interrupted', 'cancelled')),
        counted INTEGER NOT NULL DEFAULT 0 CHECK (counted IN (0, 1)),
        exit_code INTEGER,
        signal INTEGER,
        error TEXT,
        traceback TEXT,
        metrics TEXT,
        PRIMARY KEY (task_id, number),
        CHECK ((outcome IS NULL) = (ended_at IS NULL))
    ) STRICT
    """,
    """
    CREATE UNIQUE INDEX one_open_attempt_per_task ON attempt (task_id) WHERE outcome IS NULL
    """,
    "CREATE INDEX attempt_open ON attempt (nonce) WHERE outcome IS NULL",
    "CREATE INDEX attempt_completed ON attempt (ended_at) WHERE outcome = 'completed'",
    """
    CREATE INDEX attempt_ended_badly ON attempt (ended_at)
        WHERE outcome IN ('failed', 'oom', 'timed_out', 'lost')
    """,
    "CREATE INDEX attempt_of_worker ON attempt (worker, started_at)",
    """
    CREATE TABLE worker (
        nonce TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        host TEXT NOT NULL,
        machine TEXT NOT NULL,
        pid INTEGER NOT NULL,
        pid_start INTEGER NOT NULL,
        gpus TEXT NOT NULL,
        gpu_memory_mib INTEGER,
        gpu_name TEXT,
        started_at REAL NOT NULL,
        ended_at REAL,
        ending TEXT CHECK (ending IN ('left', 'lost')),
        CHECK ((ended_at IS NULL) = (ending IS NULL))
    ) STRICT
    """,
    "CREATE UNIQUE INDEX one_live_worker_per_name ON worker (name) WHERE ended_at IS NULL",
    """
    CREATE TABLE event (
        id INTEGER PRIMARY KEY,
        at REAL NOT NULL,
        kind TEXT NOT NULL,
        task TEXT,
        number INTEGER,
        worker TEXT,
        data TEXT NOT NULL DEFAULT '{}'
    ) STRICT
    """,
    # Counts by state, so that `status` costs the same for ten tasks and a million.
    """
    CREATE TABLE task_count (
        sweep_id INTEGER NOT NULL,
        state TEXT NOT NULL,
        n INTEGER NOT NULL CHECK (n >= 0),
        PRIMARY KEY (sweep_id, state)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TRIGGER task_added AFTER INSERT ON task BEGIN
        INSERT INTO task_count VALUES (new.sweep_id, new.state, 1)
            ON CONFLICT DO UPDATE SET n = n + 1;
    END
    """,
    """
    CREATE TRIGGER task_moved AFTER UPDATE OF state ON task WHEN old.state <> new.state BEGIN
        UPDATE task_count SET n = n - 1 WHERE sweep_id = old.sweep_id AND state = old.state;
        INSERT INTO task_count VALUES (new.sweep_id, new.state, 1)
            ON CONFLICT DO UPDATE SET n = n + 1;
    END
    """,
    """
    CREATE TRIGGER task_removed AFTER DELETE ON task BEGIN
        UPDATE task_count SET n = n - 1 WHERE sweep_id = old.sweep_id AND state = old.state;
    END
    """,
    """
    CREATE TRIGGER running_means_open_attempt AFTER UPDATE OF state ON task
        WHEN (new.state = 'running') <> EXISTS
            (SELECT 1 FROM attempt WHERE task_id = new.id AND outcome IS NULL)
    BEGIN
        SELECT RAISE(ABORT, 'a task is running exactly while it has an open attempt');
    END
    """,
    # A late success replaces a loss that nobody acted on; nothing else is ever rewritten.
    """
    CREATE TRIGGER attempt_ends_once BEFORE UPDATE OF outcome ON attempt
        WHEN old.outcome IS NOT NULL AND NOT (old.outcome = 'lost' AND new.outcome = 'completed')
    BEGIN
        SELECT RAISE(ABORT, 'an attempt is ended once');
    END
    """,
)

V2: Migration = (
    # The worker (its nonce) that will start this pending task next: no other may claim it.
    "ALTER TABLE task ADD COLUMN held_by TEXT",
    "DROP INDEX task_pending",
    """
    CREATE INDEX task_pending ON task (sweep_id, priority DESC, id)
        WHERE state = 'pending' AND held_by IS NULL
    """,
    "CREATE INDEX task_held ON task (held_by) WHERE held_by IS NOT NULL",
    # The most GPU memory that the attempt was seen to use.
    "ALTER TABLE attempt ADD COLUMN memory_peak_mib INTEGER",
    # Where it came from: JSON of command, git commit and the like; digest of its packages.
    "ALTER TABLE attempt ADD COLUMN origin TEXT",
    "ALTER TABLE attempt ADD COLUMN environment TEXT",
    """
    CREATE TABLE environment (
        digest TEXT PRIMARY KEY,
        data TEXT NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    # What is known of a worker's place beyond its host: JSON, such as its cluster job.
    "ALTER TABLE worker ADD COLUMN details TEXT NOT NULL DEFAULT '{}'",
    # What each host that worked here found out about the file system.
    """
    CREATE TABLE host (
        machine TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        checked_at REAL NOT NULL,
        data TEXT NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE slurm_job (
        id TEXT PRIMARY KEY,
        submitted_at REAL NOT NULL,
        workers INTEGER NOT NULL CHECK (workers >= 1),
        script TEXT NOT NULL,
        data TEXT NOT NULL DEFAULT '{}'
    ) STRICT, WITHOUT ROWID
    """,
)

MIGRATIONS: tuple[Migration, ...] = (V1, V2)


def version(db: sqlite3.Connection) -> int:
    """Return the number of migrations this database has seen; 0 means it is empty.

    A negative number is that of one that was found damaged: see `condemn`.
    """
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def condemn(db: sqlite3.Connection) -> None:
    """Mark a damaged database, so that everyone who opens it from now on is told."""
    db.execute(f"PRAGMA user_version = {-abs(version(db))}")


def absolve(db: sqlite3.Connection) -> None:
    """Take the mark away from one whose damage was repaired."""
    db.execute(f"PRAGMA user_version = {abs(version(db))}")


def migrate(db: sqlite3.Connection, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Bring the database up to date, inside the caller's transaction."""
    done = version(db)
    for migration in migrations[done:]:
        for statement in migration:
            db.execute(statement)
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {len(migrations)}")


def is_no_text(error: sqlite3.Error) -> bool:
    """Tell whether a text could not be read: Python's sqlite3 has no code of its own for it."""
    return isinstance(error, sqlite3.OperationalError) and "decode to UTF-8" in str(error)


def unreadable(db: sqlite3.Connection) -> str | None:
    """Return which of its texts cannot be read, or None.

    SQLite's own check looks at pages, indexes and constraints, and it keeps no checksums: what is
    damaged within a text is found only by reading it, and within a number not at all.
    """
    tables = db.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
    ).fetchall()
    for (table,) in tables:
        texts = [
            row["name"]
            for row in db.execute(f"PRAGMA table_info({table})")
            if row["type"] == "TEXT"
        ]
        for column in texts:
            problem = _unreadable_in(db, table, column)
            if problem is not None:
                return f"{table}.{column}: {problem}"
    return None


JSON = frozenset({"params", "settings", "failing", "metrics", "origin", "data", "gpus", "details"})
"""The columns that hold JSON, in whichever table."""


def _unreadable_in(db: sqlite3.Connection, table: str, column: str) -> str | None:
    try:
        for _ in db.execute(f"SELECT {column} FROM {table} WHERE {column} IS NOT NULL"):
            pass  # Python decodes each
    except sqlite3.OperationalError as error:
        if not is_no_text(error):
            raise
        return str(error)
    if column not in JSON:
        return None
    kept = f"{column} IS NOT NULL"
    doubtful = f"SELECT {column} FROM {table} WHERE {kept} AND NOT json_valid({column})"
    for (text,) in db.execute(doubtful):  # NaN, for one, is JSON for Python alone
        try:
            json.loads(text)
        except ValueError as error:
            return f"no JSON: {error}"
    return None
