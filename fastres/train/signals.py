"""SIGINT and SIGTERM as a request that the loop grants when it is safe to."""

from __future__ import annotations

import signal
from typing import Any


class StopSignals:
    """Within it the first SIGINT or SIGTERM sets `requested`; a second one acts as it did before."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._request)
            except ValueError:  # not the main thread, where no signal arrives either
                break
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back()

    def _request(self, number: int, frame: object) -> None:
        self.requested = True
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
