"""`optimize` on the ResNets of transformers and segmentation-models-pytorch, built as `stand_ins`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import stand_ins
import timm
import torch
from models import image, randomize
from steps import assert_same_step
from test_optimize_truth import fused_layers, optimized, promised
from test_pixels import Normalized, pixels
from tolerance import assert_same_function
from torch import nn
from torchvision.models import resnet as tv

stand_ins.install()
BLOCKS = [stand_ins.ResNetBasicLayer, stand_ins.ResNetBottleNeckLayer]


def convolutions(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}


@pytest.mark.parametrize("block", BLOCKS)
def test_transformers(block: Any) -> None:
    plain = randomize(stand_ins.HuggingFace(block)).eval()
    fast, report = optimized(plain)
    assert (report.left, report.limits) == ((), ())
    assert {"embedder", "encoder.0", "encoder.1.layers.1"} <= {*report.converted}
    assert list(fast.state_dict()) == list(plain.state_dict())
    assert_same_function(fast, plain, image())
    assert fused_layers(fast, image()) == convolutions(plain) == promised(fast, report)
    assert_same_function(copy.deepcopy(fast), plain, image())


@pytest.mark.parametrize("block", BLOCKS)
def test_transformers_trains(block: Any) -> None:
    plain = randomize(stand_ins.HuggingFace(block))
    fast, _ = optimized(copy.deepcopy(plain))
    assert_same_step(fast, plain, image())
    assert_same_function(fast.float().eval(), plain.float().eval(), image())


def test_transformers_of_8_bit_pixels() -> None:
    plain = randomize(stand_ins.HuggingFace()).eval()
    fast, _ = optimized(plain, input="uint8")
    assert_same_function(fast, Normalized(plain), pixels(1, 3, 64, 64))


def test_transformers_with_another_activation_is_left() -> None:
    plain = randomize(stand_ins.HuggingFace(act=nn.GELU)).eval()
    fast, report = optimized(plain)
    left = dict(report.left)
    assert left["embedder"] == "nothing in it can fuse: GELU is not exactly ReLU"
    assert "encoder.0.layers.0" in report.converted, "transformers passes the activation to a block's end only"
    assert dict(report.limits)["encoder.0.layers.0.layer.2.convolution"] == "GELU is not exactly ReLU"
    assert_same_function(fast, plain, image())
    assert fused_layers(fast, image()) == promised(fast, report)


@pytest.mark.parametrize("name", ["layer", "layer.1", "shortcut", "layer.2.activation", "layer.0.normalization"])
def test_a_hook_inside_a_transformers_block_sees_its_value(name: str) -> None:
    plain = randomize(stand_ins.HuggingFace()).eval()
    fast, _ = optimized(plain)
    for model in (fast, plain):
        block = model.encoder[0].layers[0]
        block.get_submodule(name).register_forward_hook(lambda _, x, y: y * 2)
    assert_same_function(fast, plain, image())


def test_a_hook_that_is_there_before_and_removed_later() -> None:
    plain = randomize(stand_ins.HuggingFace()).eval()
    plain.encoder[0].layers[0].shortcut.register_forward_hook(lambda _, x, y: y * 2)
    fast, report = optimized(plain)
    assert dict(report.limits)["encoder.0.layers.0.shortcut.convolution"] == "a hook is registered inside its block"
    assert_same_function(fast, plain, image())
    assert fused_layers(fast, image()) == promised(fast, report)
    for model in (fast, plain):
        model.encoder[0].layers[0].shortcut._forward_hooks.clear()
    assert_same_function(fast, plain, image())
    assert fused_layers(fast, image()) == convolutions(plain)


def test_a_transformers_shortcut_that_is_replaced_later() -> None:
    plain = randomize(stand_ins.HuggingFace()).eval()
    fast, _ = optimized(plain)
    assert_same_function(fast, plain, image())
    for model in (fast, plain):
        torch.manual_seed(4)
        model.encoder[0].layers[0].shortcut.convolution = nn.Conv2d(16, 64, 1, bias=False)
    assert_same_function(fast, plain, image())


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_segmentation_models(depth: int) -> None:
    plain = stand_ins.ResNetEncoder(depth, block=tv.BasicBlock, layers=[1, 1, 1, 1])
    randomize(plain).eval()
    fast, report = optimized(plain)
    assert (report.left, report.limits) == ((), ())
    assert_same_function(fast, plain, image())
    run = {"conv1", *(n for n in convolutions(plain) if n.startswith(tuple(f"layer{k}" for k in range(1, depth))))}
    assert fused_layers(fast, image()) == run
    eight_bits, _ = optimized(plain, input="uint8")
    assert_same_function(eight_bits, Normalized(plain), pixels(1, 3, 64, 64))


def test_segmentation_models_train() -> None:
    class Summed(nn.Module):
        def __init__(self, encoder: nn.Module) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([feature.flatten(1) for feature in self.encoder(x)], 1)

    plain = Summed(randomize(stand_ins.ResNetEncoder(block=tv.BasicBlock, layers=[1, 1, 1, 1])))
    fast, _ = optimized(copy.deepcopy(plain))
    assert_same_step(fast, plain, image())


@pytest.mark.parametrize(
    "build",
    [
        stand_ins.HuggingFace,
        lambda: timm.create_model("resnet10t"),
        lambda: timm.create_model("resnet10t", features_only=True),
        lambda: timm.create_model("resnet10t", features_only=True, feature_cls="getter"),
        lambda: stand_ins.ResNetEncoder(block=tv.BasicBlock, layers=[1, 1, 1, 1]),
    ],
    ids=["transformers", "timm", "timm's features", "timm's getter", "segmentation models"],
)
def test_they_are_compiled_as_one_graph(build: Callable[[], nn.Module]) -> None:
    plain = randomize(build()).eval()
    fast, _ = optimized(plain)
    assert_same_function(torch.compile(fast, backend="eager", fullgraph=True), plain, image())
