"""Contenders against each other on one workload: parity first, then alternating rounds, then memory."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import contenders, parity
from .parity import Parity, ParityError, check
from .processes import ContenderError, RemoteSession, one_line
from .session import Session
from .timing import ROUNDS, alternate
from .workload import Material, Workload, prepare

PEER_FACTOR = 8.0
OK, SKIPPED, FAILED = "ok", "skipped", "failed"


@dataclass
class Row:
    """What became of one contender. Seconds per forward in `samples`, one a round; they exist only after parity."""

    workload: Workload
    contender: str
    status: str = OK
    reason: str = ""
    parity: Parity | None = None
    calls: int = 0
    samples: list[float] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """What `compare` tells as it goes: `step` what it does now, `sample` that one more sample was taken."""

    step: Callable[[str], None] = lambda text: None
    sample: Callable[[], None] = lambda: None


def compare(
    workload: Workload,
    names: Sequence[str],
    rounds: int = ROUNDS,
    threads: int | None = None,
    until: float = math.inf,
    progress: Progress = Progress(),
) -> list[Row]:
    """A row for each of `names`, in order.

    On the CPU every contender has a process of its own with `threads` threads (PyTorch's number by default), so that
    none meets another's thread pools, allocator or compiler settings; on a GPU all share this process. Past `until` (of
    `time.monotonic`) there are no more rounds than `timing.FEWEST_ROUNDS`. A contender that
    cannot run here is skipped, one that raises, dies or misses parity has failed; both with the reason, neither with
    a time.

    Raises what PyTorch's own forward of the workload raises.
    """
    rows = [Row(workload, name) for name in names]
    for row in rows:
        if reason := contenders.get(row.contender).unavailable(workload):
            row.status, row.reason = SKIPPED, reason
    progress.step("weights, images and the oracle")
    material = prepare(workload)
    with contextlib.ExitStack() as stack:
        sessions: dict[str, Session | RemoteSession] = {}
        for row, session in _open(stack, rows, material, threads or torch.get_num_threads()):
            with _failure_of(row):
                progress.step(f"{row.contender}: building")
                if isinstance(session, RemoteSession):
                    session.started()
                row.parity = check(
                    session.output(), material.expected64, material.baseline, error_factor(row.contender)
                )
                progress.step(f"{row.contender}: warming up")
                row.calls = session.warm_up()
                sessions[row.contender] = session
        progress.step("taking turns")
        _take_turns(rows, sessions, rounds, until, progress.sample)
        progress.step("memory")
        for row in rows:
            if row.status == OK:
                with _failure_of(row):
                    row.memory = sessions[row.contender].memory()
    return rows


def error_factor(contender: str) -> float:
    """fastres is held to the rule; of a peer it is asked whether it computes the same function in this dtype.

    How accurately is the peer's own affair, and in the record.
    """
    return parity.FACTOR if contender.startswith(contenders.FASTRES) else PEER_FACTOR


def _open(
    stack: contextlib.ExitStack, rows: list[Row], material: Material, threads: int
) -> Iterator[tuple[Row, Session | RemoteSession]]:
    """A session for each row that can run. Processes start all at once: importing takes them longer than the rest."""
    runnable = [row for row in rows if row.status == OK]
    if material.workload.device.type == "cuda":
        for row in runnable:
            with _failure_of(row):
                session = Session(row.contender, material)
                stack.callback(session.close)
                yield row, session
        return
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fastres-"))
    path = Path(folder) / "material.pt"
    material.save(path)
    remotes = []
    for row in runnable:
        remote = RemoteSession(row.contender, path, threads)
        stack.callback(remote.close)
        remotes.append((row, remote))
    yield from remotes


def _take_turns(
    rows: list[Row],
    sessions: dict[str, Session | RemoteSession],
    rounds: int,
    until: float,
    sampled: Callable[[], None],
) -> None:
    by_name = {row.contender: row for row in rows if row.status == OK}

    def sampler(name: str) -> Callable[[], float]:
        def sample() -> float:
            row = by_name[name]
            if row.status == OK:
                with _failure_of(row):
                    return sessions[name].sample()
            return float("nan")

        return sample

    samples = alternate({name: sampler(name) for name in by_name}, rounds, until, sampled)
    for name, row in by_name.items():
        if row.status == OK:
            row.samples = samples[name]


@contextlib.contextmanager
def _failure_of(row: Row) -> Iterator[None]:
    """Turns an exception in the block into the row's failure."""
    try:
        yield
    except ParityError as error:
        row.status, row.reason = FAILED, f"wrong result, so no time: {error}"
    except ContenderError as error:
        row.status, row.reason = FAILED, str(error)
    except Exception as error:  # whatever a contender may raise, in this process
        row.status, row.reason = FAILED, one_line(error)
