"""What a script may say: harmless outside a worker, bounded inside one."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
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
        gpuledger.report(step=1, loss=1.0)
        gpuledger.report(step=2, loss=0.5)
        raise SystemExit(3)
        """,
        exit_code=3,
    )
    assert found[-1] == Report(step=2, metrics={"loss": 0.5})


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
        gpuledger.report(step=1)
        gpuledger.report(step=2)
        if os.fork() == 0:
            raise SystemExit
        os.wait()
        """,
    )
    assert [one.step for one in found] == [1, 2]


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


def test_only_the_end_of_a_huge_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "report.jsonl"
    with file.open("wb") as out:
        out.truncate(1 << 30)
        out.seek(1 << 30)
        out.write(b"\n" + json.dumps({"step": 5}).encode() + b"\n")
    assert read_last(file) == Report(step=5)
    assert read_last(tmp_path / "missing") is None
