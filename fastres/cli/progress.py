"""The progress bar of every command: on stderr if that is a terminal, else nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress


class Bar:
    """What a command tells of its work. Nothing is shown without a `shown` bar of rich's."""

    def __init__(self, shown: Progress | None = None, task: Any = None) -> None:
        self._shown, self._task = shown, task

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """`count` more units are done; `note` stands at the end of the line."""
        if self._shown is not None:
            fields: dict[str, Any] = {} if note is None else {"note": note}
            self._shown.update(self._task, advance=count, **fields)

    def tell(self, *, title: str | None = None, note: str | None = None) -> None:
        """What the work is called from now on, and what it does just now."""
        if self._shown is not None:
            told: dict[str, Any] = {"description": title, "note": note}
            self._shown.update(self._task, **{name: text for name, text in told.items() if text is not None})

    def begin(self, done: int, total: int) -> None:
        """`done` of `total` units are done."""
        if self._shown is not None:
            self._shown.update(self._task, completed=done, total=total)


@contextmanager
def progress(title: str, total: int | None = None, *, shown: bool = True) -> Iterator[Bar]:
    """A bar that is gone afterwards. `total` may come later, by `begin`."""
    if not shown or not sys.stderr.isatty():
        yield Bar()
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn

    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TextColumn("{task.fields[note]}", markup=False))
    # If stdout is the terminal too, its lines go above the bar; a file or a pipe is left alone.
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty()) as made:
        yield Bar(made, made.add_task(title, total=total, note=""))
