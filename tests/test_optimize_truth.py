"""`optimize` says what will fuse and what will not, and `explain` sees just that; the rest runs as it is."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
from frozen_norms import DetectronFrozen, DetrFrozen, NearlyFrozen
from models import image, randomize
from steps import assert_same_step
from test_pixels import Normalized, pixels
from timm.layers import DropPath
from tolerance import assert_same_function
from torch import Tensor, nn
from torch.nn.utils import prune, weight_norm
from torchvision.models import resnet as tv
from torchvision.models._utils import IntermediateLayerGetter

import fastres
from fastres.models.resnet import Stage
from fastres.optimize import OptimizationReport


def small(block: Any = tv.Bottleneck, **kwargs: Any) -> tv.ResNet:
    kwargs = {"width_per_group": 16, **kwargs} if block is tv.Bottleneck else kwargs
    return tv.ResNet(block, [1, 2, 1, 1], **kwargs)


def timm_small(name: str = "resnet10t", **kwargs: Any) -> nn.Module:
    return timm.create_model(name, pretrained=False, **kwargs)


def optimized(plain: nn.Module, **kwargs: Any) -> tuple[nn.Module, OptimizationReport]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fast = fastres.optimize(plain, **kwargs)
    return fast, fast.fastres_report  # type: ignore[return-value]


def fused_layers(model: nn.Module, x: Tensor) -> set[str]:
    return {layer.name for layer in fastres.explain(model, x).layers if layer.backend == "onednn"}


def promised(model: nn.Module, report: OptimizationReport) -> set[str]:
    """The convolutions that fuse by the report: those whose next module in a list is converted, without a limit."""
    left, limits = dict(report.left), dict(report.limits)
    found = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and name not in limits:
            parents = [name]
            while parents[-1]:
                parents.append(parents[-1].rpartition(".")[0])
            first = next((parent for parent in parents if parent in left or parent in report.converted), None)
            if first in report.converted:
                found.add(name)
    return found


def _one_group_norm(model: Any) -> Any:
    model.layer2[0].bn2 = nn.GroupNorm(4, model.layer2[0].bn2.num_features)
    return model


def _one_silu(model: Any) -> Any:
    model.layer2[0].relu = nn.SiLU()
    return model


def _hook(model: Any) -> Any:
    model.layer2[0].conv2.register_forward_hook(lambda _, x, y: y * 2)
    return model


def _stem_of_two(model: Any) -> Any:
    model.conv1 = nn.Sequential(model.conv1, nn.Identity())
    return model


def _own_block(model: Any) -> Any:
    model.layer3 = nn.Sequential(nn.Conv2d(128, 256, 1), tv.BasicBlock(256, 256))
    return model


group_norm = partial(nn.GroupNorm, 8)
MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": small,
    "GroupNorm": lambda: small(norm_layer=group_norm),
    "one GroupNorm": lambda: _one_group_norm(small()),
    "one SiLU": lambda: _one_silu(small()),
    "a hook": lambda: _hook(small()),
    "a stem of two": lambda: _stem_of_two(small()),
    "a block of one's own": lambda: _own_block(tv.ResNet(tv.BasicBlock, [1, 1, 1, 1])),
    "DETR's norm": lambda: small(norm_layer=DetrFrozen),
    "Detectron2's norm": lambda: small(norm_layer=DetectronFrozen),
    "a norm of another formula": lambda: small(norm_layer=NearlyFrozen),
    "no statistics": lambda: small(norm_layer=partial(nn.BatchNorm2d, track_running_stats=False)),
    "reflected": lambda: _padded(small()),
    "layers, bn1 wanted": lambda: IntermediateLayerGetter(small(), {"bn1": "a", "layer2": "b"}),
    "timm": timm_small,
    "timm SiLU": lambda: timm_small(act_layer=nn.SiLU),
    "timm d": lambda: timm_small("resnet18d"),
    "timm SE": lambda: timm_small("seresnet18"),
    "timm selective kernels": lambda: timm_small("skresnet18"),
    "timm Res2Net": lambda: timm_small("res2net50_48w_2s"),
    "timm ResNeSt": lambda: timm_small("resnest14d"),
    "timm drop path": lambda: timm_small(drop_path_rate=0.5),
    "timm features": lambda: timm_small(features_only=True),
    "timm some features": lambda: timm_small(features_only=True, out_indices=(2, 4)),
}


def _padded(model: Any) -> Any:
    model.layer1[0].conv2.padding_mode = "reflect"
    model.layer1[0].conv2._reversed_padding_repeated_twice = [1, 1, 1, 1]
    return model


@pytest.mark.parametrize("name", MODELS)
def test_what_is_promised_fuses(name: str) -> None:
    plain = randomize(MODELS[name]()).eval()
    fast, report = optimized(plain)
    assert_same_function(fast, plain, image())
    fused = fused_layers(fast, image())
    assert fused == promised(fast, report), str(report)
    blocks = {n for n, m in plain.named_modules() if hasattr(m, "conv1") and hasattr(m, "bn2")}
    assert blocks <= {*report.converted} | {n for n, _ in report.left}, "every block is in one list"
    assert not {*report.converted} & {n for n, _ in report.left}
    assert bool(report.converted) == bool(fused)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("GroupNorm", "GroupNorm is not exactly one of BatchNorm2d, SyncBatchNorm, FrozenBatchNorm2d"),
        ("timm SiLU", "SiLU is not exactly ReLU"),
        ("timm selective kernels", "SelectiveKernelBasic is not a plain residual block"),
        ("timm Res2Net", "Bottle2neck is not a plain residual block"),
        ("timm ResNeSt", "ResNestBottleneck is not a plain residual block"),
    ],
)
def test_no_block_can_fuse(name: str, reason: str) -> None:
    plain = randomize(MODELS[name]()).eval()
    with pytest.warns(UserWarning, match="fastres.optimize left"):
        fast = fastres.optimize(plain)
    left = dict(fast.fastres_report.left)
    assert all(left[n] == reason for n, m in plain.named_modules() if hasattr(m, "conv1") and hasattr(m, "bn2"))
    assert f"left layer1.0: {reason}" in repr(fast.fastres_report)


def test_a_part_that_cannot_fuse_is_named() -> None:
    with pytest.warns(UserWarning, match=r"fastres.optimize converted all but layer2\.0\.conv2: GroupNorm is not"):
        fast = fastres.optimize(MODELS["one GroupNorm"]())
    report = fast.fastres_report
    reason = "GroupNorm is not exactly one of BatchNorm2d, SyncBatchNorm, FrozenBatchNorm2d"
    assert report.left == ()
    assert report.limits == (("layer2.0.conv2", reason),)
    assert f"limited layer2.0.conv2: {reason}" in str(report)


# --- modes


@pytest.mark.parametrize("made_in", [False, True])
def test_drop_path_counts_by_what_it_is(made_in: bool) -> None:
    plain = randomize(timm_small("resnet18", drop_path_rate=0.5)).train(made_in)
    fast, report = optimized(plain)
    assert report.left == ()
    assert ("layer4.1", "it has drop_path: DropPath: it fuses in evaluation only") in report.limits
    convolutions = {name for name, module in plain.named_modules() if isinstance(module, nn.Conv2d)}
    assert fused_layers(fast.eval(), image()) == convolutions
    assert_same_function(fast, plain.eval(), image())
    x = image().double()
    results = []
    for model in (fast.double().train(), copy.deepcopy(plain).double().train()):
        torch.manual_seed(3)
        results.append(model(x))
    torch.testing.assert_close(*results)
    assert not torch.equal(results[0], fast(x)), "paths are dropped"


def test_drop_path_of_nothing_fuses_in_training() -> None:
    plain = randomize(timm_small())
    for block in plain.modules():
        if hasattr(block, "drop_path"):
            block.drop_path = DropPath(0.0)
    fast, report = optimized(copy.deepcopy(plain))
    assert report.limits == ()
    assert_same_step(fast, plain, image())


def test_another_class_in_the_place_of_drop_path_is_called() -> None:
    class Halved(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 0.5

    plain = randomize(timm_small()).eval()
    plain.layer2[0].drop_path = Halved()
    fast, report = optimized(plain)
    assert dict(report.left)["layer2.0"] == "it has drop_path: Halved"
    assert_same_function(fast, plain, image())


# --- timm's feature extractors


@pytest.mark.parametrize("name", ["resnet18", "resnet10t", "resnet18d"])
@pytest.mark.parametrize("cls", ["list", "dict", "getter", "hook"])
def test_features_only(name: str, cls: str) -> None:
    plain = randomize(timm_small(name, features_only=True, feature_cls=cls)).eval()
    fast, _ = optimized(plain)
    assert_same_function(fast, plain, image())
    wanted = {n for n, m in plain.named_modules() if isinstance(m, nn.Conv2d)}
    if cls != "hook":  # whose hook on the stem's activation must be called
        assert fused_layers(fast, image()) == wanted


@pytest.mark.parametrize("cls", ["list", "dict", "getter"])
def test_features_only_trains(cls: str) -> None:
    plain = randomize(timm_small(features_only=True, feature_cls=cls)).double().train()
    fast, _ = optimized(copy.deepcopy(plain))
    x = image().double()
    for a, b in zip(*(_values(model(x)) for model in (fast, plain)), strict=True):
        torch.testing.assert_close(a, b)
    for model in (fast, plain):
        sum(value.square().mean() for value in _values(model(x))).backward()
    for a, b in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    for a, b in zip(fast.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def _values(found: Any) -> list[Tensor]:
    return list(found.values()) if isinstance(found, dict) else list(found)


@pytest.mark.parametrize("name", ["resnet18", "resnet18d"])
@pytest.mark.parametrize("cls", ["list", "getter"])
def test_features_of_8_bit_pixels(name: str, cls: str) -> None:
    plain = randomize(timm_small(name, features_only=True, feature_cls=cls)).eval()
    fast, _ = optimized(plain, input="uint8")
    assert_same_function(fast, Normalized(plain), pixels(1, 3, 64, 64))


@pytest.mark.parametrize(
    "arguments",
    [{}, {"indices": [0, 2], "intermediates_only": True}, {"indices": 1}, {"indices": [1], "stop_early": True}],
    ids=str,
)
def test_forward_intermediates(arguments: dict[str, Any]) -> None:
    plain = randomize(timm_small()).eval()
    fast, _ = optimized(plain)
    assert_same_function(partial(fast.forward_intermediates, **arguments), _Intermediates(plain, arguments), image())
    eight_bits, _ = optimized(plain, input="uint8")
    x = pixels(1, 3, 64, 64)
    assert_same_function(
        partial(eight_bits.forward_intermediates, **arguments), Normalized(_Intermediates(plain, arguments)), x
    )


class _Intermediates(nn.Module):
    def __init__(self, model: nn.Module, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.arguments = model, arguments

    def forward(self, x: Tensor) -> Any:
        return self.model.forward_intermediates(x, **self.arguments)


# --- models that hold more than modules


def test_a_closure_is_respected() -> None:
    plain = randomize(small()).eval()
    forward = plain.forward
    plain.forward = lambda x: forward(x) * 0.5  # type: ignore[method-assign]
    for inplace in (False, True):
        fast, report = optimized(plain, inplace=inplace)
        elsewhere = "" if inplace else " and calls modules of another model; try inplace=True"
        assert dict(report.left)[""] == f"its forward was replaced on this instance{elsewhere}"
        assert type(fast) is tv.ResNet
        x = image()
        with torch.no_grad():
            assert torch.equal(fast(x), fast.forward(x))
            torch.testing.assert_close(fast(x), tv.ResNet.forward(plain, x) * 0.5)


@pytest.mark.parametrize("name", ["forward", "_forward_impl"])
def test_a_replaced_method_of_the_class_is_respected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = randomize(small()).eval()
    original = getattr(tv.ResNet, name)
    monkeypatch.setattr(tv.ResNet, name, lambda self, x: original(self, x) * 0.5)
    fast, report = optimized(plain)
    assert dict(report.left)[""] == f"the {name} of class ResNet was replaced"
    assert_same_function(fast, plain, image())


def test_a_block_with_a_forward_of_its_own_stays_in_a_fast_stage() -> None:
    plain = randomize(small()).eval()
    block = plain.layer2[1]
    block.forward = lambda x: x * 0.5
    fast, report = optimized(plain)
    assert dict(report.left) == {"layer2.1": "its forward was replaced on this instance"}
    assert type(fast.layer2) is Stage
    assert_same_function(fast, _Halved(plain), image())


class _Halved(nn.Module):
    """The same with the replaced forward written as a module, which a float64 copy keeps."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)

        class Half(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x * 0.5

        self.model.layer2[1] = Half()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def _weight_norm(model: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weight_norm(model.layer1[0].conv1)


def _pruned(model: Any) -> None:
    prune.random_unstructured(model.layer1[0].conv1, "weight", 0.5)


def _kept_result(model: Any) -> None:
    model.last = [model.fc(torch.zeros(1, model.fc.in_features))]


@pytest.mark.parametrize("change", [_weight_norm, _pruned, _kept_result])
def test_tensors_that_are_no_leaves(change: Callable[[Any], None]) -> None:
    torch.manual_seed(1)
    plain = randomize(small()).eval()
    change(plain)
    fast, report = optimized(plain)
    assert "layer1.0" in report.converted
    assert [a is b for a, b in zip(fast.parameters(), plain.parameters(), strict=True)].count(False) == 0
    with torch.no_grad():
        torch.testing.assert_close(fast(image() * 0 + 1), plain(image() * 0 + 1), rtol=1e-4, atol=1e-4)
    assert type(plain) is tv.ResNet
