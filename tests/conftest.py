"""What every test shares: one thread, a fixed seed, no network, and a visible list of what was left out."""

from __future__ import annotations

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
from fastres.layer import ConvBN

torch.set_num_threads(1)  # the images are small: a second thread would mostly wait for the first
hypothesis.settings.register_profile("fastres", deadline=None, derandomize=True, database=None, print_blob=True)
hypothesis.settings.load_profile("fastres")

_NEEDS = {"gpu": "an NVIDIA GPU", "browser": "Chromium"}  # by marker
_left_out: dict[str, list[str]] = {}


def _lacking() -> list[str]:
    """Markers of what this machine has not got."""
    return [*(["gpu"] if not torch.cuda.is_available() else []), *(["browser"] if browser.find() is None else [])]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for marker in _lacking():
        lacking = [item for item in items if item.get_closest_marker(marker)]
        if lacking:
            _left_out[marker] = [item.nodeid for item in lacking]
            config.hook.pytest_deselected(items=lacking)
            items[:] = [item for item in items if not item.get_closest_marker(marker)]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for marker, left_out in _left_out.items():
        terminalreporter.section(f"{len(left_out)} tests not run: they need {_NEEDS[marker]}")
        for name, count in Counter(nodeid.partition("[")[0] for nodeid in left_out).items():
            terminalreporter.line(f"{name} ({count})")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_requested_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTRES_BACKEND", raising=False)


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
    layer = ConvBN(torch.ones(8, 8, 1, 1), *[None] * 3, *[torch.ones(8)] * 2, None, 0.0, *[(1, 1), (0, 0), (1, 1)], 1)
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
