"""The folder of a run, in which one process at a time writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .. import files
from .errors import TrainingError

_LOCK = ".lock"
CHECKPOINT, LOG = "checkpoint.pt", "log.csv"


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Creates `folder` if need be and keeps every other process from training into it until the block ends.

    Raises:
        TrainingError: if another process trains into it, or it cannot be written to. A process that was killed does
            not count: its claim ended with it.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(files.locked(folder / _LOCK, 0))
        except TimeoutError:
            raise TrainingError(
                f"another process is training into {folder}: wait until it ends, or choose another folder"
            ) from None
        except OSError as error:
            raise TrainingError(f"cannot write to the folder {folder}: {error.strerror or error}") from error
        files.remove_leftovers(folder / CHECKPOINT)
        yield
