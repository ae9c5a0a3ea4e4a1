"""The paper's CIFAR networks: their size, numbers and gradients, against twins of torch.nn modules."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import twins
from models import image, randomize
from steps import assert_same_step
from tolerance import assert_same_function
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fastres
from fastres.models import cifar

# Table 6 of the paper: millions of parameters, to two figures (three for 1202).
TABLE_6 = [("20", 0.27), ("32", 0.46), ("44", 0.66), ("56", 0.85), ("110", 1.7), ("1202", 19.4)]
OPTIONS = ["A", "B", "C", "plain"]


def pair(option: str, depth: int = 14, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    """(ours, the twin), in evaluation mode, with equal randomised parameters of their own."""
    if option == "plain":
        ours: nn.Module = cifar.PlainNet(depth, **kwargs)
    else:
        ours = cifar.ResNet(depth, shortcut=option, **kwargs)
    classes, channels = kwargs.get("num_classes", 10), kwargs.get("in_channels", 3)
    twin = randomize(twins.Cifar((depth - 2) // 6, option, classes, channels)).eval()
    ours.load_state_dict(twin.state_dict())
    return ours.eval(), twin


@pytest.mark.parametrize(("depth", "millions"), TABLE_6)
def test_parameters_are_the_papers(depth: str, millions: float) -> None:
    with torch.device("meta"):
        model = getattr(cifar, f"ResNet{depth}")()
    digits = 1 if millions > 1 else 2
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, digits) == millions


@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_a_plain_net_has_the_same_parameters(depth: int) -> None:
    with torch.device("meta"):
        plain, residual = getattr(cifar, f"PlainNet{depth}")(), getattr(cifar, f"ResNet{depth}")()
    assert [(k, v.shape) for k, v in plain.state_dict().items()] == [
        (k, v.shape) for k, v in residual.state_dict().items()
    ]


@pytest.mark.parametrize("kind", ["ResNet", "PlainNet"])
@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_weighted_layers(kind: str, depth: int) -> None:
    """Convolutions and the classifier: what the paper counts."""
    with torch.device("meta"):
        model = getattr(cifar, f"{kind}{depth}")()
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == depth
    assert isinstance(model, getattr(cifar, kind))


def test_multiply_adds() -> None:
    """By hand for ResNet-20: 3x3 convolutions cost alike, but for the first and, half as much, the two that widen."""
    with torch.device("meta"), FlopCounterMode(display=False) as counted:
        cifar.ResNet20().train()(torch.empty(2, 3, 32, 32))
    whole = 32 * 32 * 16 * 16 * 9
    expected = 32 * 32 * 3 * 16 * 9 + 16 * whole + 2 * whole // 2 + 64 * 10
    assert counted.get_total_flops() == 2 * 2 * expected


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("size", [(32, 32), (8, 8), (33, 47), (1, 1)])
def test_evaluation(option: str, size: tuple[int, int]) -> None:
    ours, twin = pair(option, num_classes=1000)
    assert_same_function(ours, twin, image(2, 3, *size))


@pytest.mark.parametrize("option", OPTIONS)
def test_evaluation_on_every_backend(option: str, backend: str) -> None:
    ours, twin = pair(option, num_classes=1000)
    assert_same_function(ours, twin, image(2, 3, 32, 32))


@pytest.mark.parametrize("option", OPTIONS)
def test_every_convolution_is_fused(option: str) -> None:
    ours, _ = pair(option)
    assert {layer.backend for layer in fastres.explain(ours, image(2, 3, 32, 32)).layers} == {"onednn"}


@pytest.mark.parametrize("option", OPTIONS)
def test_training_step(option: str) -> None:
    assert_same_step(*pair(option), image(3, 3, 32, 32))


def test_gray_images_and_other_classes() -> None:
    ours, twin = pair("A", depth=8, num_classes=1000, in_channels=1)
    assert_same_function(ours, twin, image(3, 1, 8, 8))


def test_resnet1202_trains_a_step() -> None:
    model = cifar.ResNet1202()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = model.conv1.weight.detach().clone()
    loss = nn.functional.cross_entropy(model(image(4, 3, 16, 16)), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert not torch.equal(model.conv1.weight, before)


@pytest.mark.parametrize("depth", [0, 2, 7, 18, 52, -4])
def test_depths_that_are_not_6n_plus_2(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"depth: expected 6n\+2 .* got {depth}"):
        cifar.ResNet(depth)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"shortcut: expected one of 'A', 'B', 'C', got 'D'"):
        cifar.ResNet20(shortcut="D")
    with pytest.raises(ValueError, match="backend"):
        cifar.ResNet20(backend="abacus")
    with pytest.raises(TypeError, match="shortcut"):
        cifar.PlainNet20(shortcut="B")
    with pytest.raises(ValueError, match=r"x: expected \[N, 3, H, W\]"):
        cifar.ResNet20()(image(1, 1, 8, 8))


def test_backend_reaches_every_block() -> None:
    model = cifar.ResNet(8)
    model.backend = "reference"
    assert model.backend == "reference"
    blocks = itertools.chain(model.layer1, model.layer2, model.layer3)
    assert {block.backend_name for block in blocks} == {"reference"}
    with torch.no_grad():
        layers = fastres.explain(model.eval(), image(1, 3, 8, 8)).layers
    assert {layer.backend for layer in layers} == {"reference"}
