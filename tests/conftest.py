"""What every test shares: one thread, a fixed seed, no network, and a visible list of what was left out."""

from __future__ import annotations

import os
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import browser
import hypothesis
import pytest
import torch

import fastres
from fastres.backends import registry
from fastres.block import ConvBN, Geometry

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # or the processes of tests would ignore it too
torch.set_num_threads(1)  # the images are small: a second thread would mostly wait for the first
hypothesis.settings.register_profile("fastres", deadline=None, derandomize=True, database=None, print_blob=True)
hypothesis.settings.load_profile("fastres")

MOST_PROCESSES = 8  # of about 2 GiB each
_left_out: dict[str, list[str]] = {}  # by why


def pytest_xdist_auto_num_workers() -> int:
    """A process per core that this one may use, each of one thread; on one core no process but this."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_PROCESSES) if cores > 1 else 0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sweep", action="store_true", help="also run what is marked `sweep`: minutes of compilation")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    why = {item: _why_left_out(item) for item in items}
    for item, reason in why.items():
        if reason:
            _left_out.setdefault(reason, []).append(item.nodeid)
    config.hook.pytest_deselected(items=[item for item, reason in why.items() if reason])
    items[:] = [item for item, reason in why.items() if not reason]


def _why_left_out(item: pytest.Item) -> str:
    """Why a test does not run here, or ""."""
    gpu = item.get_closest_marker("gpu")
    wanted = (gpu.args or (1,))[0] if gpu else 0
    if torch.cuda.device_count() < wanted:
        return "they need an NVIDIA GPU" if wanted == 1 else f"they need {wanted} NVIDIA GPUs"
    if item.get_closest_marker("browser") and browser.find() is None:
        return "they need Chromium"
    if item.get_closest_marker("sweep") and not item.config.getoption("--sweep"):
        return "they take minutes: run with --sweep"
    return ""


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for why, nodeids in _left_out.items():
        terminalreporter.section(f"{len(nodeids)} tests not run: {why}")
        for name, count in Counter(nodeid.partition("[")[0] for nodeid in nodeids).items():
            terminalreporter.line(f"{name} ({count})")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_requested_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTRES_BACKEND", raising=False)


@pytest.fixture(autouse=True)
def _not_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that a test starts is not one of pytest-xdist's, as pytest-benchmark would take it to be."""
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that would download fails, in this process at least."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


def _parameters() -> list[Any]:
    """Every backend, those not of the CPU marked `gpu`; without the emulator, which is slow and has tests/native."""
    layer = ConvBN(torch.ones(8, 8, 1, 1), *[None] * 3, *[torch.ones(8)] * 2, None, 0.0, Geometry())
    parameters: list[Any] = []
    for name, reason in fastres.backends().items():
        if name.startswith("emulator"):
            continue
        on_cpu = reason is None and registry.get(name).unsupported(torch.ones(1, 8, 1, 1), layer) is None
        parameters.append(name if on_cpu else pytest.param(name, marks=pytest.mark.gpu))
    return parameters


@pytest.fixture(params=_parameters())
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every backend, in force for the test; where it needs a GPU, tensors are made there unless a test says where."""
    on_gpu = request.node.get_closest_marker("gpu") is not None
    with torch.device("cuda") if on_gpu else nullcontext(), fastres.use_backend(request.param):
        yield request.param
