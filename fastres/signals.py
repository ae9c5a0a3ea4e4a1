"""Signals: handled within a block, and given back after it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

_Handled = TypeVar("_Handled", bound="Handled")
STOPPING = (signal.SIGINT, signal.SIGTERM)


class Handled:
    """Within it `handler(number, frame)` handles the signals `numbers`, and after `restore()` what did before.

    Outside the main thread, where Python delivers no signal, it does nothing.
    """

    def __init__(self, numbers: tuple[int, ...], handler: Callable[[int, Any], Any]) -> None:
        self._numbers, self._handler = numbers, handler
        self._before: dict[int, Any] = {}

    def __enter__(self: _Handled) -> _Handled:
        for number in self._numbers:
            try:
                self._before[number] = signal.signal(number, self._handler)
            except ValueError:  # not the main thread
                break
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class StopRequest(Handled):
    """Within it the first SIGINT or SIGTERM sets `requested`, for a loop to grant; a second one acts as before."""

    def __init__(self) -> None:
        super().__init__(STOPPING, self._request)
        self.requested = False

    def _request(self, number: int, frame: object) -> None:
        self.requested = True
        self.restore()


@contextmanager
def terminable() -> Iterator[None]:
    """Lets SIGTERM, such as `timeout`'s, unwind like Ctrl-C, so that processes and files go with it."""

    def leave(number: int, frame: Any) -> NoReturn:
        raise SystemExit(128 + number)

    with Handled((signal.SIGTERM,), leave):
        yield


def ignore_interrupts() -> None:
    """Leaves Ctrl-C, which reaches every process of a terminal, to another process than this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
