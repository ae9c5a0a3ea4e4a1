"""What may not fuse runs as PyTorch's own modules, with their result, and `explain` says why."""

from __future__ import annotations

import re
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from models import image, randomize, small_pair
from steps import assert_same_step
from tolerance import assert_right, assert_same_function, to_oracle
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.nn.utils import parametrizations, prune
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet as tv
from torchvision.ops import FrozenBatchNorm2d

import fastres
from fastres import fused
from fastres.models import resnet

CONV = "layer1.0.conv2"  # the layer that each change keeps from fusing

Change = Callable[[nn.Module], Any]


class DoublingConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class ShiftedNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def _doubled(self: nn.Module, x: Tensor) -> Tensor:
    return type(self).forward(self, x) * 2


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _subclass(model: nn.Module) -> None:
    old = model.get_submodule(CONV)
    new = DoublingConv(old.in_channels, old.out_channels, 3, padding=1, bias=False)
    new.load_state_dict(old.state_dict())
    replace(model, CONV, new)


def _norm_subclass(model: nn.Module) -> None:
    new = ShiftedNorm(16).eval()
    new.load_state_dict(model.layer1[0].bn2.state_dict())
    model.layer1[0].bn2 = new


def _replaced_forward(name: str) -> Change:
    def change(model: nn.Module) -> None:
        module = model.get_submodule(name)
        module.forward = types.MethodType(_doubled, module)

    return change


def _set(name: str, **values: Any) -> Change:
    return lambda model: [setattr(model.get_submodule(name), key, value) for key, value in values.items()]


def _padding_mode(model: nn.Module) -> None:
    conv = nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect", bias=False)
    conv.load_state_dict(model.get_submodule(CONV).state_dict())
    replace(model, CONV, conv)


def _string_padding(model: nn.Module) -> None:
    conv = nn.Conv2d(16, 16, 3, padding="same", bias=False)
    conv.load_state_dict(model.get_submodule(CONV).state_dict())
    replace(model, CONV, conv)


def _no_statistics(model: nn.Module) -> None:
    torch.manual_seed(3)
    model.layer1[0].bn2 = nn.BatchNorm2d(16, track_running_stats=False).eval()


def _old_spectral_norm(model: nn.Module) -> None:
    torch.manual_seed(3)
    nn.utils.spectral_norm(model.get_submodule(CONV))


def _spectral_norm(model: nn.Module) -> None:
    torch.manual_seed(3)
    parametrizations.spectral_norm(model.get_submodule(CONV)).eval()


def _old_weight_norm(model: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(model.get_submodule(CONV))


def _replaced_convolution(model: nn.Module) -> None:
    conv = model.get_submodule(CONV)
    conv._conv_forward = lambda x, weight, bias: nn.Conv2d._conv_forward(conv, x, weight, bias) * 2


HOOK = "a hook is registered on "
OBSTACLES: dict[str, tuple[Change, str]] = {
    "forward hook": (lambda m: m.get_submodule(CONV).register_forward_hook(lambda _, x, y: y * 2), f"{HOOK}Conv2d"),
    "forward hook on the norm": (
        lambda m: m.layer1[0].bn2.register_forward_hook(lambda _, x, y: y * 2),
        f"{HOOK}BatchNorm2d",
    ),
    "pre-hook": (
        lambda m: m.get_submodule(CONV).register_forward_pre_hook(lambda _, x: (x[0] * 2,)),
        f"{HOOK}Conv2d",
    ),
    "pre-hook on the norm": (
        lambda m: m.layer1[0].bn2.register_forward_pre_hook(lambda _, x: (x[0] * 2,)),
        f"{HOOK}BatchNorm2d",
    ),
    "backward hook": (lambda m: m.get_submodule(CONV).register_full_backward_hook(lambda *_: None), f"{HOOK}Conv2d"),
    "backward pre-hook": (
        lambda m: m.layer1[0].bn2.register_full_backward_pre_hook(lambda *_: None),
        f"{HOOK}BatchNorm2d",
    ),
    "hook on the activation": (
        lambda m: m.layer1[0].relu.register_forward_hook(lambda _, x, y: y * 2),
        f"{HOOK}ReLU",
    ),
    "subclass": (_subclass, "DoublingConv is not exactly Conv2d"),
    "subclass of the norm": (_norm_subclass, "ShiftedNorm is not exactly one of BatchNorm2d"),
    "replaced forward": (_replaced_forward(CONV), "the forward of this Conv2d was replaced"),
    "replaced forward of the norm": (_replaced_forward("layer1.0.bn2"), "the forward of this BatchNorm2d was replaced"),
    "replaced part of a forward": (_replaced_convolution, "the _conv_forward of this Conv2d was replaced"),
    "other activation": (_set("layer1.0", relu=nn.GELU()), "GELU is not exactly ReLU"),
    "bounded activation": (_set("layer1.0", relu=nn.ReLU6(inplace=True)), "ReLU6 is not exactly ReLU"),
    "reflecting padding": (_padding_mode, "padding .* in mode 'reflect'"),
    "string padding": (_string_padding, "padding 'same' in mode 'zeros'"),
    "no running statistics": (_no_statistics, "BatchNorm keeps no running statistics"),
    "group norm": (_set("layer1.0", bn2=nn.GroupNorm(4, 16)), "GroupNorm is not exactly one of"),
    "no norm": (_set("layer1.0", bn2=nn.Identity()), "Identity is not exactly one of"),
    "spectral norm": (_spectral_norm, "ParametrizedConv2d is not exactly Conv2d"),
    "old spectral norm": (_old_spectral_norm, f"{HOOK}Conv2d"),
    "weight norm": (
        lambda m: parametrizations.weight_norm(m.get_submodule(CONV)),
        "ParametrizedConv2d is not exactly Conv2d",
    ),
    "old weight norm": (_old_weight_norm, f"{HOOK}Conv2d"),
    "pruning": (lambda m: prune.l1_unstructured(m.get_submodule(CONV), "weight", amount=0.5), f"{HOOK}Conv2d"),
}


def reports(model: nn.Module, x: Tensor) -> dict[str, Any]:
    return {layer.name: layer for layer in fastres.explain(model, x).layers}


@pytest.mark.parametrize(("change", "reason"), OBSTACLES.values(), ids=OBSTACLES)
def test_obstacle(change: Change, reason: str) -> None:
    ours, theirs = small_pair()
    x = image()
    assert_same_function(ours, theirs, x)
    for model in (ours, theirs):
        change(model)
    assert_same_function(ours, theirs, x)
    layers = reports(ours, x)
    assert layers[CONV].backend == "plain"
    assert re.search(reason, layers[CONV].reason), layers[CONV].reason
    assert layers["layer2.0.conv2"].backend == "onednn", "the rest fuses"


def test_a_hook_removed_fuses_again() -> None:
    ours, _ = small_pair()
    handle = ours.get_submodule(CONV).register_forward_hook(lambda _, x, y: y * 2)
    assert reports(ours, image())[CONV].backend == "plain"
    handle.remove()
    assert reports(ours, image())[CONV].backend == "onednn"


def test_pruning_made_permanent_fuses_again() -> None:
    ours, theirs = small_pair()
    for model in (ours, theirs):
        prune.l1_unstructured(model.get_submodule(CONV), "weight", amount=0.5)
        prune.remove(model.get_submodule(CONV), "weight")
    assert_same_function(ours, theirs, image())
    assert reports(ours, image())[CONV].backend == "onednn"


@pytest.fixture
def global_hook() -> Iterator[None]:
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, x, y: y * 1.5 if isinstance(module, nn.Conv2d) else None
    )
    yield
    handle.remove()


def test_global_hook(global_hook: None) -> None:
    ours, theirs = small_pair()
    assert_same_function(ours, theirs, image())
    assert {layer.reason for layer in fastres.explain(ours, image()).layers} == {"a global module hook is registered"}


REPLACED: list[tuple[type[nn.Module], str]] = [
    (nn.Conv2d, "forward"),
    (nn.Conv2d, "_conv_forward"),
    (nn.Conv2d, "__call__"),
    (nn.BatchNorm2d, "forward"),
    (nn.modules.batchnorm._BatchNorm, "forward"),
    (nn.ReLU, "forward"),
    (nn.MaxPool2d, "forward"),
    (nn.AdaptiveAvgPool2d, "forward"),
    (nn.Linear, "forward"),
    (nn.Module, "__call__"),
]


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("kind", "name"), REPLACED, ids=[f"{kind.__name__}.{name}" for kind, name in REPLACED])
def test_a_replaced_function_of_a_class_runs(
    kind: type[nn.Module], name: str, train: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a class computes is asked of the class on every call, not taken from its name."""
    ours, theirs = small_pair()
    x, original, calls = image(), getattr(kind, name), []

    def changed(self: nn.Module, *args: Any) -> Tensor:
        calls.append(self)
        return original(self, *args) + 0.25

    monkeypatch.setattr(kind, name, changed)
    (assert_same_step if train else assert_same_function)(ours, theirs, x)
    counts = [sum(any(call is m for m in model.modules()) for call in calls) for model in (ours, theirs)]
    assert counts[0] >= 1
    assert kind is nn.Module or counts[0] == counts[1]


def _halved(kind: Any) -> Any:
    class Halved(kind):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / 2

    return Halved


def _subclassed(model: nn.Module) -> None:
    for block in model.layer2:
        block.__class__ = _halved(type(block))


def _called(model: nn.Module) -> None:
    class Doubled(type(model.layer2[1])):  # type: ignore[misc]
        def __call__(self, x: Tensor) -> Tensor:
            return super().__call__(x) * 2

    model.layer2[1].__class__ = Doubled


def _on_the_block(model: nn.Module) -> None:
    block = model.layer2[1]
    block.forward = types.MethodType(_doubled, block)


def _stage_subclass(model: nn.Module) -> None:
    model.layer2.__class__ = _halved(type(model.layer2))


BLOCKS = {
    "subclass of a block": _subclassed,
    "block with a __call__": _called,
    "block with a forward of its own": _on_the_block,
    "subclass of a stage": _stage_subclass,
}


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("change", BLOCKS.values(), ids=BLOCKS)
def test_a_changed_block_runs(change: Change, train: bool) -> None:
    ours, theirs = small_pair()
    for model in (ours, theirs):
        change(model)
    (assert_same_step if train else assert_same_function)(ours, theirs, image())


@pytest.mark.parametrize("name", ["Bottleneck", "Stage"])
def test_a_replaced_forward_of_our_classes_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = small_pair()
    replaced = {"Bottleneck": tv.Bottleneck, "Stage": nn.Sequential}[name]
    for kind in (getattr(resnet, name), replaced):
        original = kind.forward
        monkeypatch.setattr(kind, "forward", lambda self, x, original=original: original(self, x) / 2)
    assert_same_function(ours, theirs, image())


def test_a_subclass_that_keeps_the_forward_fuses() -> None:
    ours, _ = small_pair()
    ours.layer2[1].__class__ = type("Named", (fastres.Bottleneck,), {})
    with torch.no_grad(), torch.profiler.profile() as profiler:
        ours(image())
    assert sum(event.name == "fastres::stage" for event in profiler.events()) == 1


def test_the_model_s_own_plain_backend_fuses_nothing() -> None:
    ours, theirs = small_pair()
    ours.backend, x = "plain", image()
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
    assert {(layer.backend, layer.reason) for layer in fastres.explain(ours, x).layers} == {
        ("plain", "asked for by name")
    }


@pytest.mark.parametrize("name", ["BatchNorm2d", "SyncBatchNorm", "FrozenBatchNorm2d"])
def test_norms_that_fuse(name: str) -> None:
    ours, theirs = small_pair(**({"norm_layer": FrozenBatchNorm2d} if name == "FrozenBatchNorm2d" else {}))
    if name == "SyncBatchNorm":
        ours, theirs = (nn.SyncBatchNorm.convert_sync_batchnorm(model) for model in (ours, theirs))
    assert type(ours.bn1).__name__ == name
    assert_same_function(ours, theirs, image())
    assert {layer.backend for layer in fastres.explain(ours, image()).layers} == {"onednn"}


def test_frozen_norms_fuse_in_training_mode_without_gradients() -> None:
    ours, theirs = small_pair(norm_layer=FrozenBatchNorm2d)
    assert_same_function(ours.train(), theirs.train(), image())
    assert {layer.backend for layer in fastres.explain(ours, image()).layers} == {"onednn"}


def test_explain_leaves_a_training_model_as_it_is() -> None:
    ours, _ = small_pair()
    ours.train()
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    layers = fastres.explain(ours, image()).layers
    assert {layer.backend for layer in layers} == {"native"}
    assert ours.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())


def test_explain_prints_every_convolution_and_what_to_know() -> None:
    ours, _ = small_pair()
    with fastres.use_backend("reference"):
        text = str(fastres.explain(ours, image()))
    assert all(name in text for name, m in ours.named_modules() if isinstance(m, nn.Conv2d))
    assert "reference: PyTorch's own operators, one after the other" in text
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got int"):
        fastres.explain(3, image())  # type: ignore[arg-type]


# --- gradients


@pytest.mark.parametrize("wanted", ["residual", "block_input", "downsample"])
def test_a_gradient_of_the_second_activation_is_recorded(wanted: str) -> None:
    """Nothing else requires a gradient, so only the second activation shows that one is to be recorded."""
    conv, bn = nn.Conv2d(8, 16, 3, padding=1), randomize(nn.BatchNorm2d(16)).eval()
    downsample = nn.Sequential(nn.Conv2d(8, 16, 1), randomize(nn.BatchNorm2d(16)).eval())
    for module in (conv, bn, downsample):
        module.requires_grad_(False)
    x = torch.randn(2, 8, 9, 9)
    other = torch.randn(2, 16 if wanted == "residual" else 8, 9, 9)
    leaf = other.requires_grad_() if wanted != "downsample" else downsample[0].weight.requires_grad_()
    if wanted == "residual":
        fused.conv_bn_act(x, conv, bn, other).sum().backward()
        expected = (bn(conv(x)) + other > 0).float()
    else:
        fused.projection(x, conv, bn, other, downsample).sum().backward()
        ours, leaf.grad = leaf.grad, None
        (bn(conv(x)) + downsample(other)).relu().sum().backward()
        expected, leaf.grad = leaf.grad, ours
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, expected)


@pytest.mark.parametrize("frozen", ["conv1", "layer1", "layer2", "all but layer1", "fc", "everything"])
def test_partly_frozen_fine_tune(frozen: str) -> None:
    """Frozen layers in evaluation mode fuse; gradients of the rest are torchvision's."""
    ours, theirs = small_pair()
    oracle = to_oracle(theirs)
    for model in (ours, theirs, oracle):
        if frozen == "everything":
            model.requires_grad_(False)
            model.fc.requires_grad_(True)
        else:
            model.requires_grad_(False)
            trained = {"fc": ("conv1", "layer4"), "all but layer1": ("layer1",)}.get(frozen, ("layer3", "layer4", "fc"))
            for name in trained:
                model.get_submodule(name).requires_grad_(True)
    x = image()
    for model in (ours, theirs, oracle):
        model(x.to(model.fc.weight.dtype)).square().sum().backward()
    compared = 0
    for (name, a), b, right in zip(ours.named_parameters(), theirs.parameters(), oracle.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            assert_right(a.grad, b.grad, right.grad, name)
            compared += 1
    assert compared


# --- hooks see what torchvision's see


def _record(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def look(_: nn.Module, args: Any, output: Tensor) -> None:
            seen.setdefault(name, output.detach().clone())

        return look

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    with torch.no_grad():
        model(torch.linspace(-2, 2, 2 * 3 * 64 * 64).view(2, 3, 64, 64).to(next(model.parameters()).dtype))
    for handle in handles:
        handle.remove()
    return seen


def _leaves_and_blocks(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name]


def test_hooks_on_every_layer_see_torchvisions_values() -> None:
    ours, theirs = small_pair()
    names = _leaves_and_blocks(theirs)
    seen, expected, oracle = (_record(model, names) for model in (ours, theirs, to_oracle(theirs)))
    assert list(seen) == list(expected), "in the same order"
    for name, value in seen.items():
        assert_right(value, expected[name], oracle[name], name)


@pytest.mark.parametrize(
    "name",
    ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2.0", "layer2.0.downsample", "layer2.1.conv3", "avgpool", "fc"],
)
def test_a_hook_on_one_layer_sees_torchvisions_value(name: str) -> None:
    ours, theirs = small_pair()
    seen, expected, oracle = (_record(model, [name]) for model in (ours, theirs, to_oracle(theirs)))
    assert_right(seen[name], expected[name], oracle[name], name)


# --- surgery


def _four_channels(model: nn.Module) -> None:
    torch.manual_seed(3)
    model.conv1 = nn.Conv2d(4, 64, 7, 2, 3, bias=False)


def _one_channel(model: nn.Module) -> None:
    torch.manual_seed(3)
    model.conv1 = nn.Conv2d(1, 64, 3, 1, 1)


def _cifar_stem(model: nn.Module) -> None:
    torch.manual_seed(3)
    model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    model.maxpool = nn.Identity()


def _longer_stage(model: nn.Module) -> None:
    model.layer2.append(type(model.layer2[1])(512, 128, base_width=16))
    torch.manual_seed(3)
    randomize(model.layer2[2])
    model.layer2[2].eval()


def _own_block(model: nn.Module) -> None:
    torch.manual_seed(3)
    model.layer2[1] = nn.Sequential(nn.Conv2d(512, 512, 1), nn.Tanh())


SURGERY: dict[str, tuple[Change, int]] = {
    "no classifier": (_set("", fc=nn.Identity()), 3),
    "two classifiers": (_set("", fc=nn.Sequential(nn.Dropout(), nn.ReLU(), nn.LayerNorm(2048))), 3),
    "no last stage": (lambda m: [setattr(m, "layer4", nn.Identity()), setattr(m, "fc", nn.Identity())], 3),
    "four channels": (_four_channels, 4),
    "one channel": (_one_channel, 1),
    "CIFAR's stem": (_cifar_stem, 3),
    "max for average": (_set("", avgpool=nn.AdaptiveMaxPool2d(1)), 3),
    "no pooling": (lambda m: [setattr(m, "avgpool", nn.Identity()), setattr(m, "fc", nn.Identity())], 3),
    "coarse pooling": (lambda m: [setattr(m, "avgpool", nn.AdaptiveAvgPool2d(2)), setattr(m, "fc", nn.Identity())], 3),
    "other first pooling": (_set("", maxpool=nn.MaxPool2d(3, 2, 1, ceil_mode=True)), 3),
    "oblong first pooling": (_set("", maxpool=nn.MaxPool2d((3, 2), 2, (1, 0))), 3),
    "average for max": (_set("", maxpool=nn.AvgPool2d(3, 2, 1)), 3),
    "own block": (_own_block, 3),
    "longer stage": (_longer_stage, 3),
    "shorter stage": (lambda m: m.layer2.pop(1), 3),
    "stage in a list": (lambda m: setattr(m, "layer2", nn.Sequential(*m.layer2)), 3),
}


@pytest.mark.parametrize(("change", "channels"), SURGERY.values(), ids=SURGERY)
def test_surgery(change: Change, channels: int) -> None:
    ours, theirs = small_pair()
    with torch.no_grad():
        ours(image())
    state = None
    for model in (theirs, ours):
        change(model)
        state = state or model.state_dict()
        model.load_state_dict(state)
        model.eval()
    assert_same_function(ours, theirs, image(2, channels, 64, 64))


GLOBAL_HOOKS = {
    "forward": module_hooks.register_module_forward_hook,
    "forward pre": module_hooks.register_module_forward_pre_hook,
}


def called_under(register: Any, model: nn.Module, x: Tensor, train: bool) -> list[str]:
    """The names of the modules that a global hook sees in one pass."""
    names = {module: name for name, module in model.named_modules()}
    seen: list[str] = []
    handle = register(lambda module, *_: seen.append(names[module]))
    try:
        with torch.set_grad_enabled(train):
            model.train(train)(x)
    finally:
        handle.remove()
    return seen


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("register", GLOBAL_HOOKS.values(), ids=GLOBAL_HOOKS)
def test_a_global_hook_sees_every_module(register: Any, train: bool) -> None:
    ours, theirs = small_pair()
    expected = called_under(register, theirs, image(), train)
    assert "layer3.0.downsample.1" in expected
    assert called_under(register, ours, image(), train) == expected


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_flops_are_counted_as_torchvisions_by_module(train: bool) -> None:
    counts = []
    for model in small_pair():
        counter = FlopCounterMode(display=False)
        with counter, torch.set_grad_enabled(train):
            y = model.train(train)(image())
            if train:
                y.sum().backward()
        counts.append({name.replace("ResNet.", ""): dict(found) for name, found in counter.get_flop_counts().items()})
    ours, theirs = counts
    assert ours == theirs
    assert sum(theirs["Global"].values()) > 0
