"""The command line, `fastres COMMAND`.

A command is a module of this package with `NAME`, `HELP`, `add_arguments(parser)`, which also sets a description and an
epilog of examples, and `run(args)`, which returns the exit status and imports what only it needs.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from .. import __version__
from .errors import CommandError, UsageError, printable

COMMANDS = ("bench", "classify", "experiment", "info", "profile", "selftest", "train", "tune")

_EPILOG = """\
exit status:
  0 done, 1 failed (or some inputs did), 2 wrong usage, 130 interrupted

FASTRES_DEBUG=1 shows the traceback of an error. 'fastres COMMAND --help' has examples.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command in `argv` (default: the process's arguments) and returns the exit status.

    0 is success, 1 a failure and 2 wrong usage, both told in one line on stderr, 130 an interrupt (Ctrl-C) and 141 a
    reader that closed our stdout, told to nobody.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a label that the terminal's encoding lacks is no error
    try:
        status = _run(argv)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a failure can still be told
        return status
    except UsageError as error:
        return _fail(2, str(error))
    except CommandError as error:
        return _fail(1, str(error))
    except BrokenPipeError:
        _drop_stdout()
        return 141
    except KeyboardInterrupt:
        return _fail(130, "", "interrupted")
    except Exception as error:
        if isinstance(error, OSError):
            _drop_stdout()  # it may be stdout itself that failed (a full disk): the interpreter would try it again
        return _fail(1, f"{type(error).__name__}: {error}")


def _run(argv: Sequence[str] | None) -> int:
    parser = _Parser(
        prog="fastres",
        description="The ResNet family for PyTorch with its own fused kernels.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fastres {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = import_module(f".{name}", __package__)
        command = commands.add_parser(
            module.NAME,
            help=module.HELP,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    try:
        args = parser.parse_args(argv)
    except SystemExit as done:  # --help, --version
        return int(done.code or 0)
    return args.run(args)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see '{self.prog} --help')")


def _fail(status: int, message: str, word: str = "error") -> int:
    if os.environ.get("FASTRES_DEBUG", "0") not in ("", "0"):
        traceback.print_exc()
    line = " ".join(part.strip() for part in message.split("\n") if part.strip())
    print(f"fastres: {word}: {printable(line)}" if line else f"fastres: {word}", file=sys.stderr)
    return status


def _drop_stdout() -> None:
    """Points stdout at nothing, so that the interpreter's last flush does not fail aloud."""
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
    except (AttributeError, OSError, ValueError):  # no stdout, or one without a file descriptor
        return
