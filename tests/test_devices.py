"""Streams and devices: a launch goes to the current stream of its tensors' device, whichever device is current."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import image, small_pair
from tolerance import assert_right, to_oracle
from torch import Tensor, nn

import fastres
from fastres import native
from fastres.backends import cuda
from fastres.backends.plans import Work

GPU_BACKENDS = ("cudnn", "cuda", "triton")
DTYPE = torch.bfloat16


def expected(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """(PyTorch's own result in DTYPE, the oracle's)."""
    with torch.no_grad():
        return model(x.to(model.conv1.weight.device)), to_oracle(model)(to_oracle(x))  # type: ignore[attr-defined]


@pytest.fixture(params=GPU_BACKENDS)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    """(ours on a GPU backend, torchvision's), both still on the CPU."""
    ours, theirs = small_pair()
    ours.backend = request.param
    return ours.to(DTYPE).requires_grad_(False), theirs.to(DTYPE).requires_grad_(False)


# --- without a GPU: what the backend asks PyTorch for


def test_a_launch_is_queued_on_its_own_device_and_that_device_s_current_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[tuple[Any, int, int]] = []
    current = [0]

    @contextmanager
    def device(wanted: torch.device) -> Iterator[None]:
        before, current[0] = current[0], wanted.index
        yield
        current[0] = before

    def stream(of: torch.device) -> SimpleNamespace:
        return SimpleNamespace(cuda_stream=1000 + of.index)

    module = SimpleNamespace(launch=lambda plan, stream: launched.append((plan, stream, current[0])))
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    monkeypatch.setattr(native, "require", lambda: module)
    for index in (1, 0):
        result: Any = SimpleNamespace(device=torch.device("cuda", index))
        assert cuda.Cuda().run(Work(["first", "second"], [], [], result)) is result
    assert launched == [(plan, 1000 + i, i) for i in (1, 0) for plan in ("first", "second")]
    assert current == [0]


# --- on a GPU


@pytest.mark.gpu
def test_a_stream_that_is_not_the_default(pair: tuple[nn.Module, nn.Module]) -> None:
    """The input is written late on that stream: a kernel queued on another would read what was there before."""
    ours, theirs = (model.cuda() for model in pair)
    x, stale = image().to("cuda", DTYPE), torch.full((2, 3, 64, 64), float("nan"), device="cuda", dtype=DTYPE)
    ours(x)  # compiled and folded, so that nothing else takes time
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        stale.copy_(x)
        result = ours(stale)
    stream.synchronize()
    assert_right(result, *expected(theirs, x))


@pytest.mark.gpu
def test_two_streams_at_once(pair: tuple[nn.Module, nn.Module]) -> None:
    ours, _ = (model.cuda() for model in pair)
    images = [image().to("cuda", DTYPE) for _ in range(2)]
    alone = [ours(x).clone() for x in images]
    streams = [torch.cuda.Stream() for _ in images]
    for _ in range(5):
        results = []
        for x, stream in zip(images, streams, strict=True):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                results.append(ours(x))
        torch.cuda.synchronize()
        assert all(torch.equal(result, before) for result, before in zip(results, alone, strict=True))


@pytest.mark.gpu(2)
def test_a_device_that_is_not_the_current_one(pair: tuple[nn.Module, nn.Module]) -> None:
    ours, theirs = (model.to("cuda:1") for model in pair)
    x = image().to("cuda:1", DTYPE)
    with torch.cuda.device(0):
        result = ours(x)
        assert torch.cuda.current_device() == 0
    assert result.device == torch.device("cuda:1")
    assert_right(result, *expected(theirs, x))


@pytest.mark.gpu(2)
def test_two_devices_in_turn(pair: tuple[nn.Module, nn.Module]) -> None:
    """What is folded, planned and compiled on one device does not serve the other."""
    ours, theirs = pair
    x = image().to(DTYPE)
    plain = theirs.cuda()
    for name in ("cuda:0", "cuda:1", "cuda:0"):
        assert_right(ours.to(name)(x.to(name)), *expected(plain, x))
    both = nn.DataParallel(ours, [0, 1])
    images = torch.cat([x, x + 1]).cuda()
    assert_right(both(images), *expected(plain, images))


@pytest.mark.gpu(2)
def test_tensors_of_two_devices_are_refused(pair: tuple[nn.Module, nn.Module]) -> None:
    ours = pair[0].to("cuda:1")
    with pytest.raises(ValueError, match="x: expected device cuda:1, that of the weights, got cuda:0"):
        ours(image().to("cuda:0", DTYPE))
    assert fastres.explain(ours, image().to("cuda:1", DTYPE)).layers
