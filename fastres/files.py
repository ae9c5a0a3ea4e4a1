"""Files that survive a kill, a full disk and a second writer: replaced whole, synced to disk, locked when shared."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_UNSUPPORTED = (errno.EINVAL, errno.EBADF, errno.ENOTSUP)  # what file systems say that cannot sync a folder


def write(path: Path, content: str | bytes | memoryview) -> None:
    """Replaces the file at `path` by `content`, strings in UTF-8.

    Whatever happens (an error, a signal, a kill, a power cut), `path` afterwards holds its old content or all of the
    new one. Once this returns, the new content is on disk.

    Raises:
        OSError: if the content cannot be written. The old content is then intact.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path, suffix: str = ".tmp") -> Iterator[Path]:
    """Yields a new file next to `path`, for others to write to, and puts it in `path`'s place if no exception leaves.

    A link at `path` stays, and what it leads to is replaced. What is no ordinary file, such as /dev/stdout, is yielded
    itself. `suffix` ends the new file's name, for writers that go by it.

    Raises:
        OSError: if the file cannot be created, synced to disk or renamed. The old file is then intact.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        yield target
        return
    temporary = target.with_name(f"{_prefix(target)}{secrets.token_hex(8)}{suffix}")
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        yield temporary
        sync(temporary)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(target.parent)


def sync(path: Path, flags: int = os.O_RDWR) -> None:
    """Returns once the content of the file at `path` is on disk. Raises OSError if that fails."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(path: Path) -> None:
    """Removes what killed processes left of their attempts to replace `path`. Call it only while no one else writes."""
    target = Path(os.path.realpath(path))
    with contextlib.suppress(OSError):
        for entry in os.scandir(target.parent):
            if entry.name.startswith(_prefix(target)):
                os.unlink(entry.path)


@contextmanager
def locked(path: Path, seconds: float) -> Iterator[None]:
    """Holds the lock file `path`, created if missing, against other processes and threads.

    The operating system lets go of it when the process ends, however it ends, so the file that stays behind blocks
    nobody.

    Raises:
        TimeoutError: if another holds it for longer than `seconds`.
        OSError: if the file cannot be created or locked.
    """
    from filelock import FileLock, Timeout  # here, as few processes need it

    lock = FileLock(os.path.realpath(path), mode=0o666)
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        raise TimeoutError(errno.EAGAIN, "another process holds the lock", str(path)) from None
    try:
        yield
    finally:
        lock.release()


def _prefix(target: Path) -> str:
    return f".{target.name[:40]}."  # short, as a name may have 255 bytes


def _sync_folder(folder: Path) -> None:
    """Makes a renaming in `folder` last, where the system can."""
    if os.name == "nt":
        return
    try:
        sync(folder, os.O_RDONLY)
    except PermissionError:  # a folder that may be written to, but not read
        return
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
