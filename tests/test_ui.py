"""ui: what the keys do, what is on the screen, and what stays possible when the ledger hangs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from gpuledger import snapshots
from gpuledger.errors import LedgerBusy
from gpuledger.ledger import Ledger
from gpuledger.model import TaskState
from gpuledger.selection import Selection
from gpuledger.ui.dialogs import KEYS, Help
from gpuledger.ui.errands import Errands
from gpuledger.ui.filters import selection_of
from gpuledger.ui.logtail import TAIL_BYTES, read_tail
from gpuledger.ui.task import TaskScreen
from gpuledger.ui.tasks import PAGE, WINDOW, TasksScreen
from gpuledger.where import BadWhere, parse_where
from tests.cli_support import Lab, make_lab, sweep
from tests.helpers import wait_until
from tests.ui_support import Screen, on_screen

GOLDEN = Path(__file__).parent / "golden" / "ui"
HOSTILE = "[red]x[/red]\x1b[31m\x9b2J"
WIDE = "学習率🚀" * 12 + "e\u0301" * 12


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return make_lab(tmp_path / ".gpuledger", sweep("exp1"), sweep("exp2"))


def state(lab: Lab, name: str) -> TaskState:
    return lab.ledger.task(name).state


# --- looking around ----------------------------------------------------------------------------


def test_keys_lead_from_the_status_to_lists_tasks_and_back(lab: Lab) -> None:
    claim = lab.fail()
    lab.write_log(claim, b"epoch 1\nepoch 2\n")
    lab.claim()

    async def look(screen: Screen) -> None:
        await screen.until_seen("2 sweeps", "exp1", "FileNotFoundError: data", "1 running")
        await screen.press("w")
        await screen.until_seen("workers  ", "host:gpu0", "exp1_1_42")
        await screen.press("enter")
        await screen.until_seen("task  exp1_1_42", "lr  0.01", "running")
        await screen.press("f")
        await screen.until_seen("failures  ", "1 task: FileNotFoundError: data", "open('data')")
        await screen.press("enter")
        await screen.until_seen("task  exp1_0_42", "Traceback (most", "epoch 2", "attempt 1")
        await screen.press("escape")
        await screen.until_seen("failures  ")
        await screen.press("t")
        await screen.until_seen("tasks  ", "exp1_0_42", "exp2_2_42", "lr=0.001")
        await screen.press("escape", "escape", "escape")  # there is nothing behind the status
        await screen.until_seen("2 sweeps")

    on_screen(lab.ledger, look, size=(120, 50))


def test_every_key_is_explained(lab: Lab) -> None:
    async def look(screen: Screen) -> None:
        await screen.press("question_mark")
        await screen.until(lambda: isinstance(screen.app.screen, Help))
        await screen.until_seen(*(key for key, _ in KEYS))
        await screen.press("t")
        assert isinstance(screen.app.screen, Help)
        await screen.press("q")
        await screen.until_seen("2 sweeps", "Quit")

    on_screen(lab.ledger, look)


def test_the_list_of_tasks_looks_like_this(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "TELLING_S", 3600.0)  # however slow this machine is: no rate
    points: list[dict[str, Any]] = [
        {"lr": 0.1, "model": HOSTILE},
        {"lr": 0.01, WIDE: WIDE},
        {"lr": 1},
        {"lr": 2},
    ]
    lab = make_lab(tmp_path / ".gpuledger", sweep("exp", points=points), sweep(WIDE[:20]))
    lab.complete(loss=0.25, **{WIDE: 3})
    lab.fail(f"ValueError: {HOSTILE} {WIDE}")
    lab.fail("KeyError: 'x'", fatal=False)

    async def look(screen: Screen) -> None:
        await screen.press("t")
        await screen.until_seen("exp_0_42", "KeyError")
        await screen.press("down")
        await screen.pilot.pause()
        compare_golden("tasks-80x20", screen.text())

    on_screen(lab.ledger, look, size=(80, 20))


def compare_golden(name: str, output: str) -> None:
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("GPULEDGER_UPDATE_GOLDEN") == "1":
        file.parent.mkdir(exist_ok=True)
        file.write_text(output + "\n", encoding="utf-8")
    assert output + "\n" == file.read_text(encoding="utf-8"), f"{name}\n{output}"


@pytest.mark.parametrize("size", [(60, 15), (30, 6), (200, 50)])
def test_every_screen_fits_every_terminal(tmp_path: Path, size: tuple[int, int]) -> None:
    lab = make_lab(tmp_path / ".gpuledger", sweep("exp", points=[{WIDE: HOSTILE}] * 1))
    lab.write_log(lab.fail(f"{HOSTILE} {WIDE}"), f"{WIDE}{HOSTILE}\n".encode() * 40)

    async def look(screen: Screen) -> None:
        for key in ("f", "t", "w", "s", "question_mark", "escape", "f", "enter", "l", "r"):
            await screen.press(key)
            await screen.pilot.pause(0.1)
            lines = screen.text().split("\n")
            assert len(lines) <= size[1]
            assert max(cell_len(line) for line in lines) <= size[0]
            assert not set("\x1b\x9b\r") & set(screen.text())

    on_screen(lab.ledger, look, size=size)


def test_a_terminal_that_changes_its_size_is_used_whole(lab: Lab) -> None:
    lab.write_log(lab.fail(), b"the log\n")

    async def look(screen: Screen) -> None:
        await screen.press("f", "enter")
        await screen.until_seen("Traceback", "the log")
        await screen.pilot.resize_terminal(60, 12)
        await screen.until_gone("the log")
        await screen.press("tab")
        await screen.until_seen("the log")
        await screen.pilot.resize_terminal(140, 50)
        await screen.until_seen("Traceback", "the log")

    on_screen(lab.ledger, look, size=(120, 50))


def test_what_comes_while_a_screen_goes_is_not_shown(lab: Lab) -> None:
    """Its parts are removed before itself, and answers come when they come."""
    lab.write_log(lab.fail(), b"the log\n")

    async def look(screen: Screen) -> None:
        await screen.press("f", "enter")
        await screen.until_seen("Traceback", "the log")
        going = screen.app.screen
        assert isinstance(going, TaskScreen)
        await going.query("Lines").remove()
        screen.app.pop_screen()
        assert going.is_attached
        going.refresh_all()
        going._take_tail(None)
        going._take(lab.ledger.task(lab.ledger.task_names()[0]))
        going._share_room()
        await screen.until_seen("failures")

    on_screen(lab.ledger, look, size=(120, 50))


def test_without_colours_there_are_none(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.fail()
    monkeypatch.setenv("NO_COLOR", "1")

    async def look(screen: Screen) -> None:
        for key in ("s", "f", "t", "w"):
            await screen.press(key)
            await screen.pilot.pause(0.2)
            for strip in screen.app.screen._compositor.render_strips():
                filtered = strip.apply_filter(
                    screen.app._filters[-1], screen.app.background_colors[1]
                )
                for segment in filtered:
                    for colour in (segment.style.color, segment.style.bgcolor):  # type: ignore[union-attr]
                        assert colour is None or colour.is_default

    on_screen(lab.ledger, look)


# --- the log -----------------------------------------------------------------------------------


def test_the_log_is_followed_at_its_end_only(lab: Lab) -> None:
    claim = lab.claim()
    path = lab.write_log(claim, b"".join(b"line %d\n" % i for i in range(100)))

    async def look(screen: Screen) -> None:
        await screen.press("w", "enter")
        await screen.until_seen("line 99")
        with path.open("ab") as log:
            log.write(b"line 100 \x1b[31m[b]markup[/b]\n")
        await screen.until_seen("line 100 [b]markup[/b]")
        await screen.press("l", "home")
        await screen.until_seen("line 0")
        with path.open("ab") as log:
            log.write(b"line 101\n")
        await screen.until(lambda: "line 101" in "".join(all_lines(screen)))
        assert "line 0" in screen.text()
        await screen.press("end")
        await screen.until_seen("line 101")

    on_screen(lab.ledger, look)


def all_lines(screen: Screen) -> list[str]:
    log: Any = screen.app.screen.query_one("#log")
    return [line.plain for line in log._lines]


def test_of_a_log_the_end_is_read_whatever_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "attempt-1.log"
    assert read_tail(str(path), None) is None
    path.write_bytes(b"1%\r50%\r100%\nx\x1b[2Jy\t\xff\n" + b"z" * 10_000)
    tail = read_tail(str(path), None)
    assert tail is not None
    assert tail.lines[:2] == ("100%", "xy      \ufffd")
    assert len(tail.lines[2]) < 10_000
    assert not tail.cut
    assert read_tail(str(path), tail) is tail
    path.write_bytes(b"first\n" + b"abc\n" * TAIL_BYTES)
    longer = read_tail(str(path), tail)
    assert longer is not None
    assert longer.cut
    assert set(longer.lines) == {"abc"}


# --- filters -----------------------------------------------------------------------------------


def test_a_filter_is_understood_word_by_word() -> None:
    assert selection_of("") == Selection()
    assert selection_of("failed lr=0.1  state:Running x") == Selection(
        states=frozenset({TaskState.FAILED, TaskState.RUNNING}), text="lr=0.1 x"
    )
    assert selection_of("sweep:exp worker:a:gpu0 error:cuda") == Selection(
        sweep="exp", worker="a:gpu0", error="cuda"
    )
    assert selection_of("other:thing").text == "other:thing"
    chosen = selection_of("failed where: lr > 0.01 and not seed == 2")
    assert chosen.where == parse_where("lr > 0.01 and not seed == 2")
    assert chosen == replace(Selection(states=frozenset({TaskState.FAILED})), where=chosen.where)
    assert selection_of("where:") == Selection()
    with pytest.raises(BadWhere):
        selection_of("where: lr >")


def test_a_filter_narrows_the_tasks_until_escape(lab: Lab) -> None:
    lab.fail()

    async def look(screen: Screen) -> None:
        await screen.press("t")
        await screen.until_seen("exp1_0_42", "exp2_2_42")
        await screen.press("slash")
        await screen.type("lr=0.001")
        await screen.until_gone("exp1_0_42")
        await screen.until_seen("exp1_2_42", "exp2_2_42")
        await screen.press("enter", "c")
        await screen.until_seen("Cancel exp1_2_42?")
        await screen.press("n", "escape")
        await screen.until_seen("exp1_0_42", "exp2_2_42")
        await screen.press("slash")
        await screen.type("sweep:exp3")
        await screen.until_seen("no sweep is named 'exp3'")

    on_screen(lab.ledger, look)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [("where: lrr < 1", "'lrr'"), ("where: lr <", "/where: lr <: "), ("sweep:exp3", "no sweep is")],
)
def test_a_filter_that_means_nothing_stays_open_to_be_mended(
    lab: Lab, wrong: str, problem: str
) -> None:
    async def look(screen: Screen) -> None:
        await screen.press("t", "slash")
        await screen.type(wrong)
        await screen.press("enter")
        await screen.until_seen(problem, "exp1_0_42")
        await screen.type("q")
        await screen.until_seen(f"{wrong}q", "exp1_0_42")

    on_screen(lab.ledger, look)


def test_a_condition_is_understood_once_it_is_complete(lab: Lab) -> None:
    async def look(screen: Screen) -> None:
        await screen.press("t", "slash")
        await screen.type("where: lr <")
        await screen.until_seen("where: lr <: ", "exp1_0_42")
        await screen.type(" 0.01")
        await screen.until_gone("exp1_0_42")
        await screen.until_seen("/where: lr < 0.01", "exp1_2_42", "exp2_2_42")

    on_screen(lab.ledger, look)


@pytest.mark.parametrize(
    ("key", "said"),
    [("f", "nothing failed"), ("w", "no worker is running: gpuledger work"), ("t", "no tasks yet")],
)
def test_an_empty_list_says_why(tmp_path: Path, key: str, said: str) -> None:
    empty = Ledger.create(tmp_path / ".gpuledger")

    async def look(screen: Screen) -> None:
        await screen.press(key)
        await screen.until_seen(said)
        await screen.press("slash")
        await screen.type("xyz")
        await screen.until_seen("matches /xyz")

    on_screen(empty, look)


def test_at_80_columns_every_key_of_a_list_is_to_be_seen(lab: Lab) -> None:
    async def look(screen: Screen) -> None:
        for key in ("f", "t", "w"):
            await screen.press(key)
            await screen.until_seen("Open", "/ Filter", "r Retry", "c Cancel", "? Help", "q Quit")

    on_screen(lab.ledger, look, size=(80, 24))


def test_of_one_sweep_nothing_else_is_shown(lab: Lab) -> None:
    async def look(screen: Screen) -> None:
        await screen.until_seen("1 sweep ", "exp2")
        await screen.press("t")
        await screen.until_seen("exp2_0_42")
        assert "exp1" not in screen.text()
        await screen.press("slash")
        await screen.type("lr=0.001")
        await screen.until_gone("exp2_0_42")
        await screen.until_seen("exp2_2_42")
        assert "exp1" not in screen.text()

    on_screen(lab.ledger, look, sweep="exp2")


@pytest.mark.parametrize(("key", "there", "other"), [("f", "KeyError", "OSError")])
def test_a_filter_narrows_the_other_lists(lab: Lab, key: str, there: str, other: str) -> None:
    lab.fail("KeyError: 1")
    lab.fail("OSError: 2")

    async def look(screen: Screen) -> None:
        await screen.press(key)
        await screen.until_seen(there, other)
        await screen.press("slash")
        await screen.type("keyerr")
        await screen.until_gone(other)
        assert there in screen.text()

    on_screen(lab.ledger, look)


# --- any number of tasks -----------------------------------------------------------------------


def test_of_many_tasks_only_a_window_is_ever_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 6 * PAGE + 7
    many = sweep("many", points=[{"x": i} for i in range(count)])
    lab = make_lab(tmp_path / ".gpuledger", many)
    limits: list[int | None] = []
    read = lab.ledger.tasks

    def counted(*args: Any, **options: Any) -> Any:
        limits.append(options.get("limit"))
        return read(*args, **options)

    monkeypatch.setattr(lab.ledger, "tasks", counted)

    async def look(screen: Screen) -> None:
        await screen.press("t")
        await screen.until_seen("many_0_42 ")
        tasks = screen.app.screen
        assert isinstance(tasks, TasksScreen)
        for _ in range(200):
            if tasks.rows.selected == f"many_{count - 1}_42":
                break
            await screen.press("pagedown")
            await screen.until(lambda: not tasks.session.errands.is_busy("tasks"))
            await screen.pilot.pause()
        assert tasks.rows.selected == f"many_{count - 1}_42"
        await screen.until_seen(f"many_{count - 1}_42 ")
        for _ in range(200):
            if tasks.rows.selected == "many_0_42":
                break
            await screen.press("pageup")
            await screen.until(lambda: not tasks.session.errands.is_busy("tasks"))
            await screen.pilot.pause()
        assert tasks.rows.selected == "many_0_42"
        await screen.press("end")
        await screen.until(lambda: tasks.rows.selected == f"many_{count - 1}_42")
        await screen.press("home")
        await screen.until(lambda: tasks.rows.selected == "many_0_42")
        assert len(tasks._window.records) <= WINDOW

    on_screen(lab.ledger, look)
    assert limits
    assert max(limit or count for limit in limits) <= WINDOW + 1


def test_the_selected_task_stays_selected_while_others_change(lab: Lab) -> None:
    async def look(screen: Screen) -> None:
        await screen.press("t", "down", "down")
        tasks = screen.app.screen
        assert isinstance(tasks, TasksScreen)
        await screen.until_seen("exp1_2_42")
        await screen.press("down")
        selected = tasks.rows.selected
        lab.fail("KeyError: 'new'")
        await screen.until_seen("KeyError: 'new'")
        assert tasks.rows.selected == selected

    on_screen(lab.ledger, look)


# --- changes -----------------------------------------------------------------------------------


def test_retry_asks_first(lab: Lab) -> None:
    lab.fail()

    async def look(screen: Screen) -> None:
        await screen.press("t")
        await screen.until_seen("exp1_0_42")
        await screen.press("r")
        await screen.until_seen("Retry exp1_0_42?")
        await screen.press("n")
        await screen.until_gone("Retry exp1_0_42?")
        assert state(lab, "exp1_0_42") is TaskState.FAILED
        await screen.press("r")
        await screen.until_seen("Retry exp1_0_42?")
        await screen.press("y")
        await screen.until(lambda: screen.said() == ["Retried exp1_0_42."])
        assert state(lab, "exp1_0_42") is TaskState.PENDING

    on_screen(lab.ledger, look)


def test_all_tasks_of_a_cause_are_retried_together(lab: Lab) -> None:
    for _ in range(2):
        lab.fail("KeyError: 'x'")
    lab.fail("OSError: other")

    async def look(screen: Screen) -> None:
        await screen.press("f")
        await screen.until_seen("2 tasks: KeyError: 'x'")
        await screen.press("down", "r")
        await screen.until_seen("Retry 2 tasks, exp1_1_42 first?")
        await screen.press("enter")
        await screen.until(lambda: screen.said() == ["Retried 2 tasks."])

    on_screen(lab.ledger, look)
    assert lab.ledger.snapshot().counts.failed == 1


def test_a_completed_task_is_retried_when_the_question_said_so(lab: Lab) -> None:
    lab.complete(loss=1.0)

    async def look(screen: Screen) -> None:
        await screen.press("t")
        await screen.until_seen("completed  ")
        await screen.press("r")
        await screen.until_seen("Retry exp1_0_42 although it is completed?")
        await screen.press("y")
        await screen.until(lambda: screen.said() == ["Retried exp1_0_42."])

    on_screen(lab.ledger, look)


@pytest.mark.parametrize(("key", "stopped"), [("y", False), ("k", True)])
def test_a_running_task_is_cancelled_now_or_afterwards(lab: Lab, key: str, stopped: bool) -> None:
    claim = lab.claim()

    async def look(screen: Screen) -> None:
        await screen.press("w")
        await screen.until_seen("exp1_0_42")
        await screen.press("c")
        await screen.until_seen("Cancel exp1_0_42?", "stop it now")
        await screen.press(key)
        await screen.until(lambda: len(screen.said()) == 1)
        assert screen.said()[0].startswith("1 task running: ") or "Cancelled" in screen.said()[0]

    on_screen(lab.ledger, look)
    assert lab.ledger.stop_requested(claim.token) is stopped


def test_pause_asks_which_sweep_when_there_are_several(lab: Lab) -> None:
    def paused() -> list[str]:
        return [view.name for view in lab.ledger.snapshot().sweeps if view.paused is not None]

    async def look(screen: Screen) -> None:
        await screen.press("p")
        await screen.until_seen("which sweep?", "Pause all sweeps", "Pause exp1", "Pause exp2")
        await screen.press("escape")
        await screen.until_gone("which sweep?")
        await screen.press("p")
        await screen.until_seen("which sweep?")
        await screen.press("down", "down", "enter")
        await screen.until(lambda: screen.said() == ["Paused exp2."])
        assert paused() == ["exp2"]
        await screen.until_seen("paused: by an operator")
        await screen.press("p")
        await screen.until_seen("Resume all sweeps", "Resume exp2")
        await screen.press("end", "enter")
        await screen.until(lambda: "Resumed exp2." in screen.said())
        assert paused() == []

    on_screen(lab.ledger, look)


def test_pause_of_the_only_sweep_is_a_yes_or_no(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / ".gpuledger", sweep("only"))

    async def look(screen: Screen) -> None:
        await screen.press("p")
        await screen.until_seen("Pause only?")
        await screen.press("y")
        await screen.until(lambda: screen.said() == ["Paused only."])

    on_screen(lab.ledger, look)


def test_what_the_ledger_refuses_is_one_sentence(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*args: Any, **options: Any) -> Any:
        raise LedgerBusy(Path("/x/ledger.db"), waited_s=20.0, holder="[red]lab-02[/red]")

    monkeypatch.setattr(lab.ledger, "cancel", busy)

    async def look(screen: Screen) -> None:
        await screen.press("t")
        await screen.until_seen("exp1_0_42")
        await screen.press("c")
        await screen.until_seen("Cancel exp1_0_42?")
        await screen.press("y")
        await screen.until(lambda: len(screen.said()) == 1)
        said = (
            "ledger /x/ledger.db stayed locked by [red]lab-02[/red] for 20 s; nothing was changed"
        )
        assert screen.said()[0].startswith(said)
        await screen.until_seen("[red]lab-02[/red]")

    on_screen(lab.ledger, look)


# --- a ledger that is away, or hangs -----------------------------------------------------------


def test_it_stays_up_while_the_ledger_is_away_and_says_since_when(lab: Lab) -> None:
    away = lab.ledger.folder.with_name("away")

    async def look(screen: Screen) -> None:
        await screen.press("t")
        await screen.until_seen("exp1_0_42")
        lab.ledger.folder.rename(away)
        await screen.until_seen("ledger not readable since 2", "exp1_0_42")
        await screen.press("s")
        await screen.until_seen("ledger not readable since 2", "2 sweeps")
        away.rename(lab.ledger.folder)
        await screen.until_gone("ledger not readable")

    on_screen(lab.ledger, look)


def test_a_ledger_that_hangs_freezes_neither_the_keys_nor_the_end(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, mended = threading.Event(), threading.Event()

    def hang(*args: Any, **options: Any) -> Any:
        asked.set()
        mended.wait(60)
        return []

    monkeypatch.setattr(lab.ledger, "tasks", hang)

    async def look(screen: Screen) -> None:
        await screen.press("t")
        await screen.until(asked.is_set)
        await screen.press("w")
        await screen.until_seen("workers", "host:gpu0")
        await screen.press("q")
        await screen.until(lambda: not screen.app.is_running or screen.app._exit)

    try:
        on_screen(lab.ledger, look)
        hanging = [t for t in threading.enumerate() if t.name.startswith("errand-")]
        assert hanging
        assert all(thread.daemon for thread in hanging)
    finally:
        mended.set()


def test_of_errands_that_wait_for_another_only_the_newest_is_done() -> None:
    done: list[Any] = []
    begun, go_on = threading.Event(), threading.Event()

    def deliver(function: Callable[..., Any], *values: Any) -> None:
        function(*values)

    def slow() -> str:
        begun.set()
        go_on.wait(60)
        return "first"

    errands = Errands(deliver)
    errands.ask("key", slow, done.append)
    assert begun.wait(20)
    for number in range(5):
        errands.ask("key", lambda n=number: n, done.append)  # type: ignore[misc]
    assert errands.is_busy("key")
    go_on.set()
    wait_until(lambda: not errands.is_busy("key"), because="it did all errands")
    assert done == ["first", 4]


def test_a_mistake_in_an_errand_is_not_lost() -> None:
    raised: list[Exception] = []

    def deliver(function: Callable[..., Any], *values: Any) -> None:
        try:
            function(*values)
        except ZeroDivisionError as error:
            raised.append(error)

    Errands(deliver).ask("key", lambda: 1 / 0, lambda answer: None)
    wait_until(lambda: raised, because="the screen's thread was told")


# --- the command -------------------------------------------------------------------------------


def test_without_textual_it_says_how_to_get_it(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    told = lab.run("ui", exit_code=69).stderr
    assert told.count("\n") == 2
    assert "pip install 'gpuledger[ui]'" in told


def test_without_a_terminal_it_says_what_works_there(lab: Lab) -> None:
    assert "status --once" in lab.run("ui", exit_code=2).stderr
