"""The files that fastres keeps on this machine: verifications, tuned tiles, the ranking of backends."""

from __future__ import annotations

import os
from pathlib import Path

from . import files


def path(name: str) -> Path:
    """The file `name` in FASTRES_CACHE, else in `fastres` of XDG_CACHE_HOME, else in ~/.cache/fastres."""
    if folder := os.environ.get("FASTRES_CACHE"):
        return Path(folder) / name
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastres" / name


def replace(file: Path, text: str) -> None:
    """Makes `text` the content of `file`, whole: a reader sees the old or the new one. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write(file, text)
