"""Memory: an evaluation forward needs no more than torchvision's, and leaves nothing behind."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from models import image, pair
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import fastres


def peak(call: Callable[[], Tensor]) -> tuple[int, int]:
    """(most bytes live at once, bytes live at the end), counted from the start, by the allocator's own events."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = call()
        del result
        gc.collect()
    live = highest = 0
    for event in profiled.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]" and event.device_type() == torch.profiler.DeviceType.CPU:
            live += event.nbytes()
            highest = max(highest, live)
    return highest, live


def evaluate(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.inference_mode():
            return model(x)

    return call


def test_the_meter() -> None:
    """Three blocks of a mebibyte, two of them at once."""

    def call() -> Tensor:
        a = torch.empty(1 << 18)
        b = torch.empty(1 << 18)
        del a
        return b + 1

    highest, live = peak(call)
    assert 2 << 20 <= highest < 2.1 * (1 << 20)
    assert abs(live) < 1 << 16


@pytest.mark.parametrize("name", ["ResNet18", "ResNet50"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_peak_of_an_evaluation(name: str, memory_format: torch.memory_format) -> None:
    ours, theirs = pair(name)
    theirs.to(memory_format=memory_format)
    x = image(4, 3, 128, 128).contiguous(memory_format=memory_format)
    needed = {}
    for model in (ours, theirs):
        call = evaluate(model, x)
        call()  # once warm
        needed[model], left = peak(call)
        assert abs(left) < 1 << 16, "nothing is left behind"
    assert needed[theirs] > 4 * 64 * 64 * 64 * 4, "the stem's output at least"
    assert needed[ours] <= needed[theirs]


def test_nothing_is_kept_for_a_backward_that_will_not_come() -> None:
    ours, theirs = pair("ResNet18")
    saved: dict[nn.Module, int] = {}
    for model in (ours, theirs):
        sizes: list[int] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            with torch.no_grad():
                model(image())
            assert not sizes
            model.train()(image())
        saved[model] = sum(sizes)
    assert 0 < saved[ours] <= saved[theirs]


def test_folded_weights_are_made_once() -> None:
    """A second image size shares them; a second dtype does not."""
    ours, _ = pair("ResNet18")
    weights = sum(p.nbytes for p in ours.parameters())
    fastres.refresh()
    _, first = peak(evaluate(ours, image(1, 3, 64, 64)))
    assert first < 1.3 * weights
    _, second = peak(evaluate(ours, image(1, 3, 96, 96)))
    assert second < 0.1 * weights
