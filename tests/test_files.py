"""Writing that loses nothing: under a full disk, Ctrl-C, a kill and a second process, old content or all of the new."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import fastres
from fastres import files

OLD, NEW = "old", "new" * 50_000
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "kept").write_text(OLD)
    return tmp_path / "kept"


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["os.open", "pathlib.Path.write_bytes", "os.fsync", "os.replace"])
def test_a_write_that_fails_leaves_the_old_file(
    call: str, error: BaseException, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(call, fail)
        with pytest.raises(type(error)):
            files.write(path, NEW)
    assert path.read_text() == OLD
    assert os.listdir(path.parent) == ["kept"]


@contextmanager
def at_most(count: int) -> Iterator[None]:
    """Within it, a file that grows past `count` bytes is cut there, as by a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_write_that_is_cut_short_leaves_the_old_file(path: Path) -> None:
    with at_most(1000), pytest.raises(OSError, match="File too large"):
        files.write(path, NEW)
    assert path.read_text() == OLD
    assert os.listdir(path.parent) == ["kept"]


def test_file_and_folder_are_synced_in_this_order(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content before its new name, the name before the return."""
    seen: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        status = os.fstat(descriptor)
        assert stat.S_ISDIR(status.st_mode) or status.st_size == len(NEW)
        seen.append("folder" if stat.S_ISDIR(status.st_mode) else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *names: (seen.append("renamed"), replace(*names)))
    files.write(path, NEW)
    assert seen == ["file", "renamed", "folder"]
    assert path.read_text() == NEW


@pytest.mark.parametrize("name", ["new", "é" * 127, ".hidden"])
def test_a_new_file_has_the_permissions_of_any_other(name: str, tmp_path: Path) -> None:
    files.write(tmp_path / name, b"\0\xff")
    (tmp_path / "usual").touch()
    assert (tmp_path / name).read_bytes() == b"\0\xff"
    assert (tmp_path / name).stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert len(os.listdir(tmp_path)) == 2


def test_a_link_stays_and_a_device_is_written_to(path: Path) -> None:
    link = path.parent / "link"
    link.symlink_to("kept")
    files.write(link, NEW)
    assert link.is_symlink()
    assert path.read_text() == NEW
    (path.parent / "null").symlink_to(os.devnull)
    files.write(path.parent / "null", NEW)
    assert not os.path.isfile(os.devnull)


def test_what_a_kill_left_is_removed(path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from fastres import files\n"
        "with files.replacing(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), 9)"
    )
    root = str(Path(fastres.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=path.parent, env=environment)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == OLD
    assert len(os.listdir(path.parent)) == 2
    files.remove_leftovers(path)
    assert os.listdir(path.parent) == ["kept"]


def test_a_lock_is_held_once_and_goes_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from fastres import files\n"
        "with files.locked(Path(sys.argv[1]), 0): print('held', flush=True); time.sleep(600)"
    )
    root = str(Path(fastres.__file__).parents[1])
    command = [sys.executable, "-c", code, str(path)]
    environment = {**os.environ, "PYTHONPATH": root}
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path, env=environment) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(TimeoutError, match="another process holds the lock"), files.locked(path, 0):
            pass
        other.kill()
    with files.locked(path, 0), pytest.raises(TimeoutError), files.locked(path, 0):  # nor twice in one process
        pass
