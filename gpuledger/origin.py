"""What an attempt came from, so that it can be run again: a value, and what may be in it.

It is part of a ledger that others read: of the environment only the names that are listed here
are kept, and nothing is ever kept whose name sounds like a secret.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

KEPT_NAMES = frozenset(
    {
        "CONDA_DEFAULT_ENV",
        "CONDA_PREFIX",
        "CUBLAS_WORKSPACE_CONFIG",
        "HF_DATASETS_OFFLINE",
        "HF_HUB_OFFLINE",
        "JAX_ENABLE_X64",
        "JAX_PLATFORMS",
        "MKL_NUM_THREADS",
        "MLFLOW_RUN_NAME",
        "NUMEXPR_NUM_THREADS",
        "NVIDIA_TF32_OVERRIDE",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "PYTHONHASHSEED",
        "PYTORCH_ALLOC_CONF",
        "PYTORCH_CUDA_ALLOC_CONF",
        "SLURM_ARRAY_JOB_ID",
        "SLURM_ARRAY_TASK_ID",
        "SLURM_CLUSTER_NAME",
        "SLURM_JOB_ID",
        "SLURM_JOB_PARTITION",
        "TF_DETERMINISTIC_OPS",
        "VIRTUAL_ENV",
        "WANDB_MODE",
        "WANDB_NAME",
        "WANDB_RUN_GROUP",
        "XLA_FLAGS",
    }
)
KEPT_PREFIXES = ("CUDA_", "GPULEDGER_")
KNOWN_ANYWAY = frozenset(
    f"GPULEDGER_{name}"
    for name in ("ATTEMPT", "MARK", "REPORT", "SEED", "SWEEP", "TASK", "TASK_DIR", "WORKER")
)
"""The attempt's own row says as much: a ledger of a million tasks need not say it twice."""

SECRET_WORDS = ("AUTH", "CREDENTIAL", "KEY", "PASSW", "SECRET", "TOKEN")
"""A name with one of these is never kept, whatever it begins with."""

LONGEST_TEXT = 4096
MOST_ARGUMENTS = 64
MOST_VARIABLES = 64
MOST_PACKAGES = 3000
LONGEST_NAME = 100
"""What is longer is cut: an origin has to fit into one line of a worker's diary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """The Python packages that an interpreter finds: name to version."""

    python: str | None
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What one attempt came from, as far as its worker could find out; None means not known.

    Attributes:
        argv: The command as it was run, every placeholder filled in.
        workdir: The folder that it was started in.
        host: Host name.
        commit: Of the git repository around `workdir`.
        dirty: Whether its tracked files differ from that commit.
        diff: Digest of that difference: `diffs/<digest>.diff` in the ledger's folder.
        diff_cut: The difference was larger than what is kept of it.
        git_problem: Why git could not tell (all of) this.
        git_age_s: How long before the attempt git was asked: 0 unless git is slow.
        interpreter: Path of the Python that runs the command.
        python: Its version.
        gpus: Names of the GPUs.
        driver: Version of the NVIDIA driver.
        variables: What is kept of the task's environment.
        environment: Digest of `packages`.
        packages: Those of the interpreter; None also where only the digest is at hand.
    """

    argv: tuple[str, ...] = ()
    workdir: str | None = None
    host: str | None = None
    commit: str | None = None
    dirty: bool | None = None
    diff: str | None = None
    diff_cut: bool = False
    git_problem: str | None = None
    git_age_s: float = 0.0
    interpreter: str | None = None
    python: str | None = None
    gpus: tuple[str, ...] = ()
    driver: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    environment: str | None = None
    packages: Packages | None = None


def origin_values(origin: Origin) -> dict[str, Any]:
    """Return the origin as JSON values, without its packages."""
    values = asdict(replace(origin, packages=None))  # there are hundreds of them to copy
    del values["packages"]
    return values


def origin_text(origin: Origin) -> str:
    """Return the origin as the ledger keeps it: without packages, and what is not known."""
    values = origin_values(origin)
    return json.dumps({name: value for name, value in values.items() if value or value is False})


def origin_from(values: Mapping[str, Any]) -> Origin:
    """Return a kept origin; names that this version does not know are left out."""
    known = {each.name: values[each.name] for each in fields(Origin) if each.name in values}
    packages = known.get("packages")
    return Origin(
        **{
            **known,
            "argv": tuple(known.get("argv") or ()),
            "gpus": tuple(known.get("gpus") or ()),
            "packages": None if packages is None else Packages(**packages),
        }
    )


def packages_text(packages: Packages) -> str:
    """Return the packages as the ledger keeps them: equal packages, equal text."""
    return json.dumps(asdict(packages), sort_keys=True)


def packages_from(text: str) -> Packages:
    """Return kept packages."""
    values = json.loads(text)
    return Packages(python=values.get("python"), versions=dict(values.get("versions") or {}))


def digest_of(content: bytes) -> str:
    """Return what names a content of which one copy is kept: 32 hexadecimal digits."""
    import hashlib  # most commands do without

    return hashlib.blake2b(content, digest_size=16).hexdigest()


def kept_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what may be kept of an environment."""
    names = sorted(name for name in environ if _is_kept(name))
    return {name: cut(environ[name]) for name in names[:MOST_VARIABLES]}


def kept_arguments(argv: Sequence[str]) -> tuple[str, ...]:
    """Return a command, shortened where nobody would read it."""
    kept = tuple(cut(argument) for argument in argv[:MOST_ARGUMENTS])
    return kept if len(argv) <= MOST_ARGUMENTS else (*kept, "…")


def kept_packages(python: str | None, found: Iterable[tuple[str, str]]) -> Packages:
    """Return packages by name; the first of a name is the one that is imported."""
    versions: dict[str, str] = {}
    for name, version in found:
        if len(versions) >= MOST_PACKAGES:
            break
        versions.setdefault(name[:LONGEST_NAME], version[:LONGEST_NAME])
    return Packages(python=python, versions=dict(sorted(versions.items())))


def cut(text: str) -> str:
    """Return the text, shortened when it is very long."""
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def _is_kept(name: str) -> bool:
    if name in KNOWN_ANYWAY or any(word in name.upper() for word in SECRET_WORDS):
        return False
    return name in KEPT_NAMES or name.startswith(KEPT_PREFIXES)
