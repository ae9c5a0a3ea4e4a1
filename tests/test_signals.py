"""Signals: asked to stop once, a loop may finish its step; handlers are given back."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from fastres import cli, signals


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in signals.STOPPING]


@pytest.mark.parametrize("number", signals.STOPPING)
def test_the_first_signal_is_a_request(number: int) -> None:
    before = handlers()
    with signals.StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert handlers() == before  # so that a second one ends the process
    assert handlers() == before


def test_a_termination_unwinds() -> None:
    before = handlers()
    with pytest.raises(SystemExit) as left, signals.terminable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert (left.value.code, handlers()) == (143, before)


def test_other_threads_are_left_alone() -> None:
    before, seen = handlers(), []

    def work() -> None:
        with signals.StopRequest() as stop, signals.terminable():
            seen.append((stop.requested, handlers()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


@pytest.mark.parametrize("shown", [True, False])
def test_a_bar_on_a_terminal_alone(
    shown: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: shown, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    arguments = ["--model", "resnet8", "--batch", "700", "--epochs", "1", "--device", "cpu"]
    assert cli.main(["train", *arguments, "--out", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert ("images/s  loss" in captured.err, "resnet8" in captured.err) == (shown, shown)
    assert captured.out.splitlines()[-1].startswith("test accuracy: ")
