"""Bad input gets one exception that names the argument and what was expected, and the model works afterwards."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from models import image, small_pair
from test_ops import OPS, conv_bn_act, input_of, make_layer, shortcut_of, small_stage
from tolerance import assert_same_function
from torch import Tensor

import fastres
from fastres.block import Block, flatten

INPUTS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no tensor": (
        lambda: np.zeros((1, 3, 32, 32)),
        TypeError,
        r"x: expected a torch.Tensor \[N, 3, H, W\], got ndarray",
    ),
    "a list": (lambda: [image()], TypeError, r"x: expected a torch.Tensor .* got list"),
    "nothing": (lambda: None, TypeError, r"x: expected a torch.Tensor .* got NoneType"),
    "one image without a batch": (
        lambda: image(3, 32, 32),
        ValueError,
        r"x: expected \[N, 3, H, W\], got \(3, 32, 32\)",
    ),
    "five dimensions": (lambda: image(1, 1, 3, 32, 32), ValueError, r"x: expected \[N, 3, H, W\], got \(1, 1, 3,"),
    "one channel": (lambda: image(1, 1, 32, 32), ValueError, r"x: expected \[N, 3, H, W\], got \(1, 1, 32, 32\)"),
    "channels last, really": (lambda: image(1, 32, 32, 3), ValueError, r"x: expected \[N, 3, H, W\], got \(1, 32"),
    "no pixels": (
        lambda: image(1, 3, 0, 32),
        ValueError,
        r"x: expected an image of at least 1 x 1, got \(1, 3, 0, 32\)",
    ),
    "bytes": (
        lambda: torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
        TypeError,
        r"x: expected torch.float32.*torch.uint8",
    ),
    "float64": (lambda: image(dtype=torch.float64), TypeError, r"x: expected torch.float32, .* got torch.float64"),
    "bfloat16": (lambda: image(dtype=torch.bfloat16), TypeError, r"x: expected torch.float32, .* got torch.bfloat16"),
    "complex": (lambda: image().to(torch.complex64), TypeError, r"x: expected torch.float32, .* got torch.complex64"),
    "another device": (
        lambda: image().to("meta"),
        ValueError,
        r"x: expected device cpu, that of the weights, got meta",
    ),
}


@pytest.mark.parametrize("mode", ["evaluation", "training", "evaluation with gradients"])
@pytest.mark.parametrize(("make", "error", "message"), INPUTS.values(), ids=INPUTS)
def test_input(make: Callable[[], Any], error: type[Exception], message: str, mode: str) -> None:
    ours, theirs = small_pair()
    ours.train(mode == "training")
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    with torch.set_grad_enabled(mode != "evaluation"), pytest.raises(error, match=message):
        ours(make())
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())
    assert_same_function(ours.eval(), theirs, image())


@pytest.mark.parametrize(
    "make", [lambda: image(dtype=torch.float64), lambda: torch.zeros(1, 3, 9, 9, dtype=torch.uint8)]
)
def test_input_that_autocast_does_not_cast(make: Callable[[], Tensor]) -> None:
    ours, _ = small_pair()
    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.no_grad(),
        pytest.raises(TypeError, match=r"x: expected torch\.float32"),
    ):
        ours(make())


def test_too_small_an_image() -> None:
    """A ResNet takes an image of one pixel; without padding, the first layer's kernel is a lower limit."""
    ours, _ = small_pair()
    ours.conv1.padding = (0, 0)
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match=re.escape("x: image (5, 9) is too small for a (7, 7) kernel")),
    ):
        ours(image(1, 3, 5, 9))
    assert ours(image(1, 3, 32, 32)).shape == (1, 1000)


# --- operators, called directly


def _calls() -> dict[str, tuple[Callable[[], Tensor], str]]:
    layer = make_layer(8, 16)
    x = input_of(layer)
    shortcut, block_input = shortcut_of(layer)
    x_stage, blocks = small_stage()

    def projection(x: Tensor = x, block_input: Tensor = block_input) -> Tensor:
        return OPS.projection(x, *layer.arguments(), block_input, *shortcut.arguments(), "")

    def stage(x: Tensor = x_stage, blocks: tuple[Block, ...] = blocks) -> Tensor:
        return OPS.stage(x, *flatten(blocks), "")

    broken = (Block((make_layer(8, 16),), None),)
    return {
        "rank": (lambda: conv_bn_act(x[0], layer), "x: expected 4 dimensions"),
        "channels": (lambda: conv_bn_act(x[:, :3], layer), "x: expected 8 channels"),
        "size": (lambda: conv_bn_act(x[..., :1, :1], make_layer(padding=(0, 0))), r"x: image \(1, 1\) is too small"),
        "residual shape": (
            lambda: conv_bn_act(x, layer, torch.randn(2, 16, 11, 1)),
            r"residual: expected \(2, 16, 11, 11\)",
        ),
        "residual dtype": (
            lambda: conv_bn_act(x, layer, torch.randn(2, 16, 11, 11).double()),
            r"residual: expected .* torch.float32, got .* torch.float64",
        ),
        "projection shapes": (lambda: projection(block_input=block_input[..., :5]), "x and block_input: expected both"),
        "projection dtypes": (lambda: projection(block_input=block_input.double()), "x and block_input: expected both"),
        "projection channels": (lambda: projection(block_input=block_input[:, :2]), "x: expected 4 channels"),
        "stem rank": (lambda: OPS.stem(x[0], *layer.arguments(), 3, 2, 1, ""), "x: expected 4 dimensions"),
        "stage channels": (lambda: stage(x_stage[:, :4]), "x: expected 8 channels"),
        "stage shortcut": (
            lambda: stage(blocks=broken),
            r"branch gives \(2, 16, 11, 11\), its shortcut \(2, 8, 11, 11\)",
        ),
        "head rank": (lambda: OPS.head(x[0], torch.randn(3, 8), None, ""), r"x: expected \[N, 8, H, W\]"),
        "head channels": (lambda: OPS.head(x, torch.randn(3, 9), None, ""), r"x: expected \[N, 9, H, W\]"),
    }


@pytest.mark.parametrize("case", list(_calls()))
def test_operator(case: str, backend: str) -> None:
    call, message = _calls()[case]
    with pytest.raises(ValueError, match=message):
        call()


# --- constructors


def test_unknown_backend() -> None:
    message = "backend: unknown backend 'tensorrt', expected one of 'auto', 'plain', 'reference', 'onednn'"
    with pytest.raises(ValueError, match=message):
        fastres.ResNet18(backend="tensorrt")
    ours, theirs = small_pair()
    with pytest.raises(ValueError, match=message):
        ours.backend = "tensorrt"
    assert ours.backend is None
    assert_same_function(ours, theirs, image())
    with pytest.raises(ValueError, match=message):
        fastres.optimize(theirs, backend="tensorrt")


@pytest.mark.parametrize("build", [fastres.ResNet18, torchvision.models.resnet18])
def test_too_many_and_unknown_arguments(build: Any) -> None:
    with pytest.raises(TypeError):
        build(None, True, 3)
    with pytest.raises(TypeError, match="no_such_argument"):
        build(no_such_argument=True)
