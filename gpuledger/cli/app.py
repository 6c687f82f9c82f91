"""Builds the program out of its commands, and reports what users can act on, once for all."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from gpuledger import __version__
from gpuledger.cli.output import echo_error
from gpuledger.errors import LedgerError

COMMANDS: Mapping[str, str] = {
    "init": "sweeps",
    "work": "work",
    "run": "run",
    "status": "status",
    "ui": "ui",
    "tasks": "tasks",
    "show": "tasks",
    "logs": "logs",
    "events": "events",
    "results": "results",
    "report": "report",
    "retry": "change",
    "cancel": "change",
    "set": "change",
    "pause": "sweeps",
    "resume": "sweeps",
    "slurm": "slurm",
    "doctor": "doctor",
    "backup": "rescue",
    "recover": "rescue",
}
"""Each command and the module of `gpuledger.cli` whose `app` has it, in the order of the help."""

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
NOT_WRITTEN = 2  # as for a file of `-o`
CANNOT_START = 69  # a needed thing is missing: a process, a thread, a descriptor
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PIPE_CLOSED = 141  # 128 + SIGPIPE: what `head` does to every other program

# Public under this name only; typer has its own copy of click in some versions.
UsageError: Any = typer.BadParameter.__base__


class CommandGroup(TyperGroup):
    """Imports a command's module when the command is asked for; the others cost nothing."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command, its module imported; None when there is none of that name."""
        if cmd_name not in COMMANDS:
            for known in COMMANDS:  # "did you mean" looks at what is loaded
                self.get_command(ctx, known)
            return None
        if cmd_name not in self.commands:
            module = importlib.import_module(f"gpuledger.cli.{COMMANDS[cmd_name]}")
            found: Any = typer.main.get_group(module.app).commands
            for command in found.values():
                _make_plain(command)
            self.commands.update(found)
        return self.commands[cmd_name]

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a reader that went away (`| head`) ends it silently."""
        try:
            super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError as error:
            _drop_output()
            raise typer.Exit(PIPE_CLOSED) from error

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line and exit; what a user can act on becomes two lines on stderr."""
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
            sys.exit(code)
        except LedgerError as error:
            echo_error(error.problem, hint=error.hint)
            sys.exit(error.exit_code)
        except UsageError as error:
            _report_usage(error)
            sys.exit(error.exit_code)
        except OSError as error:
            if error.errno not in FULL or error.filename is not None:
                raise
            _drop_output()
            why = os.strerror(error.errno or 0).lower()
            echo_error(f"the output cannot be written: {why}", hint="write it to another disk")
            sys.exit(NOT_WRITTEN)
        except (KeyboardInterrupt, typer.Abort):  # which of them depends on typer's version
            sys.exit(INTERRUPTED)
        except Exception as error:
            _report_no_start(error)
            sys.exit(CANNOT_START)


def _drop_output() -> None:
    """Let nothing more reach stdout: Python flushes once more when it ends, and must not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report_no_start(error: Exception) -> None:
    """Say what of its own gpuledger could not start; whatever else went wrong is raised again."""
    from gpuledger.process import CannotStart  # only now: most commands start nothing

    if not isinstance(error, CannotStart):
        raise error
    hint = "look at this machine's limits ('ulimit -a') and at what else runs on it"
    echo_error(error.problem, hint=hint)


def _make_plain(command: Any) -> None:
    """Let the help of a command, and of those below it, look like that of other programs."""
    command.rich_markup_mode = None
    for below in getattr(command, "commands", {}).values():
        _make_plain(below)


def _report_usage(error: Any) -> None:
    # Some versions of typer say where a sentence came from.
    message = error.format_message().replace(": Value error, ", ": ")
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(message, err=True)
        return
    command = error.ctx.command_path if error.ctx else "gpuledger"
    echo_error(
        message[:1].lower() + message[1:].removesuffix("."),
        hint=f"'{command} --help' shows how it is used",
    )


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gpuledger {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def gpuledger(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    """Run sweeps on GPU machines that share a file system: one SQLite ledger, no daemon.

    \b
    gpuledger init sweep.toml     every point of the sweep becomes a task
    gpuledger work --gpu 0        run tasks on a GPU, on as many machines as you like
    gpuledger status              watch them
    gpuledger retry --failed      put failures back, after a fix
    """
