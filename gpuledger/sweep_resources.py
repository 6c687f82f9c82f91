"""Reads what a sweep's tasks need of a machine: the table [resources] of a sweep file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gpuledger.resources import pattern_problem
from gpuledger.spec import RunSettings
from gpuledger.sweep_values import shown
from gpuledger.sweep_words import RESOURCE_KEYS, BadKey, known_keys, parse_size, whole_at

MOST_GPUS = 1024
MIB = 1 << 20


def with_resources(settings: RunSettings, table: Mapping[str, Any]) -> RunSettings:
    """Return the settings with what [resources] asks for; raise BadKey for what makes no sense."""
    known_keys(table, RESOURCE_KEYS, "resources.")
    memory = _bytes(table)
    found = replace(
        settings,
        gpus=_gpus(table),
        min_memory_mib=None if memory is None else -(-memory // MIB),
        gpu_name=_gpu_name(table),
    )
    if found.gpus == 0 and (found.min_memory_mib or found.gpu_name):
        key = "min_memory" if found.min_memory_mib else "gpu_name"
        raise BadKey(
            f"resources.{key} makes no sense with gpus = 0: such tasks run on the CPU", key=key
        )
    return found


def _gpus(table: Mapping[str, Any]) -> int | None:
    if "gpus" not in table:
        return None
    count = whole_at(table, "gpus", 1)
    if count > MOST_GPUS:
        raise BadKey(f"'gpus' must be at most {MOST_GPUS}, not {count}", key="gpus")
    return count


def _bytes(table: Mapping[str, Any]) -> int | None:
    try:
        return parse_size(table["min_memory"]) if "min_memory" in table else None
    except ValueError as error:
        raise BadKey(f"resources.min_memory: {error}", key="min_memory") from error


def _gpu_name(table: Mapping[str, Any]) -> str | None:
    pattern = table.get("gpu_name")
    if pattern is None:
        return None
    if not isinstance(pattern, str):
        raise BadKey(f"resources.gpu_name must be a text, not {shown(pattern)}", key="gpu_name")
    problem = pattern_problem(pattern)
    if problem is not None:
        raise BadKey(
            f"resources.gpu_name {shown(pattern)} is not understood: {problem}",
            key="gpu_name",
            hint='for example gpu_name = "A100|H100"',
        )
    return pattern
