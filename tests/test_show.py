"""`--show` of a record from elsewhere: one clear error, and no text in it reaches the terminal as a command."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from profiles import made_up
from test_measure import _record

from fastres.cli import main, measuring

ESCAPE = "\x1b]0;owned\x07\u202e"
WRONG = (None, "text", [], {}, -1, 0, math.nan, [None], True)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all that a record holds, of long lists the first alone."""
    parts = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for name, part in parts:
        yield (*path, name)
        yield from places(part, (*path, name))


def around(record: dict[str, Any], place: tuple[Any, ...]) -> Any:
    inner: Any = record
    for name in place[:-1]:
        inner = inner[name]
    return inner


def changed(record: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    made = copy.deepcopy(record)
    around(made, place)[place[-1]] = value
    return made


def lacking(record: dict[str, Any], place: tuple[Any, ...]) -> dict[str, Any]:
    made = copy.deepcopy(record)
    del around(made, place)[place[-1]]
    return made


@pytest.mark.parametrize(("command", "every"), [("bench", 5), ("profile", 101)])
def test_a_damaged_record_is_shown_or_one_error(
    command: str, every: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = _record() if command == "bench" else json.loads(json.dumps(made_up()))
    path, refused = tmp_path / "r.json", 0
    spoiled = [changed(record, place, value) for place in places(record) for value in WRONG]
    spoiled = [*spoiled[::every], *[lacking(record, place) for place in places(record)][::every]]
    for made in spoiled:
        path.write_text(json.dumps(made))
        status = main([command, "--show", str(path)])
        captured = capsys.readouterr()
        if status == 2:
            refused += 1
            assert captured.err.startswith("fastres: error: argument --show: ")
            assert captured.err.count("\n") == 1
            assert captured.out == ""
        else:
            assert (status in (0, 1), captured.err) == (True, "")
            assert captured.out
    assert len(spoiled) > refused > len(spoiled) // 10


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "1" * 10_000, '{"schema": 1}', "\xff", "[]", "null"])
def test_what_is_no_record_is_one_error(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.json").write_bytes(text.encode("latin-1"))
    for command in ("bench", "profile"):
        assert main([command, "--show", str(tmp_path / "r.json")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("fastres: error: argument --show: ")
        assert error.count("\n") == 1
        assert len(error) < 1000


def test_a_device_without_end_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("fastres.measure.results._LONGEST", 1000)
    assert main(["bench", "--show", "/dev/zero"]) == 2
    assert "not JSON: expected at most 1,000 characters" in capsys.readouterr().err


def test_escapes_in_a_record_never_reach_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads(json.dumps(_record()))
    for place in list(places(record)):
        if isinstance(text := around(record, place)[place[-1]], str) and place[-1] not in ("kind", "status"):
            around(record, place)[place[-1]] = text + ESCAPE
    for row in record["rows"][1:]:
        row |= {name: record["rows"][0][name] for name in ("name", "dtype", "device")}
        row |= {name: row[name] + ESCAPE for name in ("contender", "reason")}
    record["ceilings"] = {f"{name}{ESCAPE}": rates for name, rates in record["ceilings"].items()}
    (tmp_path / "r.json").write_text(json.dumps(record))
    assert main(["bench", "--show", str(tmp_path / "r.json")]) == 1
    shown = capsys.readouterr()
    assert r"\x1b]0;owned\x07\u202e" in shown.out
    (tmp_path / "r.json").write_text(json.dumps({**record, "kind": ESCAPE, "rows": ESCAPE}))
    for command in ("bench", "profile"):
        assert main([command, "--show", str(tmp_path / "r.json")]) == 2
    shown_too = capsys.readouterr()
    assert not set(ESCAPE[:1] + ESCAPE[-2:]) & set(shown.out + shown.err + shown_too.out + shown_too.err)


def test_a_record_without_escapes_is_shown_as_it_is() -> None:
    record = made_up()
    assert measuring.plain(record) == record
