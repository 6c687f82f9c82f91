"""What a script may say: harmless outside a worker, bounded inside one."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuledger.reports import Report, read_all, read_last
from tests.shell import environment


def script(code: str, *, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=cwd, env=environment(**env), capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip


def test_outside_a_worker_everything_is_harmless(tmp_path: Path) -> None:
    done = script(
        """
        import gpuledger, os
        assert gpuledger.params() == {}
        assert gpuledger.params({"lr": 1}) == {"lr": 1}
        assert (gpuledger.seed(), gpuledger.seed(5), gpuledger.attempt()) == (0, 5, 1)
        assert str(gpuledger.task_dir()) == os.getcwd()
        gpuledger.report(step=1, loss=float("nan"))
        """,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_inside_one_the_worker_is_asked(tmp_path: Path) -> None:
    done = script(
        """
        import gpuledger
        assert gpuledger.params({"lr": 1, "b": 2}) == {"lr": 0.5, "b": 2}
        assert (gpuledger.seed(), gpuledger.attempt()) == (42, 3)
        assert str(gpuledger.task_dir()) == "/some/where"
        """,
        cwd=tmp_path,
        GPULEDGER_PARAMS='{"lr": 0.5}', GPULEDGER_SEED="42", GPULEDGER_ATTEMPT="3",
        GPULEDGER_TASK_DIR="/some/where",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def reports(tmp_path: Path, code: str, *, exit_code: int = 0) -> list[Report]:
    file = tmp_path / "report.jsonl"
    done = script("import gpuledger\n" + textwrap.dedent(code), cwd=tmp_path,
                  GPULEDGER_REPORT=str(file))  # fmt: skip
    assert done.returncode == exit_code, done.stderr
    return list(read_all(file))


def test_a_fast_loop_writes_little_and_loses_no_last_value(tmp_path: Path) -> None:
    found = reports(
        tmp_path,
        """
        for step in range(20000):
            gpuledger.report(step=step, total=20000, loss=1 / (step + 1))
        gpuledger.report(accuracy=0.5)
        """,
    )
    assert len(found) < 100
    last = read_last(tmp_path / "report.jsonl")
    assert last == Report(step=19999, total=20000, metrics={"loss": 1 / 20000, "accuracy": 0.5})


def test_the_last_values_are_kept_when_the_script_fails(tmp_path: Path) -> None:
    found = reports(
        tmp_path,
        """
        for step in range(500):
            gpuledger.report(step=step, loss=1.0)
        gpuledger.report(step=500, loss=0.5)
        raise SystemExit(3)
        """,
        exit_code=3,
    )
    assert len(found) < 100
    assert found[-1] == Report(step=500, metrics={"loss": 0.5})


def test_values_of_any_kind_become_what_json_can_carry(tmp_path: Path) -> None:
    found = reports(
        tmp_path,
        """
        class Scalar:
            def item(self): return 0.25
        gpuledger.report(a=Scalar(), b=float("nan"), c=-float("inf"), d=True, e=None, f="x" * 5000,
                         g=object, h=10**30)
        """,
    )
    metrics = dict(found[0].metrics)
    assert metrics["a"] == 0.25
    assert (metrics["b"], metrics["c"]) == ("NaN", "-Infinity")
    assert (metrics["d"], metrics["e"], metrics["h"]) == (True, None, 1e30)
    assert len(metrics["f"]) == 1000
    assert "object" in metrics["g"]


def test_a_forked_child_repeats_nothing(tmp_path: Path) -> None:
    found = reports(
        tmp_path,
        """
        import os
        for step in range(500):
            gpuledger.report(step=step)
        if os.fork() == 0:
            raise SystemExit
        os.wait()
        """,
    )
    assert [one.step for one in found].count(499) == 1


def test_a_forked_child_reports_for_itself(tmp_path: Path) -> None:
    found = reports(
        tmp_path,
        """
        import os
        for step in range(500):
            gpuledger.report(step=step)
        if os.fork() == 0:
            gpuledger.report(child=1)
            raise SystemExit
        os.wait()
        """,
    )
    assert Report(metrics={"child": 1}) in found


def test_two_reports_in_a_row_are_both_there_when_the_process_is_killed(tmp_path: Path) -> None:
    found = reports(
        tmp_path,
        """
        import os
        gpuledger.report(step=1, loss=1.0)
        gpuledger.report(val_accuracy=0.5)
        os._exit(0)
        """,
    )
    assert found == [Report(step=1, metrics={"loss": 1.0}), Report(metrics={"val_accuracy": 0.5})]


def test_threads_lose_nothing_and_tear_no_line(tmp_path: Path) -> None:
    found = reports(
        tmp_path,
        """
        import threading
        def work(name):
            for step in range(300):
                gpuledger.report(**{name: step})
        threads = [threading.Thread(target=work, args=(f"t{i}",)) for i in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        """,
    )
    lines = (tmp_path / "report.jsonl").read_bytes().splitlines()
    assert len(found) == len(lines)
    last = read_last(tmp_path / "report.jsonl")
    assert last is not None
    assert dict(last.metrics) == {f"t{i}": 299 for i in range(8)}


def test_a_signal_handler_may_report_while_a_report_is_written(tmp_path: Path) -> None:
    reports(
        tmp_path,
        """
        import os, signal
        signal.signal(signal.SIGUSR1, lambda *_: gpuledger.report(handler=1))
        write = os.write
        def interrupted(*given):
            os.write = write
            signal.raise_signal(signal.SIGUSR1)
            return write(*given)
        for step in range(9):
            gpuledger.report(loop=step)
        os.write = interrupted  # the tenth is the last that may be written at once
        gpuledger.report(loop=9)
        """,
    )
    last = read_last(tmp_path / "report.jsonl")
    assert last == Report(metrics={"loop": 9, "handler": 1})


def test_values_whose_own_methods_raise_stop_nothing(tmp_path: Path) -> None:
    found = reports(
        tmp_path,
        """
        class Text:
            def __str__(self): raise KeyError("x")
        class Item:
            def item(self): raise KeyError("x")
        class Attribute:
            def __getattr__(self, name): raise OSError(name)
        gpuledger.report(a=Text(), b=Item(), c=Attribute(), d=10**400, e=-(10**400), f="\\udcff")
        """,
    )
    assert dict(found[0].metrics) == {
        "a": "<Text>", "b": "<Item>", "c": "<Attribute>",
        "d": "Infinity", "e": "-Infinity", "f": "\udcff",
    }  # fmt: skip


def test_a_step_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    reports(
        tmp_path,
        """
        gpuledger.report(step="x" * 20000, total=float("nan"), loss=1)
        gpuledger.report(step=True, total=None, loss=2)
        """,
    )
    lines = (tmp_path / "report.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"metrics": {"loss": 1}},
        {"metrics": {"loss": 2}},
    ]


def test_a_line_that_would_be_too_long_loses_its_longest_values_only(tmp_path: Path) -> None:
    file = tmp_path / "report.jsonl"
    done = script(
        """
        import gpuledger
        many = {f"text{i}": "y" * 900 for i in range(30)}
        gpuledger.report(step=1, loss=0.5, **many, **{"n" * 90000: "é" * 1000})
        """,
        cwd=tmp_path,
        GPULEDGER_REPORT=str(file),
    )
    assert done.returncode == 0
    assert len(file.read_bytes()) <= 16384
    (found,) = read_all(file)
    assert (found.step, found.metrics["loss"]) == (1, 0.5)
    assert 10 < len(found.metrics) < 30
    assert done.stderr.count("is left out") == 1


def test_no_more_than_100_metrics_are_kept_and_that_is_told_once(tmp_path: Path) -> None:
    file = tmp_path / "report.jsonl"
    done = script(
        """
        import gpuledger
        gpuledger.report(**{f"m{i}": i for i in range(150)})
        gpuledger.report(**{f"m{i}": i for i in range(150)})
        """,
        cwd=tmp_path,
        GPULEDGER_REPORT=str(file),
    )
    (_, last) = read_all(file)
    assert dict(last.metrics) == {f"m{i}": i for i in range(100)}
    assert done.stderr.count("only the first 100 metrics") == 1


def test_what_could_not_be_written_comes_with_the_next_report(tmp_path: Path) -> None:
    file = tmp_path / "later" / "report.jsonl"
    done = script(
        """
        import gpuledger, os
        gpuledger.report(step=1, loss=0.5)
        os.mkdir("later")
        gpuledger.report(accuracy=0.25)
        """,
        cwd=tmp_path,
        GPULEDGER_REPORT=str(file),
    )
    assert done.returncode == 0, done.stderr
    assert read_last(file) == Report(step=1, metrics={"loss": 0.5, "accuracy": 0.25})


def test_a_line_cut_by_a_full_disk_spoils_no_later_one(tmp_path: Path) -> None:
    file = tmp_path / "report.jsonl"
    done = script(
        """
        import gpuledger, resource
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))  # as a disk with 20 bytes left
        gpuledger.report(step=1, loss=0.5)
        gpuledger.report(step=2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        gpuledger.report(accuracy=0.25)
        """,
        cwd=tmp_path,
        GPULEDGER_REPORT=str(file),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("could not be written") == 1
    assert read_last(file) == Report(step=2, metrics={"loss": 0.5, "accuracy": 0.25})


def test_nobody_to_tell_stops_nothing(tmp_path: Path) -> None:
    done = script(
        """
        import gpuledger, sys
        for stderr in (None, open("/dev/full", "w", buffering=1)):
            sys.stderr = stderr
            gpuledger.report(step=1)
            gpuledger.task._reporter._told.clear()
        sys.stderr = sys.__stderr__
        print("trained")
        """,
        cwd=tmp_path,
        GPULEDGER_REPORT=str(tmp_path / "gone" / "report.jsonl"),
    )
    assert (done.returncode, done.stdout) == (0, "trained\n")


def test_a_report_that_cannot_be_written_is_told_once_and_stops_nothing(tmp_path: Path) -> None:
    done = script(
        """
        import gpuledger, time
        for step in range(5):
            gpuledger.report(step=step)
            time.sleep(0.11)
        print("trained")
        """,
        cwd=tmp_path,
        GPULEDGER_REPORT=str(tmp_path / "gone" / "report.jsonl"),
    )
    assert (done.returncode, done.stdout) == (0, "trained\n")
    assert done.stderr.count("could not be written") == 1


def test_fatal_prints_as_what_it_is_and_marks_its_subclasses(tmp_path: Path) -> None:
    done = script(
        """
        import gpuledger
        class Hopeless(gpuledger.Fatal): pass
        try:
            raise gpuledger.Fatal("unknown model")
        except gpuledger.Fatal as error:
            assert str(error) == "unknown model"
            raise Hopeless("really") from error
        """,
        cwd=tmp_path,
    )
    assert "gpuledger.Fatal: unknown model" in done.stderr
    assert done.stderr.count("[gpuledger.Fatal: not tried again]") == 2


@pytest.mark.parametrize("torn", [b'{"step": 9', b"\xff\x00\xfe", b"[1]", b"9", b'{"metrics": 3}'])
def test_a_torn_last_line_is_left_out(tmp_path: Path, torn: bytes) -> None:
    file = tmp_path / "report.jsonl"
    file.write_bytes(b'{"step": 1, "metrics": {"a": 1}}\n{"step": 2}\n' + torn)
    assert read_last(file) == Report(step=2, metrics={"a": 1})


@given(st.binary(max_size=300))
def test_no_bytes_harm_the_reader(tmp_path_factory: Any, raw: bytes) -> None:
    file = tmp_path_factory.mktemp("any") / "report.jsonl"
    file.write_bytes(raw)
    read_last(file)
    list(read_all(file))


INFINITIES = (float("inf"), float("-inf"))
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@given(st.lists(st.dictionaries(st.text(max_size=5), scalars, max_size=4), max_size=6))
def test_the_last_value_of_every_metric_is_found(
    tmp_path_factory: Any, given_metrics: list[dict[str, Any]]
) -> None:
    file = tmp_path_factory.mktemp("some") / "report.jsonl"
    lines = [json.dumps({"step": n, "metrics": one}) for n, one in enumerate(given_metrics)]
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    last = read_last(file)

    if not given_metrics:
        assert last is None
        return
    merged: dict[str, Any] = {}
    for one in given_metrics:
        merged |= one
    expected = {
        name: ("Infinity" if value > 0 else "-Infinity") if value in INFINITIES else value
        for name, value in merged.items()
    }
    assert last == Report(step=len(given_metrics) - 1, metrics=expected)
    assert [one.step for one in read_all(file)] == list(range(len(given_metrics)))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400])
def test_only_numbers_that_can_be_reckoned_with_are_steps(tmp_path: Path, number: str) -> None:
    file = tmp_path / "report.jsonl"
    file.write_text(f'{{"step": {number}, "total": {number}, "metrics": {{"a": {number}}}}}\n')

    found = read_last(file)

    assert found is not None
    assert (found.step, found.total) == (None, None)
    json.dumps(found.metrics, allow_nan=False)


def test_a_line_without_end_is_not_held_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "report.jsonl"
    with file.open("wb") as out:
        out.truncate(1 << 26)
        out.seek(1 << 26)
        out.write(b'\n{"step": 5}\n')
    tracemalloc.start()
    try:
        assert list(read_all(file)) == [Report(step=5)]
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


def test_only_the_end_of_a_huge_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "report.jsonl"
    with file.open("wb") as out:
        out.truncate(1 << 30)
        out.seek(1 << 30)
        out.write(b"\n" + json.dumps({"step": 5}).encode() + b"\n")
    assert read_last(file) == Report(step=5)
    assert read_last(tmp_path / "missing") is None


def test_a_value_of_many_levels_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "report.jsonl"
    lines = ['{"metrics": {"a": ' + "[" * depth + "7" + "]" * depth + "}}" for depth in (31, 700)]
    file.write_text("\n".join(lines), encoding="utf-8")

    last = read_last(file)

    assert last is not None
    assert json.dumps(last.metrics) == lines[0][12:-1]


def test_a_number_that_no_float_can_hold_is_infinite(tmp_path: Path) -> None:
    file = tmp_path / "report.jsonl"
    file.write_text('{"metrics": {"a": 1' + "0" * 400 + ', "b": -1' + "0" * 400 + ', "c": 10}}')

    last = read_last(file)

    assert last is not None
    assert last.metrics == {"a": "Infinity", "b": "-Infinity", "c": 10}
