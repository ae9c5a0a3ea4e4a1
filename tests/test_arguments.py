"""Operators refuse arguments that have no memory, or too little, where PyTorch's own would raise too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_ops import OPS, input_of, make_layer, shortcut_of, small_stage
from torch import Tensor, nn

import fastres
from fastres.backends.cpu_steps import CpuSteps
from fastres.backends.steps import Affine
from fastres.block import Norm, TrainBlock, flatten


def _calls() -> dict[str, list[Any]]:
    """By operator, the arguments of a call that runs."""
    layer = make_layer(8, 16, bias=True)
    shortcut, block_input = shortcut_of(layer)
    x, (x_stage, blocks) = input_of(layer), small_stage()
    trained = TrainBlock((make_layer(8, 16),), None, (Norm.RUNNING,)).flatten()
    track = [[torch.zeros(4)], [torch.ones(4)], [torch.tensor(0)], [torch.rand(4, 3) + 2], [0.1]]
    return {
        "conv_bn_act": [x, *layer.arguments(), torch.randn(layer.out_size(x)), True, ""],
        "projection": [x, *layer.arguments(), block_input, *shortcut.arguments(), ""],
        "stem": [x, *layer.arguments(), 3, 2, 1, ""],
        "stem_uint8": [x.byte(), *layer.arguments(), 3, 2, 1, torch.float32, [0.0] * 8, [1.0] * 8, ""],
        "stage": [x_stage, *flatten(blocks), ""],
        "head": [x, torch.randn(3, 8), torch.randn(3), ""],
        "train_block": [x, None, *trained, "", ""],
        "track": track,
    }


def _places(args: list[Any]) -> list[tuple[int, int | None]]:
    """Where tensors are: an argument, and if that is a list, which of its elements."""
    places: list[tuple[int, int | None]] = []
    for i, value in enumerate(args):
        if isinstance(value, Tensor):
            places.append((i, None))
        elif isinstance(value, list):
            places += [(i, j) for j, part in enumerate(value) if isinstance(part, Tensor)]
    return places


def _put(args: list[Any], place: tuple[int, int | None], tensor: Tensor) -> None:
    i, j = place
    if j is None:
        args[i] = tensor
    else:
        args[i][j] = tensor


@pytest.mark.parametrize("name", _calls())
def test_one_argument_on_meta(name: str) -> None:
    operator = getattr(OPS, name).default
    operator(*_calls()[name])
    for place in _places(_calls()[name]):
        args = _calls()[name]
        i, j = place
        _put(args, place, (args[i] if j is None else args[i][j]).to("meta"))
        argument = operator._schema.arguments[i].name
        with torch.no_grad(), pytest.raises(RuntimeError, match=f"^{argument}: expected a tensor with memory, got one"):
            operator(*args)


@pytest.mark.parametrize("name", _calls())
def test_all_arguments_on_meta(name: str) -> None:
    args = _calls()[name]
    for i, j in _places(args):
        _put(args, (i, j), (args[i] if j is None else args[i][j]).to("meta"))
    result = getattr(OPS, name).default(*args)
    assert result is None or all(t.is_meta for t in (result if isinstance(result, list) else [result]))


@pytest.mark.parametrize("backend", ["", "reference"])
@pytest.mark.parametrize("name", _calls())
def test_one_argument_freed(name: str, backend: str) -> None:
    """Every argument whose values are read."""
    for place in _places(_calls()[name]):
        args = _calls()[name]
        i, j = place
        tensor = (args[i] if j is None else args[i][j]).clone()
        tensor.untyped_storage().resize_(0)
        _put(args, place, tensor)
        if args[-1] == "":
            args[-1] = backend
        with torch.no_grad(), pytest.raises(RuntimeError):
            getattr(OPS, name).default(*args)


@pytest.mark.parametrize("train", [False, True])
def test_a_model_on_a_freed_image(train: bool) -> None:
    model = fastres.ResNet18(num_classes=3).train(train)
    x = torch.rand(2, 3, 40, 40)
    x.untyped_storage().resize_(0)
    with (
        torch.no_grad(),
        pytest.raises(RuntimeError, match=r"^x: expected a tensor with memory, got one that was freed"),
    ):
        model(x)


BAD_TRACKS = {
    "two columns": (0, {3: torch.zeros(4, 2)}, r"statistics: expected \[4, 3\], got \[4, 2\]"),
    "no column": (0, {3: torch.zeros(4, 0)}, r"statistics: expected \[4, 3\], got \[4, 0\]"),
    "fewer channels": (0, {3: torch.zeros(3, 3)}, r"statistics: expected \[4, 3\], got \[3, 3\]"),
    "one dimension": (0, {3: torch.zeros(12)}, r"statistics: expected \[4, 3\], got \[12\]"),
    "a shorter variance": (0, {1: torch.ones(3)}, r"means, variances: expected \[C\] each, got \(4,\) and \(3,\)"),
    "a scalar mean": (0, {0: torch.ones(()), 1: torch.ones(())}, r"means, variances: expected \[C\] each"),
}


@pytest.mark.parametrize(("at", "changes", "message"), BAD_TRACKS.values(), ids=BAD_TRACKS)
def test_track_refuses_shapes(at: int, changes: dict[int, Tensor], message: str) -> None:
    args = _calls()["track"]
    before = [args[i][at].clone() for i in (0, 1, 2)]
    for i, tensor in changes.items():
        args[i][at] = tensor
    with pytest.raises(ValueError, match=message):
        OPS.track(*args)
    assert all(torch.equal(args[i][at], old) for i, old in zip((0, 1, 2), before, strict=True) if i not in changes)


def test_track_refuses_lists_of_two_lengths() -> None:
    args = _calls()["track"]
    args[3] = args[3] * 2
    with pytest.raises(ValueError, match=r"expected lists of one length, got \[1, 1, 1, 2, 1\]"):
        OPS.track(*args)


@pytest.mark.parametrize("momentum", [-0.25, 0.0, 1.5, None])
def test_any_momentum_is_pytorchs(momentum: float | None) -> None:
    """A negative one is a weight, too, and not None's mean over all batches."""
    ours = fastres.ResNet18(num_classes=3).train()
    ours.bn1.momentum = ours.layer1[0].bn2.momentum = momentum
    theirs = {name: nn.BatchNorm2d(64, momentum=momentum) for name in ("bn1", "layer1.0.bn2")}
    seen: dict[str, Tensor] = {}
    for _ in range(2):
        with fastres.use_backend("plain"), torch.no_grad():
            hooks = [
                ours.get_submodule(name).register_forward_pre_hook(
                    lambda _, args, name=name: seen.update({name: args[0]})
                )
                for name in theirs
            ]
            state = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
            x = torch.randn(4, 3, 32, 32)
            ours(x)
            ours.load_state_dict(state)
            for hook in hooks:
                hook.remove()
        ours(x)
        for name, bn in theirs.items():
            bn(seen[name])
            torch.testing.assert_close(ours.get_submodule(name).running_mean, bn.running_mean)
            torch.testing.assert_close(ours.get_submodule(name).running_var, bn.running_var)


def test_a_stage_without_blocks() -> None:
    with pytest.raises(ValueError, match="spec: expected one block or more, got none"):
        OPS.stage(torch.rand(1, 3, 4, 4), [], [], [], "")


@pytest.mark.parametrize("pool", [(3, 2**32, 1), (2**33, 2, 1), (3, 2, 2**32)])
def test_a_pool_of_sizes_that_overflow(pool: tuple[int, int, int]) -> None:
    """PyTorch raises, too; a stride whose square overflows 64 bits once ended the process."""
    y = torch.randn(1, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match=r"pool: expected kernel, stride and padding of at most 2147483647"):
        CpuSteps().apply_pool(y, Affine(torch.ones(4), torch.zeros(4)), None, True, pool)


@pytest.mark.parametrize("train", [False, True])
def test_a_models_pool_of_a_stride_that_overflows(train: bool) -> None:
    model = fastres.ResNet18(num_classes=3).train(train)
    model.maxpool = nn.MaxPool2d(3, 2**32, 1)
    with pytest.raises((RuntimeError, ValueError), match=r"out of range|pool: expected"):
        model(torch.rand(2, 3, 64, 64))
