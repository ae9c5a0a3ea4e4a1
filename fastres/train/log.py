"""The curves of a run as CSV, one row an iteration; a resumed run goes on as if it had never stopped."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from .. import files
from .errors import TrainingError


class Row(NamedTuple):
    """One iteration: counted from 1, its learning rate, loss and training error (its batch's, in percent).

    `test_error`, in percent, is there for the last iteration of an epoch, else None.
    """

    iteration: int
    epoch: int
    learning_rate: float
    loss: float
    train_error: float
    test_error: float | None = None


class CurveLog:
    """Appends rows to `path`, after cutting off those past iteration `kept`.

    Warns if rows of iterations up to `kept` are missing, as the curves then have a gap.
    """

    def __init__(self, path: Path, kept: int) -> None:
        self.path = path
        rows = [row for row in read(path) if row.iteration <= kept] if kept and path.exists() else []
        if missing := kept - len({row.iteration for row in rows}):
            warnings.warn(
                f"{path} lacks {missing} of the {kept} iterations so far: its curves have a gap", stacklevel=2
            )
        text = ",".join(Row._fields) + "\n" + "".join(map(_line, rows))
        try:
            files.write(path, text)
        except OSError as error:
            raise TrainingError(f"cannot write the log {path}: {error.strerror or error}") from error

    def append(self, rows: Iterable[Row]) -> None:
        """Raises TrainingError where the file cannot be written."""
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("".join(map(_line, rows)))
        except OSError as error:
            raise TrainingError(f"cannot write the log {self.path}: {error.strerror or error}") from error

    def sync(self) -> None:
        """Returns once every row is on disk. Raises TrainingError if that fails."""
        try:
            files.sync(self.path)
        except OSError as error:
            raise TrainingError(f"cannot write the log {self.path}: {error.strerror or error}") from error


def _line(row: Row) -> str:
    return ",".join("" if value is None else repr(value) for value in row) + "\n"


def read(path: Path) -> list[Row]:
    """The rows of a log, without a last one that a kill left incomplete. Raises TrainingError for another file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"cannot read the log {path}: {error}") from error
    lines = text[: text.rfind("\n") + 1].splitlines()
    if not lines or lines[0] != ",".join(Row._fields):
        raise TrainingError(f"{path} is not a log of 'fastres train': expected the header {','.join(Row._fields)}")
    try:
        return [
            Row(int(i), int(epoch), float(rate), float(loss), float(train), float(test) if test else None)
            for i, epoch, rate, loss, train, test in csv.reader(lines[1:])
        ]
    except (ValueError, csv.Error) as error:
        told = f"{error}; without this file, --resume goes on and the curves have a gap"
        raise TrainingError(f"the log {path} is damaged: {told}") from error
