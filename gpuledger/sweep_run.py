"""Reads the command, the seeds and the run settings of a sweep file; fills commands in."""

from __future__ import annotations

import difflib
import json
import shlex
import string
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpuledger.spec import Params, RunSettings
from gpuledger.sweep_parameters import RESERVED
from gpuledger.sweep_values import shown
from gpuledger.sweep_words import (
    RUN_KEYS,
    SLURM_KEYS,
    BadKey,
    duration_at,
    known_keys,
    limit_at,
    lowered,
    size_at,
    whole_at,
)


def render_command(
    settings: RunSettings, *, params: Params, seed: int, task: str, task_dir: str
) -> list[str]:
    """Return a task's command: placeholders filled in within each argument, never split.

    Strings stay as they are, True and False become `true` and `false`, numbers what Python
    writes, lists and tables JSON. `{args}` alone becomes `--key=value` for every parameter;
    `{python}` is the interpreter that runs gpuledger; `{{` and `}}` are braces.
    """
    values = {key: _as_text(value) for key, value in params.items()}
    pairs = [f"--{key}={value}" for key, value in values.items()]
    values |= {"seed": str(seed), "task": task, "task_dir": task_dir, "python": sys.executable}
    argv: list[str] = []
    for argument in settings.command:
        if argument == "{args}":
            argv.extend(pairs)
        else:
            argv.append(_filled(argument, {**values, "args": " ".join(pairs)}))
    return argv


def command_of(table: Mapping[str, Any], keys: Sequence[str]) -> tuple[str, ...]:
    """Return the command's arguments, every placeholder known."""
    command = table.get("command")
    if command is None:
        raise BadKey("it has no 'command'", hint='for example command = "python train.py {args}"')
    if isinstance(command, str):
        try:
            arguments = shlex.split(command)
        except ValueError as error:
            raise BadKey(
                f"'command' cannot be split: {lowered(str(error))}", key="command"
            ) from error
    elif isinstance(command, list) and all(isinstance(part, str) for part in command):
        arguments = command
    else:
        raise BadKey("'command' must be a text or a list of texts", key="command")
    if not arguments or not arguments[0]:
        raise BadKey("'command' is empty", key="command")
    if arguments[0] == "{args}":
        raise BadKey("'command' begins with {args}", key="command", hint="name a program first")
    if any("\0" in argument for argument in arguments):
        raise BadKey("'command' has a NUL character", key="command")
    for argument in arguments:
        _require_placeholders(argument, [*keys, *sorted(RESERVED)])
    return tuple(arguments)


def _require_placeholders(argument: str, known: Sequence[str]) -> None:
    try:
        parts = _parsed(argument)
        if "".join(_as_written(text, field) for text, field, _, _ in parts) != argument:
            raise ValueError("a colon")  # {lr:} is parsed as {lr}
        fields = [field for _, field, _, _ in parts if field is not None]
    except ValueError as error:
        raise BadKey(
            f"'command' has an odd brace in {shown(argument)}",
            key="command",
            hint="write {{ and }} for braces that are meant as such",
        ) from error
    for field in fields:
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1)
            hint = f"did you mean {{{near[0]}}}?" if near else f"known: {', '.join(known)}"
            raise BadKey(
                f"'command' has an unknown placeholder {{{shown(field)[1:-1]}}}",
                key="command",
                hint=hint,
            )


def _as_written(text: str, field: str | None) -> str:
    literal = text.replace("{", "{{").replace("}", "}}")
    return literal if field is None else f"{literal}{{{field}}}"


def _parsed(argument: str) -> Sequence[tuple[str, str | None, str | None, str | None]]:
    parts = list(string.Formatter().parse(argument))
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise ValueError("a format specification")
    return parts


def _filled(argument: str, values: Mapping[str, str]) -> str:
    return "".join(
        literal + (values[field] if field is not None else "")
        for literal, field, _, _ in _parsed(argument)
    )


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)


def seeds_of(value: Any) -> Sequence[int]:
    """Return the seeds of a list or a count."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise BadKey(
                f"'seeds' must be a list or a count of at least 1, not {value}", key="seeds"
            )
        return range(value)
    if not isinstance(value, list) or not value:
        raise BadKey("'seeds' must be a list of whole numbers, or a count", key="seeds")
    seen = set()
    for seed in value:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise BadKey(f"a seed must be a whole number, not {shown(seed)}", key="seeds")
        if seed in seen:
            raise BadKey(f"seed {seed} is given twice", key="seeds")
        seen.add(seed)
    return value


def settings_of(run: Mapping[str, Any], command: tuple[str, ...], path: Path) -> RunSettings:
    """Return what [run] says, over the defaults."""
    known_keys(run, RUN_KEYS, "run.")
    defaults = RunSettings(command=command, workdir="")
    return RunSettings(
        command=command,
        workdir=_workdir(run, path),
        env=_env(run),
        timeout_s=limit_at(run, "timeout", defaults.timeout_s),
        max_attempts=whole_at(run, "max_attempts", defaults.max_attempts, low=1),
        max_losses=whole_at(run, "max_losses", defaults.max_losses, low=1),
        kill_grace_s=duration_at(run, "kill_grace", defaults.kill_grace_s),
        silence_timeout_s=limit_at(run, "silence_timeout", defaults.silence_timeout_s),
        avoid_s=duration_at(run, "avoid", defaults.avoid_s),
        no_retry_codes=_codes(run),
        log_limit_bytes=size_at(run, "log_limit", defaults.log_limit_bytes),
        pause_after=whole_at(run, "pause_after", defaults.pause_after),
        time_needed_s=limit_at(run, "time_needed", defaults.time_needed_s),
        record_diff=_flag(run, "record_diff", defaults.record_diff),
        preload=_preload(run),
    )


def with_slurm(settings: RunSettings, table: Mapping[str, Any]) -> RunSettings:
    """Return the settings with what [slurm] says."""
    known_keys(table, SLURM_KEYS, "slurm.")
    setup = table.get("setup", "")
    if not isinstance(setup, str) or "\0" in setup:
        raise BadKey("slurm.setup must be a text, lines of shell", key="setup")
    return replace(settings, slurm_setup=setup)


def _workdir(run: Mapping[str, Any], path: Path) -> str:
    given = run.get("workdir", ".")
    if not isinstance(given, str) or not given or "\0" in given:
        raise BadKey(f"run.workdir must be a folder's path, not {shown(given)}", key="workdir")
    try:
        folder = Path(path.absolute().parent, Path(given).expanduser())
        is_folder = folder.is_dir()
    except (OSError, RuntimeError) as error:  # no such user, too long, not allowed
        why = lowered(getattr(error, "strerror", None) or str(error))
        raise BadKey(f"run.workdir {shown(given)} cannot be used: {why}", key="workdir") from error
    if not is_folder:
        raise BadKey(f"run.workdir {str(folder)!r} is not a folder", key="workdir")
    return str(folder.resolve())


def _env(run: Mapping[str, Any]) -> dict[str, str]:
    env = run.get("env", {})
    if not isinstance(env, dict):
        raise BadKey("run.env must be a table of texts", key="env")
    for key, value in env.items():
        if not isinstance(value, str):
            what = f"run.env.{shown(key)[1:-1]} must be a text, not {shown(value)}"
            raise BadKey(what, key=key, hint="add quotes")
        if not key or "=" in key or "\0" in key + value:
            raise BadKey(
                f"run.env has a name or value that no environment can hold: {shown(key)}", key=key
            )
        if key.startswith("GPULEDGER_") or key == "CUDA_VISIBLE_DEVICES":
            raise BadKey(f"run.env cannot set {key}: the worker does", key=key)
    return env


def _flag(run: Mapping[str, Any], key: str, default: bool) -> bool:
    value = run.get(key, default)
    if not isinstance(value, bool):
        raise BadKey(f"run.{key} must be true or false, not {shown(value)}", key=key)
    return value


def _codes(run: Mapping[str, Any]) -> tuple[int, ...]:
    codes = run.get("no_retry_codes", [])
    if not isinstance(codes, list) or not all(
        isinstance(code, int) and not isinstance(code, bool) and 1 <= code <= 255 for code in codes
    ):
        raise BadKey(
            "run.no_retry_codes must be a list of exit codes, 1 to 255", key="no_retry_codes"
        )
    return tuple(codes)


def _preload(run: Mapping[str, Any]) -> tuple[str, ...]:
    names = run.get("preload", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadKey(
            "run.preload must be a list of modules' names",
            key="preload",
            hint='for example preload = ["torch", "torchvision"]',
        )
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise BadKey(
                f"run.preload has {shown(name)}, which is no name of a module",
                key="preload",
                hint="write what follows 'import': torch, or torch.nn",
            )
    return tuple(dict.fromkeys(names))
