"""Checkpoints: written whole or not at all, read without running code from them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from .. import files, safe_load
from .errors import TrainingError

FORMAT = 1
_KEYS = ("format", "recipe", "iteration", "epoch_sums", "model", "optimizer", "scaler", "random")


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` (tensors, numbers, strings and containers of them) to `path`, atomically.

    Raises TrainingError where it cannot be written; an older checkpoint at `path` is then intact.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    try:
        files.write(path, buffer.getbuffer())
    except OSError as error:
        kept = " (the one before it is intact)" if path.exists() else ""
        raise TrainingError(f"cannot write the checkpoint {path}: {error.strerror or error}{kept}") from error


def load(path: Path) -> dict[str, Any]:
    """The state in a checkpoint of `save`, on the CPU. Raises TrainingError, with the reason, for anything else."""
    try:
        state = safe_load.load(path)
    except OSError as error:
        raise TrainingError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    except safe_load.UnreadableError as error:
        raise TrainingError(f"{path} {error}") from error
    if not isinstance(state, dict) or any(key not in state for key in _KEYS):
        raise TrainingError(f"{path} is not a checkpoint of 'fastres train': expected the keys {', '.join(_KEYS)}")
    if state["format"] != FORMAT:
        raise TrainingError(f"{path} has format {state['format']!r}, expected {FORMAT}: another version wrote it")
    return state
