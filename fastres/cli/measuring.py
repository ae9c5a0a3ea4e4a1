"""What the commands that measure share: checks before minutes are spent, progress, and a clean end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import signals
from .errors import CommandError, UsageError, printable

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from ..measure.compare import Progress


def check_dtype(dtype: torch.dtype, device: torch.device) -> None:
    """PyTorch has the last word on what a device can do."""
    import torch

    try:
        torch.nn.functional.conv2d(
            torch.zeros(1, 16, 8, 8, dtype=dtype, device=device), torch.zeros(16, 16, 3, 3, dtype=dtype, device=device)
        )
    except RuntimeError as error:
        name = str(dtype).removeprefix("torch.")
        reason = str(error).splitlines()[0]
        raise UsageError(f"argument --dtype: PyTorch cannot run {name} convolutions on {device}: {reason}") from error


def check_writable(path: Path, argument: str) -> None:
    """Before minutes are spent, not after."""
    folder = path.resolve().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"argument {argument}: cannot write {str(path)!r}: expected a file in a writable folder")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tells in one line that `path` could not be written."""
    try:
        yield
    except OSError as error:
        raise CommandError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


def load(path: Path) -> dict[str, Any]:
    """The record in `path`, which --show names."""
    from ..measure import results

    try:
        return results.load(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"argument --show: {error}") from error


def plain(record: Any) -> Any:
    """`record` with every text in it fit for a terminal: escapes are spelled out."""
    if isinstance(record, dict):
        return {plain(name): plain(value) for name, value in record.items()}
    if isinstance(record, list):
        return [plain(value) for value in record]
    return printable(record) if isinstance(record, str) else record


@contextmanager
def from_record(path: Path | None) -> Iterator[None]:
    """Within it tables and pages are made of the record in `path`: what is damaged there is a usage error, in one line.

    A record that was just measured has no path, and its errors are ours.
    """
    try:
        yield
    except Exception as error:  # values of wrong types, or none, make nearly anything of arithmetic
        if path is None:
            raise
        raise UsageError(f"argument --show: {path}: damaged: {type(error).__name__}: {error}") from error


def save(result: dict[str, Any], path: Path) -> None:
    from ..measure import results

    with writing(path):
        results.save(result, path)


def console(width: int = 160) -> Console:
    """Standard output: as wide as the terminal, elsewhere `width` columns."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else width, highlight=False, markup=False)


@contextmanager
def progress(total: int) -> Iterator[tuple[Callable[[str], None], Progress]]:
    """A function that names the workload, and what to tell progress to. SIGTERM unwinds like Ctrl-C."""
    from ..measure.compare import Progress
    from .progress import progress

    with signals.terminable(), progress("", total) as bar:
        yield lambda title: bar.tell(title=title), Progress(lambda step: bar.tell(note=step), bar.advance)
