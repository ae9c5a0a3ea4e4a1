"""Captured models: on a GPU the real thing; everywhere, that folded weights are renewed in the memory a graph knows."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import image, small_pair
from tolerance import assert_right, assert_same_function, to_oracle
from torch import Tensor

import fastres
from fastres import folding
from fastres.backends import registry
from fastres.block import ConvBN
from fastres.folding import folded

capturing = importlib.import_module("fastres.capture")  # the attribute of this name is the function


class Folding(registry.Backend):
    """Convolves with plainly laid out folded weights, as the GPU backends do."""

    name = "folding"

    def unsupported(self, x: Tensor, layer: ConvBN) -> None:
        return None

    def prepare(self, x: Tensor, layer: ConvBN) -> Any:
        geometry = layer.geometry
        return folded(layer, x.dtype, (self.name, geometry), lambda weight, bias: (weight, bias, *geometry))

    def conv(self, x: Tensor, prepared: Any, relu: bool, residual: Any = None, overwrite: bool = False) -> Tensor:
        y = F.conv2d(x, *prepared) + (0 if residual is None else residual)
        return F.relu(y) if relu else y


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Stands in for CUDA's part: a graph that runs with the addresses it was recorded with, and what was recorded."""
    monkeypatch.setitem(registry._registered, "folding", Folding())
    shapes: list[torch.Size] = []

    def record(forward: Callable[[Tensor], Any], x: Tensor) -> Callable[[Tensor], Any]:
        shapes.append(x.shape)
        y = forward(x)
        own = folding._own.get()
        assert own is not None
        seen = [made for *_, made, _ in own._folds.values()]

        def replay(x: Tensor) -> Any:
            folds = capturing.OwnFolds()
            known = iter(seen)
            folds.get = lambda *_: next(known)  # type: ignore[method-assign]  # the graph's addresses, in their order
            with folds.used():
                return y.copy_(forward(x))

        return replay

    monkeypatch.setattr(capturing, "_record", record)
    return shapes


def check(captured: fastres.CapturedModel, theirs: torch.nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        assert_right(captured(x), theirs(x), to_oracle(theirs)(x.double()))


def test_follows_weights_in_place(records: list[torch.Size]) -> None:
    ours, theirs = small_pair()
    ours.backend = "folding"
    x = image()
    captured = fastres.capture(ours, x)
    check(captured, theirs, x)
    for model in (ours, theirs):
        with torch.no_grad():
            model.layer1[0].conv1.weight.mul_(1.5)
            model.bn1.running_mean.add_(0.1)
    check(captured, theirs, x)
    ours.load_state_dict(theirs.state_dict())
    check(captured, theirs, x)
    assert len(records) == 1


def test_moved_parameters_make_it_anew(records: list[torch.Size]) -> None:
    ours, theirs = small_pair()
    ours.backend = "folding"
    x = image()
    captured = fastres.capture(ours, x)
    for model in (ours, theirs):
        generator = torch.Generator().manual_seed(1)
        old = model.layer2[0].conv2.weight
        model.layer2[0].conv2.weight = torch.nn.Parameter(torch.randn(old.shape, generator=generator) * 0.05)
    check(captured, theirs, x)
    assert len(records) == 2


def test_shapes_are_bounded_and_the_latest_used_stay(records: list[torch.Size]) -> None:
    ours, theirs = small_pair()
    ours.backend = "folding"
    a, b, c = image(1, 3, 32, 32), image(2, 3, 32, 32), image(1, 3, 48, 40)
    captured = fastres.capture(ours, a, max_graphs=2)
    for x in (b, a, c, a):
        check(captured, theirs, x)
    assert len(records) == 3
    check(captured, theirs, b)
    assert len(records) == 4


def test_a_result_is_the_graphs_memory(records: list[torch.Size]) -> None:
    ours, _ = small_pair()
    captured = fastres.capture(ours, image())
    first = captured(image())
    assert captured(image()).data_ptr() == first.data_ptr()


def test_training_mode_is_refused(records: list[torch.Size]) -> None:
    ours, _ = small_pair()
    captured = fastres.capture(ours, image())
    ours.train()
    with pytest.raises(RuntimeError, match="training mode"):
        captured(image())


def test_bad_input_is_named() -> None:
    ours, _ = small_pair()
    with pytest.raises(ValueError, match="x: expected a CUDA tensor, got one on cpu"):
        fastres.capture(ours, image())
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got str"):
        fastres.capture("resnet", image())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"x: expected a torch\.Tensor, got list"):
        fastres.capture(ours, [1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_graphs: expected at least 1, got 0"):
        fastres.capture(ours, image(), max_graphs=0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu(dtype: torch.dtype) -> None:
    ours, theirs = small_pair()
    ours, theirs = ours.to("cuda", dtype), theirs.to("cuda", dtype)
    x = image(dtype=dtype).cuda()
    captured = fastres.capture(ours, x)
    assert_same_function(captured, theirs, x)
    with torch.no_grad():
        for model in (ours, theirs):
            model.layer1[0].conv1.weight.mul_(1.5)
    assert_same_function(captured, theirs, x)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        assert_same_function(captured, theirs, x)
