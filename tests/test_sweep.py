"""Sweep files: what they expand to, and the one sentence that a bad one gets."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuledger.errors import BadSweepFile
from gpuledger.spec import RunSettings, SweepSpec, params_digest
from gpuledger.sweep import parse_assignment, read_sweep
from gpuledger.sweep_run import render_command
from gpuledger.sweep_values import domain_of
from gpuledger.sweep_words import parse_duration, parse_size


def read(tmp_path: Path, text: str, *, name: str = "exp.toml", **options: Any) -> SweepSpec:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    return read_sweep(file, **options)


def points(tmp_path: Path, text: str) -> list[dict[str, Any]]:
    return [dict(task.params) for task in read(tmp_path, f'command = "x"\n{text}').tasks()]


def problem(tmp_path: Path, text: str, **options: Any) -> tuple[str, str]:
    with pytest.raises(BadSweepFile) as caught:
        read(tmp_path, text, **options)
    assert caught.value.problem.endswith("; nothing was changed")
    assert "exp.toml" in caught.value.problem
    assert "\n" not in caught.value.problem
    return caught.value.problem, caught.value.hint or ""


# --- what a file expands to -------------------------------------------------------------------


def test_a_grid_lists_points_the_first_parameter_slowest_and_the_seeds_of_each(
    tmp_path: Path,
) -> None:
    spec = read(
        tmp_path,
        'command = "x"\nseeds = [7, 3]\n[parameters]\nlr = [0.1, 0.01]\nmodel = ["a", "b"]\n',
    )
    tasks = [(task.point, task.seed, dict(task.params)) for task in spec.tasks()]

    assert spec.name == "exp"
    assert spec.task_count == len(tasks) == 8
    assert tasks[:3] == [
        (0, 7, {"lr": 0.1, "model": "a"}),
        (0, 3, {"lr": 0.1, "model": "a"}),
        (1, 7, {"lr": 0.1, "model": "b"}),
    ]
    assert tasks[-1] == (3, 3, {"lr": 0.01, "model": "b"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [{}]),
        ("[parameters]\na = 1", [{"a": 1}]),
        ("[parameters]\na = {value = 'x'}", [{"a": "x"}]),
        ("[parameters]\na = {values = [true, 2]}", [{"a": True}, {"a": 2}]),
        ("[parameters]\na = {min = 1, max = 3}", [{"a": 1}, {"a": 2}, {"a": 3}]),
        ("[parameters]\na = {min = 2, max = 2}", [{"a": 2}]),
        (
            "[parameters]\na = {min = 0.1, max = 0.4, q = 0.1}",
            [{"a": 0.1}, {"a": 0.2}, {"a": 0.3}, {"a": 0.4}],
        ),
        ("[parameters.optimizer]\nlr = [1]\nkind.name = 'sgd'",
         [{"optimizer.lr": 1, "optimizer.kind.name": "sgd"}]),
        ("[[zip]]\na = [1, 2]\nb = ['x', 'y']", [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]),
        (
            "[parameters]\na = [1, 2]\nb = [1, 2]\n[[exclude]]\na = 1\nb = [1]\n[[exclude]]\nb = 2",
            [{"a": 2, "b": 1}],
        ),
        (
            "[parameters]\na = [1, 2]\nb = 5\n[[include]]\na = 9\n",
            [{"a": 1, "b": 5}, {"a": 2, "b": 5}, {"a": 9, "b": 5}],
        ),
        ("[parameters]\na = [[1, 2], [3]]", [{"a": [1, 2]}, {"a": [3]}]),
    ],
)  # fmt: skip
def test_parameters_mean(tmp_path: Path, text: str, expected: list[dict[str, Any]]) -> None:
    assert points(tmp_path, text) == expected


DISTRIBUTIONS: dict[str, Callable[[Any], bool]] = {
    "{min = 0.5, max = 2.0}": lambda x: 0.5 <= x <= 2.0,
    "{min = 1e-4, max = 1.0, distribution = 'log_uniform_values'}": lambda x: 1e-4 <= x <= 1.0,
    "{min = 1e-4, max = 1.0, distribution = 'inv_log_uniform_values'}": lambda x: 1 <= 1 / x <= 1e4,
    "{min = 1, max = 9, distribution = 'int_uniform'}": lambda x: (
        isinstance(x, int) and 1 <= x <= 9
    ),
    "{min = 8, max = 64, q = 8, distribution = 'q_log_uniform_values'}": lambda x: x % 8 == 0,
    "{mu = 5, sigma = 0.1, distribution = 'normal'}": lambda x: 4 < x < 6,
    "{mu = 5, sigma = 2, q = 0.5, distribution = 'q_normal'}": lambda x: x * 2 == int(x * 2),
    "{mu = 0, sigma = 0.5, distribution = 'log_normal'}": lambda x: 0 < x < 20,
    "{values = [1, 2], probabilities = [1.0, 0.0]}": lambda x: x == 1,
}


@pytest.mark.parametrize("text", DISTRIBUTIONS)
def test_random_draws_follow_their_distribution(tmp_path: Path, text: str) -> None:
    free = "free = {min = 0.0, max = 1.0}"  # keeps points apart
    drawn = points(tmp_path, f'method = "random"\nsamples = 40\n[parameters]\nx = {text}\n{free}')

    assert len(drawn) == 40
    assert all(DISTRIBUTIONS[text](point["x"]) for point in drawn)


RANDOM = """
command = "x"
method = "random"
samples = {samples}
sampler_seed = {seed}
[parameters]
lr = {{min = 1e-5, max = 0.1, distribution = "log_uniform_values"}}
depth = {{min = 1, max = 5}}
"""


def test_the_same_file_draws_the_same_points_everywhere_and_more_samples_add_to_them(
    tmp_path: Path,
) -> None:
    few = points(tmp_path, RANDOM.format(samples=5, seed=1).replace('command = "x"', ""))
    many = points(tmp_path, RANDOM.format(samples=50, seed=1).replace('command = "x"', ""))
    other = points(tmp_path, RANDOM.format(samples=5, seed=2).replace('command = "x"', ""))

    assert many[:5] == few
    assert other != few
    # Written down once: another Python or machine must draw exactly these.
    assert few[0] == {"lr": pytest.approx(FIRST_LR), "depth": FIRST_DEPTH}


FIRST_LR, FIRST_DEPTH = 0.0007724240242489303, 5


def test_shuffled_is_a_permutation_that_stays_the_same(tmp_path: Path) -> None:
    text = 'command = "x"\norder = "{}"\nseeds = 3\n[parameters]\na = {{min = 1, max = 20}}\n'
    listed = list(read(tmp_path, text.format("listed")).tasks())
    shuffled = list(read(tmp_path, text.format("shuffled")).tasks())

    assert shuffled != listed
    assert sorted(shuffled, key=lambda task: (task.point, task.seed)) == sorted(
        listed, key=lambda task: (task.point, task.seed)
    )
    assert shuffled == list(read(tmp_path, text.format("shuffled")).tasks())


def test_run_settings_are_read(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    spec = read(
        tmp_path,
        """
name = "n.1-2"
command = ["python", "a b.py"]
[run]
workdir = "work"
timeout = "1h30m"
max_attempts = 2
max_losses = 9
kill_grace = 5
silence_timeout = "90s"
avoid = "0s"
no_retry_codes = [3, 4]
preload = ["torch", "torch.nn", "torch"]
log_limit = "10MB"
pause_after = 0
priority = -3
env = { OMP_NUM_THREADS = "1" }
""",
    )
    assert (spec.name, spec.priority) == ("n.1-2", -3)
    assert spec.settings == RunSettings(
        command=("python", "a b.py"), workdir=str(tmp_path / "work"), timeout_s=5400.0,
        max_attempts=2, max_losses=9, kill_grace_s=5.0, silence_timeout_s=90.0, avoid_s=0.0,
        no_retry_codes=(3, 4), log_limit_bytes=10_000_000, pause_after=0,
        preload=("torch", "torch.nn"),
        env={"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.parametrize("value", ['"none"', "0"])
def test_a_timeout_can_be_switched_off(tmp_path: Path, value: str) -> None:
    assert read(tmp_path, f'command = "x"\n[run]\ntimeout = {value}').settings.timeout_s is None


def test_a_million_tasks_cost_little_memory(tmp_path: Path) -> None:
    file = tmp_path / "big.toml"
    file.write_text('command = "x"\nseeds = 10\n[parameters]\na = {min = 1, max = 100000}\n')
    code = (
        "import re, sys; from pathlib import Path; from gpuledger.sweep import read_sweep\n"
        "spec = read_sweep(Path(sys.argv[1]), allow_large=True)\n"
        "count = sum(1 for _ in spec.tasks())\n"
        "peak = re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]\n"
        "print(count, peak)"  # getrusage would tell the peak of the parent, if that is higher
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True
    )
    count, peak_kib = map(int, done.stdout.split())
    assert count == 1_000_000
    assert peak_kib < 150 * 1024


# --- bad files --------------------------------------------------------------------------------

BAD = {
    'comand = "x"': ("line 1", "unknown key 'comand'", "did you mean command?"),
    'command = "x"\ntimeout = "2h"': ("line 2", "unknown key 'timeout'", "under [run]"),
    'command = "x"\n[run]\nseeds = 3': ("line 3", "run.seeds", "top of the file"),
    'command = "x"\n[run]\ntimout = 3': ("line 3", "run.timout", "did you mean timeout?"),
    "": ("", "no 'command'", "command ="),
    'command = "x {lrr}"\n[parameters]\nlr = [1]': ("line 1", "{lrr}", "did you mean {lr}?"),
    'command = "x {lr:.3f}"\n[parameters]\nlr = [1]': ("line 1", "odd brace", "{{"),
    'command = "x {"': ("line 1", "odd brace", "{{"),
    'command = "x \'"': ("line 1", "cannot be split", ""),
    'command = ""': ("line 1", "empty", ""),
    "command = 3": ("line 1", "text or a list", ""),
    'command = ["a", 3]': ("line 1", "list of texts", ""),
    'command = "x"\n[parameters]\nlr = []': ("line 3", "'lr' has an empty list", ""),
    'command = "x"\n[parameters]\nlr = {min = 3, max = 1}': ("line 3", "min 3 above max 1", ""),
    'command = "x"\n[parameters]\nlr = {min = 0, max = 1, distribution = "log_uniform_values"}': (
        "line 3", "log scale", ""),
    'command = "x"\n[parameters]\nlr = {min = 0, max = 1, distribution = "log_uniform"}': (
        "line 3", "exponents", "log_uniform_values"),
    'command = "x"\n[parameters]\nlr = {min = 0.0, max = 1.0}': (
        "line 3", "infinitely many", "random"),
    'command = "x"\n[parameters]\nlr = {distribution = "beta"}': (
        "line 3", "unknown distribution", "uniform"),
    'command = "x"\n[parameters]\nlr = {distribution = "loguniform"}': (
        "line 3", "unknown distribution", "did you mean log_uniform_values?"),
    'command = "x"\n[parameters]\nlr = {distribution = "normal", sigma = 0}': (
        "line 3", "above 0", ""),
    'command = "x"\n[parameters]\nlr = {valuse = [1]}': ("line 3", "valuse", "did you mean value"),
    'command = "x"\n[parameters]\nlr = {}': ("line 3", "empty table", ""),
    'command = "x"\n[parameters]\nlr = {values = [1, 2], probabilities = [0.5]}': (
        "line 3", "2 probabilities", ""),
    'command = "x"\n[parameters]\nlr = {values = [1, 2], probabilities = [0.5, 0.6]}': (
        "line 3", "sum 1", ""),
    'command = "x"\n[parameters]\nlr = [1, 1]': ("line 3", "twice", ""),
    'command = "x"\n[parameters]\nlr = [nan]': ("line 3", "finite", ""),
    'command = "x"\n[parameters]\nlr = [1, inf]': ("line 3", "finite", ""),
    'command = "x"\n[parameters]\nday = 2026-01-01': ("line 3", "date", "quotes"),
    'command = "x"\n[parameters]\nn = 99999999999999999999': ("line 3", "64 bits", ""),
    'command = "x"\n[parameters]\nseed = [1]': ("line 3", "taken", "seeds"),
    'command = "x"\n[parameters]\n"a b" = [1]': ("line 3", "cannot be used", ""),
    'command = "x"\nseeds = [1, 2, 1]': ("line 2", "seed 1 is given twice", ""),
    'command = "x"\nseeds = []': ("line 2", "seeds", ""),
    'command = "x"\nseeds = 0': ("line 2", "at least 1", ""),
    'command = "x"\nseeds = [true]': ("line 2", "whole number", ""),
    'command = "x"\nseeds = "3"': ("line 2", "list of whole numbers", ""),
    'command = "x"\nname = "a/b"': ("line 2", "file name", ""),
    'command = "x"\nname = "a..b"': ("line 2", "file name", ""),
    'command = "x"\nname = ""': ("line 2", "file name", ""),
    'command = "x"\nname = 3': ("line 2", "text", ""),
    'command = "x"\nmethod = "bayes"': ("line 2", "not offered", "random"),
    'command = "x"\nmethod = "gird"': ("line 2", "gird", "did you mean grid?"),
    'command = "x"\nmethod = "random"\n[parameters]\na = [1]': ("line 2", "samples", ""),
    'command = "x"\nsamples = 3': ("line 2", "random", ""),
    'command = "x"\nmethod = "random"\nsamples = 3\n[parameters]\na = [1, 2]': (
        "line 3", "only 2 different points", ""),
    'command = "x"\norder = "reverse"': ("line 2", "reverse", "shuffled"),
    'command = "x"\n[[zip]]\na = [1, 2]\nb = [1]': ("line 2", "equally long", ""),
    'command = "x"\n[[zip]]\na = 1': ("line 3", "needs a list", ""),
    'command = "x"\n[parameters]\na = [1]\n[[zip]]\na = [1]': ("", "given twice", ""),
    'command = "x"\n[zip]\na = [1]': ("line 2", "[[zip]]", ""),
    'command = "x"\n[parameters]\nlr = [1]\n[[exclude]]\nl = 1': ("line 5", "no parameter", "lr"),
    'command = "x"\n[parameters]\nlr = [1]\n[[exclude]]\nlr = 1': ("", "every point", ""),
    'command = "x"\n[parameters]\na = [1]\nb = [1, 2]\n[[include]]\na = 5': (
        "line 5", "leaves out 'b'", ""),
    'command = "x"\n[parameters]\na = [1]\n[[include]]\na = 1': ("line 4", "already", ""),
    'command = "x"\n[parameters]\na = {min = 1, max = 100000}\nb = {min = 1, max = 101}': (
        "", "10,100,000 tasks", "random"),
    'command = "x"\n[run]\ntimeout = "soon"': ("line 3", "not a duration", ""),
    'command = "x"\n[run]\ntimeout = -1': ("line 3", "between 0", ""),
    'command = "x"\n[run]\nmax_attempts = 0': ("line 3", "at least 1", ""),
    'command = "x"\n[run]\nmax_attempts = true': ("line 3", "whole number", ""),
    'command = "x"\n[run]\nworkdir = "nowhere"': ("line 3", "not a folder", ""),
    'command = "x"\n[run]\nenv = { A = 1 }': ("line 3", "text", "quotes"),
    'command = "x"\n[run]\nenv = { CUDA_VISIBLE_DEVICES = "1" }': ("line 3", "worker", ""),
    'command = "x"\n[run]\nno_retry_codes = [0]': ("line 3", "exit codes", ""),
    'command = "x"\n[run]\nlog_limit = "big"': ("line 3", "not a size", ""),
    'command = "x"\n[run]\npreload = "torch"': ("line 3", "list of modules", "torchvision"),
    'command = "x"\n[run]\npreload = ["import torch"]': ("line 3", "no name of a module", ""),
    'command = "x"\n[run]\npreload = ["torch."]': ("line 3", "no name of a module", ""),
    "x = [": ("", "not TOML", ""),
}  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_a_bad_file_gets_one_clear_sentence(tmp_path: Path, text: str) -> None:
    where, what, hint = BAD[text]
    told, told_hint = problem(tmp_path, text)
    assert where in told
    assert what in told
    assert hint in told_hint


def test_large_sweeps_need_a_yes(tmp_path: Path) -> None:
    text = 'command = "x"\nseeds = 2\n[parameters]\na = {min = 1, max = 60000}'
    assert "--yes" in problem(tmp_path, text)[1]
    assert read(tmp_path, text, allow_large=True).task_count == 120_000


def test_files_that_cannot_be_read_are_said_so(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(BadSweepFile, match="cannot be read"):
            read_sweep(path)
    bad = tmp_path / "exp.toml"
    bad.write_bytes(b'command = "x"\n# \xff\n')
    with pytest.raises(BadSweepFile, match=r"line 2: is not UTF-8"):
        read_sweep(bad)


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_sweep_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    file = tmp_path_factory.mktemp("any") / "exp.toml"
    file.write_bytes(raw)
    with pytest.raises(BadSweepFile):
        read_sweep(file)


VALUES = st.one_of(
    st.integers(-(2**62), 2**62),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.text(max_size=20),
)


def as_toml(value: Any) -> str:
    if isinstance(value, float):
        return repr(value) if "e" in repr(value) or "." in repr(value) else f"{value!r}.0"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{2,8}", fullmatch=True).filter(
            lambda name: name not in ("seed", "task", "args", "python")
        ),
        st.lists(VALUES, min_size=1, max_size=4, unique_by=lambda v: json.dumps(v)),
        max_size=4,
    ),
    st.integers(1, 3),
)
@settings(max_examples=100, deadline=None)
def test_a_grid_is_the_product_of_its_lists(
    tmp_path_factory: pytest.TempPathFactory, lists: dict[str, list[Any]], seeds: int
) -> None:
    lines = [f"{key} = [{', '.join(map(as_toml, values))}]" for key, values in lists.items()]
    text = f'command = "x"\nseeds = {seeds}\n[parameters]\n' + "\n".join(lines)
    spec = read(tmp_path_factory.mktemp("grid"), text)
    tasks = list(spec.tasks())

    assert spec.task_count == len(tasks) == seeds * math.prod(map(len, lists.values()))
    expected = [dict(zip(lists, row, strict=True)) for row in itertools.product(*lists.values())]
    assert [dict(task.params) for task in tasks[::seeds]] == expected
    assert len({(params_digest(task.params), task.seed) for task in tasks}) == len(tasks)


# --- commands, digests, words -----------------------------------------------------------------


@given(st.dictionaries(st.sampled_from(["lr", "opt.name", "x"]), VALUES, min_size=3))
@settings(max_examples=100, deadline=None)
def test_values_reach_the_command_as_single_arguments(params: dict[str, Any]) -> None:
    settings_ = RunSettings(
        command=("{python}", "{task_dir}/a", "--lr={lr}", "{args}", "{opt.name}{x}", "{{{seed}}}"),
        workdir="/",
    )
    argv = render_command(settings_, params=params, seed=7, task="t", task_dir="/d d")

    assert len(argv) == 5 + len(params)
    assert argv[:2] == [sys.executable, "/d d/a"]
    assert argv[-1] == "{7}"
    text = params["lr"] if isinstance(params["lr"], str) else None
    if text is not None:
        assert argv[2] == f"--lr={text}"
    assert [word.partition("=")[0] for word in argv[3:-2]] == [f"--{key}" for key in params]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1, "0.1"),
        (1e-05, "1e-05"),
        (True, "true"),
        (3, "3"),
        ([1, "a"], '[1, "a"]'),
        ("x y", "x y"),
    ],
)
def test_values_are_written_as(value: Any, text: str) -> None:
    command = RunSettings(command=("{v}",), workdir="/")
    assert render_command(command, params={"v": value}, seed=0, task="t", task_dir="d") == [text]


def test_equal_parameters_have_equal_digests_and_others_do_not() -> None:
    assert params_digest({"a": 1, "b": 2}) == params_digest({"b": 2, "a": 1})
    values: list[Any] = [1, 1.0, True, "1", [1], None]
    assert len({params_digest({"a": value}) for value in values}) == len(values)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("2h", 7200), ("1h30m", 5400), ("1d", 86400), (90, 90), (0.5, 0.5), ("45", 45),
     ("1.5h", 5400), ("0s", 0)],
)  # fmt: skip
def test_durations(text: Any, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "2x", "-1s", "1m2h", None, True, [], "nan", 1e12])
def test_what_is_no_duration(text: Any) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1GB", 10**9), ("1GiB", 1 << 30), ("500M", 500 * 10**6), ("1.5kB", 1500), (7, 7), ("7", 7)],
)
def test_sizes(text: Any, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "1XB", -1, 0, None, True, "0"])
def test_what_is_no_size(text: Any) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr=0.01", ("lr", 0.01)),
        ("a.b=true", ("a.b", True)),
        ("m=resnet18", ("m", "resnet18")),
        ("m='1'", ("m", "1")),
        ("m=", ("m", "")),
        ("m=1\nx=2", ("m", "1\nx=2")),
    ],
)
def test_assignments(text: str, expected: tuple[str, Any]) -> None:
    assert parse_assignment(text) == expected


@pytest.mark.parametrize("text", ["lr", "=1", "a b=1", "lr=nan"])
def test_what_is_no_assignment(text: str) -> None:
    with pytest.raises(BadSweepFile, match="nothing was changed"):
        parse_assignment(text)


# --- hostile and extreme files ----------------------------------------------------------------

DIGITS = "9" * 5000
HEX = "0x" + "f" * 5000  # Python reads it, and refuses to print it
EXTREME = {
    f"samples = {DIGITS}": ("too many digits", ""),
    f"method = {HEX}": ("'method' has a number of more than 64 bits", ""),
    f"[run]\ntimeout = {HEX}": ("'timeout' has a number of more than 64 bits", ""),
    f"[run]\nlog_limit = {2**70}": ("64 bits", ""),
    f'[run]\nlog_limit = "{DIGITS}"': ("is not a size", ""),
    "[run]\npriority = 2147483648": ("must be below 2,147,483,648", ""),
    '[run]\nworkdir = "~nobody-of-that-name/x"': ("cannot be used", ""),
    f'[run]\nworkdir = "{"a" * 5000}"': ("cannot be used: file name too long", ""),
    '[run]\nworkdir = "a\\u0000b"': ("folder's path", ""),
    '[run.env]\n"a\\u001bb" = 1': ("run.env.a\\x1bb must be a text", "quotes"),
    "seeds = [2026-01-01]": ("date", "quotes"),
    "seeds = 20000000": ("20,000,000 tasks", "shorten"),
    "[parameters]\na = {min = 1, max = 2, distribution = ['x']}": ("needs a text", ""),
    "[parameters]\na = {min = 1, max = 2, distribution = 'unifrom'}": (
        "'unifrom'", "did you mean uniform?"),
    "[parameters]\na = {distribution = 'constant'}": ("without 'value'", "value ="),
    "[parameters]\na = {distribution = 'categorical'}": ("without 'values'", "values ="),
    "[parameters]\na = {min = 0.0, max = 1e18, q = 5e-324}": ("10,000,000 steps", ""),
    f"[parameters]\na = {{min = {-(2**63)}, max = {2**63 - 1}}}": (
        "18,446,744,073,709,551,616 tasks", "random"),
    "[parameters]\na = {mu = 0, sigma = 1e308, distribution = 'normal'}": ("largest number", ""),
    "[parameters]\na = {sigma = 1000, distribution = 'log_normal'}": ("largest number", ""),
    "[parameters]\na = {min = -1e308, max = 1e308}": ("largest number", ""),
    "[parameters]\na = {min = 5, max = 7, q = 4, distribution = 'q_log_uniform_values'}": (
        "no multiple of q", ""),
    "[parameters]\nrange.vmin = [1]": ("unknown key 'vmin'", '"range.vmin", in quotes'),
    f'[parameters]\na = ["{"z" * 9999}", "{"z" * 9999}"]': ("twice", ""),
}  # fmt: skip


@pytest.mark.parametrize("text", EXTREME, ids=[text[:40] for text in EXTREME])
def test_an_extreme_value_gets_a_short_printable_sentence(tmp_path: Path, text: str) -> None:
    what, hint = EXTREME[text]
    told, told_hint = problem(tmp_path, f'command = "x"\n{text}')

    assert what in told
    assert hint in told_hint
    assert told.isprintable()
    assert len(told) < len(str(tmp_path)) + 5000 * text.startswith("[run]\nworkdir") + 300


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ('"{args}"', "begins with {args}"),
        ('"x {a:}"', "odd brace"),
        ('["x", "{\\u001bq}"]', "unknown placeholder {\\x1bq}"),
        ('["x", "a\\u0000"]', "NUL"),
    ],
)
def test_a_command_that_cannot_start_is_refused(tmp_path: Path, command: str, what: str) -> None:
    assert what in problem(tmp_path, f"command = {command}\n[parameters]\na = 1")[0]


def test_a_path_with_control_characters_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    with pytest.raises(BadSweepFile) as caught:
        read(tmp_path, "x = 1", name="a\n\x1b[31m.toml")
    assert caught.value.problem.isprintable()


@given(st.text(max_size=120))
@settings(max_examples=200, deadline=None)
def test_any_text_after_a_good_beginning_is_a_sweep_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    file = tmp_path_factory.mktemp("any") / "exp.toml"
    file.write_text(f'command = "x"\n[parameters]\na = {text}', encoding="utf-8")
    told = ""
    try:
        list(itertools.islice(read_sweep(file).tasks(), 10))
    except BadSweepFile as error:
        told = error.problem
    assert told == "" or (told.isprintable() and told.endswith("; nothing was changed"))


# --- points, exactly --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = [1, true, 2]\n[[exclude]]\na = true", [1, 2]),
        ("a = [1, true, 2]\n[[exclude]]\na = 1.0", [True, 2]),
        ("a = [[1, 2], [3]]\n[[exclude]]\na = [1, 2]", [[3]]),
        ("a = [[1, 2], [3]]\n[[exclude]]\na = [[3]]", [[1, 2]]),
        ("a = [1]\n[[include]]\na = 1.0", [1, 1.0]),
        ("a = {min = 1, max = 2}\n[[include]]\na = true", [1, 2, True]),
        ("a = [1, 2]\n[[exclude]]\na = 2\n[[include]]\na = 2", [1, 2]),
        ("a = {min = 0.5, max = 0.5}", [0.5]),
        ("a = {min = 0.1, max = 0.1, distribution = 'log_uniform_values'}", [0.1]),
        (
            "a = {min = 123456789.0, max = 123456789.0002, q = 0.0001}",
            [123456789.0, 123456789.0001, 123456789.0002],
        ),
        ("a = {min = 1, max = 10, q = 4, distribution = 'q_uniform'}", [1, 5, 9]),
    ],
)
def test_points_are_told_apart_as_the_command_does(
    tmp_path: Path, text: str, expected: list[Any]
) -> None:
    found = [point["a"] for point in points(tmp_path, f"[parameters]\n{text}")]
    assert [json.dumps(value) for value in found] == [json.dumps(value) for value in expected]


@pytest.mark.parametrize(
    "include", ["a = 2\nb = 1\nc = 'y'\nd = 2", "a = 1\nb = 3\nc = 'x'\nd = 1"]
)
def test_an_include_that_the_grid_has_is_found_without_walking_it(
    tmp_path: Path, include: str
) -> None:
    grid = "[parameters]\na = [1, 2]\nb = {min = 1, max = 3}\n[[zip]]\nc = ['x', 'y']\nd = [1, 2]\n"
    told, _ = problem(tmp_path, f'command = "x"\n{grid}[[include]]\n{include}')
    assert "is a point of the sweep already" in told
    mixed = include.replace("d = 2", "d = 1").replace("c = 'x'", "c = 'y'")
    assert len(points(tmp_path, f"{grid}[[include]]\n{mixed}")) == 13


def test_an_include_that_was_drawn_already_is_refused(tmp_path: Path) -> None:
    text = 'method = "random"\nsamples = 2\n[parameters]\na = [1, 2]\n[[include]]\na = {}\n'
    assert "already" in problem(tmp_path, f'command = "x"\n{text.format(2)}')[0]
    assert points(tmp_path, text.format(3))[-1] == {"a": 3}


def test_a_random_search_finds_every_point_there_is(tmp_path: Path) -> None:
    text = 'method = "random"\nsamples = 600\n[parameters]\na = {min = 1, max = 20}\n'
    drawn = points(tmp_path, f"{text}b = {{min = 1, max = 30}}")
    assert len({(point["a"], point["b"]) for point in drawn}) == 600


@pytest.mark.parametrize("a", ["[1, 2]", "{mu = 0, sigma = 1, distribution = 'q_normal'}"])
def test_a_random_search_gives_up_when_there_are_too_few_points(tmp_path: Path, a: str) -> None:
    text = f'command = "x"\nmethod = "random"\nsamples = 90000\n[parameters]\na = {a}'
    assert "different points could be drawn, not 90000" in problem(tmp_path, text)[0]


@given(
    st.floats(1e-9, 1e9),
    st.floats(1, 1e6),
    st.sampled_from(["uniform", "log_uniform_values", "inv_log_uniform_values"]),
)
@settings(max_examples=60, deadline=None)
def test_draws_stay_within_their_bounds(
    tmp_path_factory: pytest.TempPathFactory, low: float, factor: float, name: str
) -> None:
    high = low * factor
    spec = f"{{min = {as_toml(low)}, max = {as_toml(high)}, distribution = '{name}'}}"
    text = f'method = "random"\nsamples = 5\n[parameters]\nn = {{min = 1, max = 99}}\na = {spec}'
    for point in points(tmp_path_factory.mktemp("bounds"), text):
        assert low <= point["a"] <= high


@pytest.mark.parametrize("name", ["uniform", "log_uniform_values", "inv_log_uniform_values"])
def test_the_first_and_the_last_draw_are_no_further_than_the_bounds(name: str) -> None:
    low, high = 0.12345678901234566, 9.876543210987656
    draw = domain_of({"min": low, "max": high, "distribution": name}).draw
    assert {low, high} >= {draw(0.0)}
    assert all(low <= draw(u) <= high for u in (0.0, 1e-15, 1 - 1e-15, 1 - 2**-53))


def test_too_many_samples_are_refused_before_the_first_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuledger.sweep_points.params_digest", lambda _: pytest.fail("drawn"))
    text = 'command = "x"\nmethod = "random"\nsamples = 9\n[parameters]\na = [1, 2]'
    assert "only 2 different points" in problem(tmp_path, text)[0]


def test_draws_of_a_quantised_scale_stay_within_their_bounds(tmp_path: Path) -> None:
    spec = "{min = 1, max = 100, q = 32, distribution = 'q_log_uniform_values'}"
    drawn = points(tmp_path, f'method = "random"\nsamples = 3\n[parameters]\na = {spec}')
    assert sorted(point["a"] for point in drawn) == [32, 64, 96]


def test_draws_do_not_keep_digits_in_which_machines_differ(tmp_path: Path) -> None:
    spec = "{min = 1e-5, max = 0.1, distribution = 'log_uniform_values'}"
    for point in points(tmp_path, f'method = "random"\nsamples = 50\n[parameters]\na = {spec}'):
        assert point["a"] == float(f"{point['a']:.12g}")


def test_shuffled_tasks_have_the_parameters_of_their_point(tmp_path: Path) -> None:
    text = (
        'command = "x"\norder = "shuffled"\nseeds = [5, 6]\n[parameters]\na = [1, 2, 3]\n'
        "b = [1, 2]\n[[exclude]]\na = 2\nb = 2\n[[include]]\na = 9\nb = 9\n"
    )
    listed = list(read(tmp_path, text.replace("shuffled", "listed")).tasks())
    shuffled = list(read(tmp_path, text).tasks())
    assert len(listed) == 12
    assert sorted(shuffled, key=lambda task: (task.point, task.seed)) == sorted(
        listed, key=lambda task: (task.point, task.seed)
    )


@pytest.mark.parametrize("how", ['order = "shuffled"', 'method = "random"\nsamples = 24000'])
def test_many_tasks_are_made_one_by_one(tmp_path: Path, how: str) -> None:
    text = f'command = "x"\n{how}\n[parameters]\na = {{min = 1, max = 400}}\nb = [1, 2, 3]\n'
    text += "c = {min = 1, max = 200}\n" if "random" in how else "c = {min = 1, max = 20}\n"
    tasks = read(tmp_path, text).tasks()
    begun = next(tasks)
    tracemalloc.start()
    try:
        count = 1 + sum(1 for _ in tasks)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (count, len(begun.params)) == (24_000, 3)
    assert peak < 1_000_000  # dicts of all of them would be several times that


def test_a_size_is_exact(tmp_path: Path) -> None:
    assert parse_size("9007199254740993") == 9007199254740993
    for size in ("9" * 400, 2**63):
        with pytest.raises(ValueError, match="size"):
            parse_size(size)


@given(st.integers(0, 10**8))
def test_durations_round_trip(seconds: int) -> None:
    minutes, s = divmod(seconds, 60)
    hours, m = divmod(minutes, 60)
    assert parse_duration(f"{hours}h{m}m{s}s") == parse_duration(seconds) == seconds


@pytest.mark.parametrize(
    "text", ["seed=3", "args=1", f"x={DIGITS}", "x=" + "[" * 9000, "x=\udcff", "x=2026-01-01"]
)
def test_what_cannot_be_assigned(text: str) -> None:
    with pytest.raises(BadSweepFile) as caught:
        parse_assignment(text)
    assert caught.value.problem.isprintable()
    assert caught.value.problem.endswith("; nothing was changed")
