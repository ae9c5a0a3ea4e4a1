"""A training step as one operator a block: PyTorch's gradients, statistics and errors, and less kept for backward."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import twins
from models import image, pair, randomize, small_pair
from steps import assert_same_step, assert_step_is_right, step
from test_eligibility import OBSTACLES, Change
from test_memory import peak
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import resnet as tv

import fastres
from fastres.backends import registry
from fastres.block import ConvBN, Geometry, Norm, TrainBlock
from fastres.models import cifar

OPS = torch.ops.fastres


def blocks(kind: str = "bottleneck", projected: bool = True, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    """(ours, torchvision's) of one randomised block of 24 channels, a bottleneck's wide side 96; it takes 24 or 96."""
    wide = 96 if kind == "bottleneck" else 24
    downsample = nn.Sequential(nn.Conv2d(24, wide, 1, 2, bias=False), nn.BatchNorm2d(wide)) if projected else None
    block = tv.Bottleneck if kind == "bottleneck" else tv.BasicBlock
    theirs: Any = block(24 if projected else wide, 24, 2 if projected else 1, downsample)
    randomize(theirs)
    return fastres.optimize(copy.deepcopy(theirs), **kwargs), theirs


# --- one block


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("projected", [True, False])
@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
@pytest.mark.parametrize("backend", [None, "reference"])
def test_block(backend: str | None, kind: str, projected: bool, train: bool) -> None:
    ours, theirs = blocks(kind, projected, backend=backend)
    x = torch.randn(3, 96 if kind == "bottleneck" and not projected else 24, 13, 10)
    x = x.contiguous(memory_format=torch.channels_last)  # in which PyTorch sums plainly, and so do we
    assert_step_is_right(copy.deepcopy(ours), copy.deepcopy(theirs), x, train=train)
    assert_same_step(ours, theirs, x, train=train)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("projected", [True, False])
def test_block_under_autocast(projected: bool, dtype: torch.dtype) -> None:
    ours, theirs = blocks("basic", projected)

    class Cast(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: Tensor) -> Tensor:
            narrow = next(self.parameters()).dtype == torch.float32
            with torch.autocast("cpu", dtype) if narrow else nullcontext():
                return self.block(x).to(x.dtype)

    torch.manual_seed(1)  # no ReLU's argument is within rounding of zero, where the gradient would be luck
    assert_step_is_right(Cast(ours), Cast(theirs), torch.randn(4, 24, 13, 10))


def test_gradient_scaler() -> None:
    """Float16 with a scaled loss; a step whose gradients overflow is skipped."""
    ours, _ = blocks("basic")
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    before = copy.deepcopy(ours.state_dict())
    for scale, moves in ((1.0, True), (torch.inf, False)):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = ours.train()(torch.randn(2, 24, 9, 9)).float().mean() * scale
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(ours.conv1.weight, before["conv1.weight"]) != moves
        before = copy.deepcopy(ours.state_dict())
    assert scaler.get_scale() < 2.0**4


@pytest.mark.parametrize("frozen", ["conv1", "bn1", "bn2", "downsample", "x", "everything but conv2", "all but x"])
def test_gradients_that_are_not_asked_for(frozen: str) -> None:
    ours, theirs = (model.double() for model in blocks())
    x = torch.randn(2, 24, 9, 8, dtype=torch.float64)
    found = []
    for model in (ours, theirs):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen) and frozen != "all but x")
            if frozen.startswith("everything"):
                parameter.requires_grad_("conv2" in name)
        leaf = x.clone().requires_grad_(frozen in ("conv1", "all but x"))
        model.train()(leaf).square().sum().backward()
        found.append([leaf.grad, *(p.grad for p in model.parameters())])
    assert any(gradient is not None for gradient in found[0])
    for ours_, theirs_ in zip(*found, strict=True):
        assert (ours_ is None) == (theirs_ is None)
        if ours_ is not None:
            torch.testing.assert_close(ours_, theirs_)


@pytest.mark.parametrize("momentum", [None, 0.0, 0.3])
@pytest.mark.parametrize("frozen", [(), ("bn2",), ("bn3", "downsample")])
def test_running_statistics(momentum: float | None, frozen: tuple[str, ...]) -> None:
    """Of three steps, with BatchNorms in evaluation mode among them."""
    ours, theirs = (model.double().train() for model in blocks())
    for model in (ours, theirs):
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = momentum
            if name in frozen:
                module.eval()
        torch.manual_seed(1)
        for i in range(3):
            with torch.set_grad_enabled(i != 1):
                model(torch.randn(2, 24, 9, 8, dtype=torch.float64))
    for (name, a), b in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    assert ours.bn1.num_batches_tracked == theirs.bn1.num_batches_tracked > 0


def test_layouts_of_gradients_are_the_parameters() -> None:
    """Neither layout makes a copy in DistributedDataParallel; x may be any view."""
    for layout in (torch.contiguous_format, torch.channels_last):
        ours, theirs = (model.double().to(memory_format=layout) for model in blocks())
        x = torch.randn(2, 26, 9, 16, dtype=torch.float64)[:, 1:-1, :, ::2]
        assert_same_step(ours, theirs, x)
        assert all(p.grad.stride() == p.stride() for p in ours.parameters())


def test_one_value_per_channel() -> None:
    for model in blocks():
        with pytest.raises(ValueError, match=r"Expected more than 1 value per channel .*\[1, 24, 1, 1\]"):
            model.train()(torch.ones(1, 24, 1, 1))


def test_residual_of_another_shape() -> None:
    ours, _ = blocks(projected=False)
    ours.downsample = nn.AvgPool2d(2)
    with pytest.raises(ValueError, match=r"shortcut: expected \(2, 96, 8, 8\), got \(2, 96, 4, 4\)"):
        ours.train()(torch.ones(2, 96, 8, 8))


def test_accumulation_and_two_backwards() -> None:
    ours, theirs = (model.double().train() for model in blocks())
    x = torch.randn(2, 24, 9, 8, dtype=torch.float64)
    for model in (ours, theirs):
        for part in (x, 2 * x):
            loss = model(part).square().sum()
            loss.backward(retain_graph=True)
        loss.backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant: bool) -> None:
    ours, theirs = (model.double().train() for model in blocks())
    x = torch.randn(2, 24, 9, 8, dtype=torch.float64, requires_grad=True)
    for model in (ours, theirs):
        checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


# --- the operators


def layer(cin: int, cout: int, kernel: int, norm: Norm, stride: int = 1, dilation: int = 1, groups: int = 1) -> ConvBN:
    def vector() -> Tensor:
        return (torch.rand(cout, dtype=torch.float64) + 0.5).requires_grad_()

    weight = torch.randn(cout, cin // groups, kernel, kernel, dtype=torch.float64, requires_grad=True)
    mean, var = (None, None) if norm is Norm.BATCH else (vector().detach(), vector().detach())
    padding = dilation * (kernel // 2)
    return ConvBN(
        weight,
        None,
        vector(),
        vector(),
        mean,
        var,
        None,
        1e-3,
        Geometry((stride, stride), (padding, padding), (dilation, dilation), groups),
    )


CASES: dict[str, Callable[[Norm], tuple[TrainBlock, int | None]]] = {
    "projection": lambda n: (
        TrainBlock((layer(4, 6, 3, n, 2), layer(6, 4, 1, n)), layer(4, 4, 1, n, 2), (n,) * 3),
        None,
    ),
    "identity": lambda n: (TrainBlock((layer(4, 6, 1, n), layer(6, 4, 3, n)), None, (n,) * 2, identity=True), None),
    "other": lambda n: (TrainBlock((layer(4, 6, 3, n, groups=2),), None, (n,), identity=True), 6),
    "projected other": lambda n: (TrainBlock((layer(4, 6, 3, n, dilation=2),), layer(3, 6, 1, n), (n, n)), 3),
    "alone": lambda n: (TrainBlock((layer(4, 6, 3, n),), None, (n,), relu=False), None),
    "pooled": lambda n: (TrainBlock((layer(4, 6, 3, n),), None, (n,), pool=(3, 2, 1)), None),
}


@pytest.mark.parametrize("norm", [Norm.BATCH, Norm.RUNNING])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradcheck_and_opcheck(case: Any, norm: Norm) -> None:
    block, channels = case(norm)
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    other = None if channels is None else torch.randn(3, channels, 5, 6, dtype=torch.float64, requires_grad=True)
    tensors, *geometry = block.flatten()

    def output(x: Tensor, other: Tensor | None, *tensors: Tensor) -> Tensor:
        return OPS.train_block.default(x, other, list(tensors), *geometry, "", "reference")[0]

    assert torch.autograd.gradcheck(output, (x, other, *tensors), fast_mode=True)
    torch.library.opcheck(OPS.train_block.default, (x, other, tensors, *geometry, "", ""))


# --- models


# Torchvision's own step raises with this one: its ReLU writes over what the hook returned.
TRAINABLE = {name: case for name, case in OBSTACLES.items() if name != "backward pre-hook"}


@pytest.mark.parametrize(("change", "reason"), TRAINABLE.values(), ids=TRAINABLE)
def test_obstacle_in_training(change: Change, reason: str) -> None:
    """What keeps a layer from fusing keeps it from being trained fused; the rest is."""
    ours, theirs = small_pair()
    for model in (ours, theirs):
        change(model)
    with registry.recording() as choices:
        assert_same_step(ours, theirs, image(2, 3, 33, 33))
    assert any(re.search(reason, choice.reason) for choice in choices if choice.backend == "plain")
    assert sum(choice.backend == "native" for choice in choices) > 10
    for model in (ours, theirs):
        model.float()  # modules that cases share


def test_who_trains() -> None:
    ours, theirs = small_pair()
    backends = {}
    for name in ("auto", "reference", "onednn", "plain"):
        with fastres.use_backend(name):
            [(backend, reason)] = {(r.backend, r.reason) for r in fastres.explain(ours.train(), image()).layers}
            backends[name] = f"{backend}: {reason}"
    assert backends == {
        "auto": "native: first choice for training on cpu",
        "reference": "reference: asked for by name",
        "onednn": "plain: backend 'onednn' does not train",
        "plain": "plain: asked for by name",
    }
    with fastres.use_backend("plain"):
        x = image()
        assert torch.equal(step(ours, x)["gradient of x"], step(theirs, x)["gradient of x"])
        assert {r.backend for r in fastres.explain(ours.eval(), image()).layers} == {"plain"}


def curve(model: nn.Module) -> Tensor:
    """Losses of 50 steps of SGD with momentum."""
    torch.manual_seed(2)
    model.double().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    losses = []
    for _ in range(50):
        x = torch.randn(8, 3, 17, 17, dtype=torch.float64)
        loss = nn.functional.cross_entropy(model(x), x.mean((1, 2, 3)).mul(300).long() % 10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.parametrize("option", ["A", "B", "plain"])
def test_loss_curves_are_torchvisions(option: str) -> None:
    """In float64, in which rounding has not grown to be seen after 50 steps."""
    theirs = twins.Cifar(1, option)
    ours = cifar.PlainNet(8) if option == "plain" else cifar.ResNet(8, shortcut=option)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(curve(ours), curve(theirs))


def test_zero_initialised_last_gamma() -> None:
    torch.manual_seed(0)
    theirs = tv.ResNet(tv.Bottleneck, [1, 1, 1, 1], width_per_group=16, zero_init_residual=True)
    assert_same_step(fastres.optimize(copy.deepcopy(theirs)), theirs, image(2, 3, 33, 33))


# --- memory


class Saved:
    """What autograd keeps for backward, parameters aside: bytes by pack call, and of distinct storages."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.packed = 0
        storages: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                self.packed += tensor.nbytes
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.output = model.train()(x)  # held, so that no storage's address is used twice
        self.distinct = sum(storages.values())


def test_bytes_kept_for_backward() -> None:
    ours, theirs = pair("ResNet50")
    kept, plain = (Saved(model, image(1, 3, 224, 224)) for model in (ours, theirs))
    assert kept.packed <= 0.55 * plain.packed
    assert kept.distinct < plain.distinct
    assert kept.distinct >= 0.9 * kept.packed, "nothing is kept twice"


def test_peak_of_a_training_step() -> None:
    ours, theirs = pair("ResNet50")
    x = image(4, 3, 128, 128).contiguous(memory_format=torch.channels_last)
    needed = []
    for model in (ours, theirs):
        model.train().to(memory_format=torch.channels_last)

        def call(model: nn.Module = model) -> Tensor:
            model(x).square().mean().backward()
            return x

        call()
        needed.append(peak(call)[0])
    assert needed[0] < needed[1]
    assert math.isfinite(needed[1])
