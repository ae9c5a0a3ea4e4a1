"""The files that fastres keeps on this machine: verifications, tuned tiles, the ranking of backends."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import files

_LOCK_SECONDS = 60  # far longer than a change takes


def path(name: str) -> Path:
    """The file `name` in FASTRES_CACHE, else in `fastres` of XDG_CACHE_HOME, else in ~/.cache/fastres.

    Raises:
        FileNotFoundError: if no variable is set and the user has no home directory, as in some containers.
    """
    if folder := os.environ.get("FASTRES_CACHE"):
        return Path(folder) / name
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "fastres" / name
    home = os.path.expanduser("~")
    if not os.path.isabs(home):  # "~" itself: no HOME, and no entry in the password file
        raise FileNotFoundError(errno.ENOENT, "no home directory to keep it in; set FASTRES_CACHE to a folder", name)
    return Path(home, ".cache", "fastres", name)


def read(name: str) -> str | None:
    """The text of the file `name`, or None if there is none.

    Raises:
        OSError: if the file is there and cannot be read.
        UnicodeDecodeError: if it is not UTF-8.
    """
    try:
        return path(name).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None


@contextmanager
def changing(name: str) -> Iterator[Path]:
    """Yields the path of `name`, in a folder that exists, and keeps other processes from changing it meanwhile.

    Read, merge and `files.write` within it, and nobody's records are lost.

    Raises:
        OSError: if the folder cannot be made or written to, or another process holds the lock for a minute.
    """
    file = path(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    with files.locked(file.parent / ".lock", _LOCK_SECONDS):
        files.remove_leftovers(file)
        yield file
