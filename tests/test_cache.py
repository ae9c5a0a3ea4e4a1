"""The files of a cache folder: nobody's records are lost, and a user without a home folder can work."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from models import image, small_pair
from tolerance import assert_same_function

import fastres
from fastres import cache, cli, files, tuning
from fastres.backends import ranking, verification

WRITER = """
import sys, time
from pathlib import Path
import torch
from fastres import tuning
from fastres.backends import ranking, verification

folder, me = Path(sys.argv[1]), sys.argv[2]
(folder / f"ready {me}").touch()
while not (folder / "go").exists():
    time.sleep(0.001)
for i in range(15):
    problem = tuning.Problem("conv", i, 64, 64, 9, int(me))
    tuning.record({problem: tuning.Tile(64, 64, 64, 4, 3)}, "float16", 90)
    ranking.record({f"problem {i} of {me}": "triton"}, "float16", torch.device("cpu"))
    verification.add(verification.Record("triton", f"sm_{i}", me))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("FASTRES_CACHE", str(tmp_path / "cache"))
    forget()
    yield tmp_path / "cache"
    monkeypatch.undo()
    forget()


def forget() -> None:
    tuning.refresh()
    ranking.refresh()
    verification.records.cache_clear()


def test_processes_that_share_a_folder_lose_no_record(folder: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(fastres.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": path}
    # Away from the sources, which Python would look at first.
    writers = [subprocess.Popen([*command, str(me)], cwd=tmp_path, env=environment) for me in (1, 2)]
    while not all((tmp_path / f"ready {me}").exists() for me in (1, 2)):
        assert all(writer.poll() is None for writer in writers)
        time.sleep(0.01)
    (tmp_path / "go").touch()
    assert [writer.wait() for writer in writers] == [0, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(verification._local()) == len(ranking._table()["cpu"]["float16"]) == 30
    assert len(tuning._tables()[0]["sm_90"]["float16"]) == 30
    assert {file.name for file in folder.iterdir()} == {".lock", "ranking.json", "tuning.json", "verified.json"}


def test_what_was_read_before_hides_nothing_written_since(folder: Path) -> None:
    """Each table is read once a process; a record of another process is merged with all the same."""
    cpu = torch.device("cpu")
    path = ranking.record({"ours": "cuda"}, "float16", cpu)
    assert ranking._table()["cpu"]["float16"] == {"ours": "cuda"}
    content = json.loads(path.read_text())
    content["fastest"]["cpu"]["float16"]["theirs"] = "triton"
    path.write_text(json.dumps(content))
    ranking.record({"ours": "cudnn"}, "float16", cpu)
    assert ranking._table()["cpu"]["float16"] == {"ours": "cudnn", "theirs": "triton"}


def test_a_lock_that_is_never_given_up_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_LOCK_SECONDS", 0)
    verification.add(verification.Record("triton", "sm_90", "v1"))
    before = verification.local_path().read_bytes()
    with files.locked(folder / ".lock", 0), pytest.raises(OSError, match="another process holds the lock"):
        verification.add(verification.Record("triton", "sm_80", "v1"))
    assert verification.local_path().read_bytes() == before


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A user whom the password file does not know, with no HOME."""
    for name in ("FASTRES_CACHE", "XDG_CACHE_HOME", "HOME", "USER", "LOGNAME", "USERNAME", "LNAME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    forget()
    yield
    monkeypatch.undo()
    forget()


def test_a_user_without_a_home_infers_and_trains(nobody: None) -> None:
    with pytest.raises(RuntimeError):
        Path.home()
    (ours, theirs), x = small_pair(), image()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_function(ours, theirs, x)
        assert fastres.backends()
        ours.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())


def test_a_user_without_a_home_is_told_what_to_set(nobody: None, capsys: pytest.CaptureFixture[str]) -> None:
    for add in (
        lambda: verification.add(verification.Record("triton", "sm_90", "v1")),
        lambda: ranking.record({"problem": "triton"}, "float16", torch.device("cpu")),
        lambda: tuning.record({}, "float16", 90),
    ):
        with pytest.raises(FileNotFoundError, match="no home directory to keep it in; set FASTRES_CACHE"):
            add()
    assert cli.main(["tune", "resnet18", "--device", "cpu"]) == 1
    assert capsys.readouterr().err.startswith("fastres: error: cannot keep what is measured: ")
    assert cli.main(["info"]) == 0


def test_escapes_in_a_record_do_not_reach_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = verification.Record("triton", "\x1b]0;owned\x07", "v1")
    folder.mkdir()
    (folder / "verified.json").write_text(json.dumps([record._asdict()]))
    with pytest.warns(UserWarning, match="a control character in a record") as seen:
        assert verification.records() == verification._packaged()
    assert not any("\x1b" in str(warning.message) for warning in seen)
    assert cli.main(["info"]) == 0
    assert "\x1b" not in capsys.readouterr().out
