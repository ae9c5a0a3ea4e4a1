"""A session in a process of its own, driven over a pipe.

The parent sends the name of a `Session` method and waits for its result, so one process works at a time. A child ends
when its pipe closes, whatever it is doing: no way for the parent to die leaves one behind. Children have a process
group of their own: Ctrl-C reaches the parent alone, which closes them with everything that they started.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

DEADLINE_SECONDS = 900.0  # for one step; compiling with tuning takes minutes

# The child imports what the parent would, wherever it was started.
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from fastres.measure import processes; processes.child(int(sys.argv[2]))"
)


class ContenderError(RuntimeError):
    """A contender failed: it raised, its process ended, or it took longer than the deadline."""


class RemoteSession:
    """`Session(contender, Material.load(material))` in a new process with `threads` threads.

    Every method raises ContenderError where the other side fails; what is left then is `close`.
    """

    def __init__(self, contender: str, material: Path, threads: int, deadline: float = DEADLINE_SECONDS) -> None:
        self.deadline = deadline
        self.errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  closed by close()
        self.connection, theirs = Pipe()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, json.dumps(sys.path), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self.errors,
                stderr=self.errors,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env={**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": str(threads)},
            )
        finally:
            theirs.close()
        self._send("start", contender, str(material), threads)

    def started(self) -> None:
        """Waits until the contender is built."""
        self._receive()

    def output(self) -> Any:
        import torch

        values, dtype = self._call("output")
        return torch.from_numpy(values).to(getattr(torch, dtype))

    def warm_up(self) -> int:
        return self._call("warm_up")

    def sample(self) -> float:
        return self._call("sample")

    def memory(self) -> dict[str, Any]:
        return self._call("memory")

    def close(self) -> None:
        """Ends the process and all of its group. Safe to call twice."""
        if self.errors.closed:
            return
        self.connection.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.errors.close()

    def _call(self, method: str) -> Any:
        self._send(method)
        return self._receive()

    def _send(self, *command: Any) -> None:
        try:
            self.connection.send(command)
        except OSError:
            raise ContenderError(self._epitaph()) from None

    def _receive(self) -> Any:
        try:
            if not self.connection.poll(self.deadline):
                raise ContenderError(f"no answer within {self.deadline:g} s")
            failure, value = self.connection.recv()
        except (EOFError, OSError):
            raise ContenderError(self._epitaph()) from None
        if failure:
            raise ContenderError(failure)
        return value

    def _epitaph(self) -> str:
        """How the process ended, and its last words."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        status = self.process.returncode
        if status is None:
            return "its process closed the pipe"
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors.read().splitlines() if line.strip()]
        return f"its process {how}" + (f": {lines[-1]}" if lines else "")


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


def child(descriptor: int) -> None:
    """The other side: answers commands from the pipe with (failure or None, value) until it closes."""
    connection = Connection(descriptor)
    commands: queue.Queue[tuple[Any, ...]] = queue.Queue()
    threading.Thread(target=_listen, args=(connection, commands), daemon=True).start()
    session: Any = None
    while True:
        method, *arguments = commands.get()
        try:
            value: Any = None
            if method == "start":
                session = _start(*arguments)
            else:
                value = getattr(session, method)()
            if method == "output":  # by value: PyTorch would pass it through shared memory
                value = value.double().numpy(), str(value.dtype).removeprefix("torch.")
            connection.send((None, value))
        except Exception as error:
            traceback.print_exc()
            connection.send((one_line(error), None))


def _listen(connection: Connection, commands: queue.Queue[tuple[Any, ...]]) -> None:
    try:
        while True:
            commands.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)  # the parent has gone; nothing here is worth finishing


def _start(contender: str, material: str, threads: int) -> Any:
    import torch

    from .session import Session
    from .workload import Material

    torch.set_num_threads(threads)
    return Session(contender, Material.load(Path(material)))
