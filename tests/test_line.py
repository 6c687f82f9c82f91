"""Standing in line: in order of arrival, over any process's end, and never in anybody's way."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gpuledger import line
from gpuledger.line import LINE_FILE, Place, stand

ROOT = Path(__file__).resolve().parent.parent
STANDING = (
    "import sys; from pathlib import Path; from gpuledger.line import stand\n"
    "with stand(Path(sys.argv[1])) as place:\n"
    "    place.take(sync=False); print(place.ahead(), flush=True); sys.stdin.read()\n"
)


class Line:
    """A line, and those who stand in it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.file = folder / LINE_FILE
        self._stack = stack

    def stand(self) -> tuple[Place, ExitStack]:
        """Return a new place, and what leaves it."""
        leave = self._stack.enter_context(ExitStack())
        place = leave.enter_context(stand(self.folder))
        assert place.take(sync=False)
        return place, leave

    def other(self) -> subprocess.Popen[str]:
        """Return another process that stands in line."""
        process = self._stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", STANDING, str(self.folder)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            )
        )  # fmt: skip
        self._stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stdout.readline().strip().isdigit()
        return process


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Line]:
    with ExitStack() as stack:
        yield Line(tmp_path, stack)


def test_each_sees_how_far_the_first_is(queue: Line) -> None:
    places = [queue.stand() for _ in range(4)]
    assert [place.ahead() for place, _ in places] == [0, 1, 2, 3]
    places[0][1].close()
    assert [place.ahead() for place, _ in places[1:]] == [0, 1, 2]
    places[2][1].close()  # one in the middle gives up
    assert [places[1][0].ahead(), places[3][0].ahead()] == [0, 2]
    late, _ = queue.stand()
    places[1][1].close()
    assert [places[3][0].ahead(), late.ahead()] == [0, 1]


def test_who_is_killed_is_out_of_the_way(queue: Line) -> None:
    other = queue.other()
    me, _ = queue.stand()
    assert me.ahead() == 1
    other.kill()
    other.wait()
    assert me.ahead() == 0


def test_who_was_stopped_is_passed_over_once_for_all(queue: Line) -> None:
    other = queue.other()
    other.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, other.pid, os.WSTOPPED | os.WNOWAIT)
    impatient, leave = queue.stand()
    waiting, _ = queue.stand()
    assert (impatient.ahead(), waiting.ahead()) == (1, 2)
    impatient.pass_over()
    leave.close()
    assert waiting.ahead() == 2, "it has a patience of its own"
    late, _ = queue.stand()
    assert late.ahead() == 1, "only who still waits is before it, not who was stopped"


def test_nobody_is_passed_over_by_the_first(queue: Line) -> None:
    first, _ = queue.stand()
    first.pass_over()
    second, _ = queue.stand()
    assert second.ahead() == 1


def test_one_takes_a_number_at_a_time(queue: Line) -> None:
    with stand(queue.folder) as first, stand(queue.folder) as second:
        assert first._lock(line.TAKING)
        assert not second.take(sync=False)
        first._set(fcntl.F_UNLCK, line.TAKING)
        assert second.take(sync=False)
        assert first.take(sync=False)
        assert (second.ahead(), first.ahead()) == (0, 1)


def test_who_died_while_taking_a_number_is_in_nobodys_way(queue: Line) -> None:
    with stand(queue.folder) as dying:
        dying._lock(line.TAKING)
        dying._lock(1)
    assert queue.stand()[0].ahead() == 0


def test_a_number_is_taken_once_although_the_file_was_written_over(queue: Line) -> None:
    places = [queue.stand()[0] for _ in range(3)]
    queue.file.write_bytes(b"")
    late, _ = queue.stand()
    assert [place.ahead() for place in (*places, late)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", b"\0" * 24, b"\xff" * 24, b"x" * 100_000,
     line.RECORD.pack(line.MAGIC, 2**64 - 1, 2**64 - 1),
     line.RECORD.pack(line.MAGIC, line.LAST_NUMBER, line.LAST_NUMBER - 1),
     line.RECORD.pack(line.MAGIC, 3, 900)],
)  # fmt: skip
def test_whatever_is_in_the_file_the_order_is_kept(queue: Line, content: bytes) -> None:
    queue.file.write_bytes(content)
    places = [queue.stand()[0] for _ in range(3)]
    assert [place.ahead() for place in places] == [0, 1, 2]


@pytest.mark.parametrize("broken", ["pread", "pwrite", "fcntl", "fdatasync"])
def test_a_place_that_cannot_be_had_is_an_error_and_nobody_stands_there(
    queue: Line, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl if broken == "fcntl" else os, broken, fail)
        with pytest.raises(OSError, match="Input/output"), stand(queue.folder) as place:
            place.take(sync=True)
    assert queue.stand()[0].ahead() == 0


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / LINE_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"), stand(tmp_path):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_in_a_shared_folder_the_group_may_stand_in_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o2770)
    before = os.umask(0o077)
    try:
        with stand(tmp_path):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / LINE_FILE).stat().st_mode & 0o777 == 0o660
