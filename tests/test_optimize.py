"""`optimize`: torchvision's and timm's models become ours, share their parameters, and compute the same."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from models import VARIANTS, image, randomize
from steps import assert_same_step
from tolerance import assert_same_function
from torch import nn
from torchvision.models import resnet as tv
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d

import fastres
from fastres.models.resnet import Carrier, Stage
from fastres.models.torchvision_bodies import LayerGetter


def small(**kwargs: Any) -> tv.ResNet:
    model = tv.ResNet(tv.Bottleneck, [1, 2, 1, 1], **{"width_per_group": 16, **kwargs})
    return randomize(model).eval()  # type: ignore[return-value]


def fused_layers(model: nn.Module, x: Any) -> set[str]:
    return {layer.name for layer in fastres.explain(model, x).layers if layer.backend == "onednn"}


def convolutions(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}


# --- torchvision


def test_every_torchvision_variant_is_converted_as_a_whole() -> None:
    for name, build in VARIANTS:
        with torch.device("meta"):
            fast, built = fastres.optimize(build()), getattr(fastres, name)()
        assert isinstance(fast, fastres.ResNet)
        assert [type(m) for m in fast.modules()][1:] == [type(m) for m in built.modules()][1:], name
        assert fast.fastres_report.left == ()


@pytest.mark.parametrize("build", [tv.resnet18, tv.resnet50, tv.resnext50_32x4d, tv.wide_resnet50_2])
def test_torchvision(build: Callable[..., tv.ResNet]) -> None:
    plain = randomize(build()).eval()
    fast = fastres.optimize(plain)
    assert type(plain) is tv.ResNet
    assert isinstance(fast, fastres.ResNet)
    assert fused_layers(fast, image()) == convolutions(plain)
    assert_same_function(fast, plain, image())


def test_frozen_batch_norm() -> None:
    plain = small(norm_layer=FrozenBatchNorm2d)
    fast = fastres.optimize(plain)
    assert_same_function(fast, plain, image())
    assert fused_layers(fast, image()) == convolutions(plain)


def test_dilated_and_grouped() -> None:
    plain = small(replace_stride_with_dilation=[False, True, True], groups=4)
    assert_same_function(fastres.optimize(plain), plain, image())


def _segmentation(name: str) -> nn.Module:
    return getattr(torchvision.models.segmentation, name)(weights=None, weights_backbone=None, num_classes=5)


@pytest.mark.parametrize("name", ["deeplabv3_resnet50", "fcn_resnet50"])
def test_segmentation(name: str) -> None:
    plain = randomize(_segmentation(name)).eval()
    fast = fastres.optimize(plain)
    assert isinstance(fast.backbone, LayerGetter)
    x = image(2, 3, 64, 64)
    assert_same_function(fast, plain, x)
    ours = {name for name in convolutions(plain) if name.startswith("backbone.")}
    assert fused_layers(fast, x) == ours
    assert fast.fastres_report.left == ()


def test_detection() -> None:
    plain = torchvision.models.detection.retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=5, min_size=96, max_size=96, score_thresh=0.0
    )
    randomize(plain.backbone)
    plain.eval()
    fast = fastres.optimize(plain)
    assert_same_function(fast.backbone, plain.backbone, image())
    x = torch.rand(3, 80, 96)
    with torch.no_grad():
        results, expected = (model([x]) for model in (fast, plain))
    assert [r.keys() for r in results] == [e.keys() for e in expected]
    assert len(results[0]["boxes"]) == len(expected[0]["boxes"])


@pytest.mark.parametrize("first", ["conv1", "relu", "maxpool", "layer1"])
def test_layer_getter(first: str) -> None:
    """Whatever is taken out first, the stem's own layers included."""
    plain = IntermediateLayerGetter(small(), {first: "a", "layer2": "b", "layer4": "c"})
    fast = fastres.optimize(plain)
    assert isinstance(fast, LayerGetter)
    assert_same_function(fast, plain, image())


def test_a_part_of_a_model() -> None:
    plain = small()
    for name in ("layer2", "layer2.1"):
        fast = fastres.optimize(plain.get_submodule(name))
        assert isinstance(fast, Carrier)
        x = image(2, plain.get_submodule(name + ("" if name[-2] == "." else ".0")).conv1.in_channels, 16, 16)
        assert_same_function(fast, plain.get_submodule(name), x)


def test_a_model_within_a_model() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = small()
            self.score = nn.Linear(2000, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.score(torch.cat([self.trunk(x), self.trunk(x.flip(3))], 1))

    plain = Siamese().eval()
    fast = fastres.optimize(plain)
    assert type(fast) is Siamese
    assert isinstance(fast.trunk, fastres.ResNet)
    assert_same_function(fast.trunk, plain.trunk, image())


# --- timm


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet50d", "resnet18d", "resnet26t", "resnext50_32x4d"]
)
def test_timm(name: str) -> None:
    plain = randomize(timm.create_model(name, pretrained=False)).eval()
    fast = fastres.optimize(plain)
    assert isinstance(fast, timm.models.ResNet)
    assert fast.fastres_report.left == ()
    assert_same_function(fast, plain, image())
    assert fused_layers(fast, image()) == convolutions(plain)


def test_timm_gradients() -> None:
    plain = randomize(timm.create_model("resnet18d", pretrained=False))
    fast = fastres.optimize(copy.deepcopy(plain))
    assert_same_step(fast, plain, image())
    assert_same_function(fast.float().eval(), plain.float().eval(), image())


def test_timm_features() -> None:
    plain = randomize(timm.create_model("resnet18", pretrained=False, num_classes=0, global_pool="")).eval()
    fast = fastres.optimize(plain)
    assert fast.forward_features(image()).shape == (2, 512, 2, 2)
    assert_same_function(fast, plain, image())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("seresnet18", "it has attention: SEModule"),
        ("resnetblur18", "it has aa: BlurPool2d"),
    ],
)
def test_timm_blocks_that_are_left(name: str, reason: str) -> None:
    plain = randomize(timm.create_model(name, pretrained=False)).eval()
    with pytest.warns(UserWarning, match="fastres.optimize left"):
        fast = fastres.optimize(plain)
    assert any(reason in why for _, why in fast.fastres_report.left)
    assert reason in str(fast.fastres_report)
    assert_same_function(fast, plain, image())


def test_timm_drop_path_is_left_in_training_only() -> None:
    plain = randomize(timm.create_model("resnet18", pretrained=False, drop_path_rate=0.5)).eval()
    fast = fastres.optimize(plain)
    assert_same_function(fast, plain, image())
    results = []
    for model in (fast, copy.deepcopy(plain)):
        torch.manual_seed(5)
        results.append(model.double().train()(torch.rand(4, 3, 64, 64, dtype=torch.float64)))
    torch.testing.assert_close(*results)


# --- sharing


def test_training_one_trains_both() -> None:
    plain = small()
    fast = fastres.optimize(plain)
    for (name, a), b in zip(fast.named_parameters(), plain.parameters(), strict=True):
        assert a is b, name
    for (name, a), b in zip(fast.named_buffers(), plain.buffers(), strict=True):
        assert a is b, name
    assert_same_function(fast, plain, image())
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    plain.train()(image()).square().mean().backward()
    optimizer.step()
    assert_same_function(fast, plain.eval(), image())
    optimizer = torch.optim.AdamW(fast.parameters(), lr=1e-2, fused=True)
    fast.train()(image()).square().mean().backward()
    optimizer.step()
    assert_same_function(fast.eval(), plain, image())


def test_the_original_stays_as_it_is() -> None:
    plain = small()
    before = [(name, type(module), module.training) for name, module in plain.named_modules()]
    fast = fastres.optimize(plain)
    assert fast is not plain
    assert [(name, type(module), module.training) for name, module in plain.named_modules()] == before
    fast.fc = nn.Identity()
    assert isinstance(plain.fc, nn.Linear)


def test_inplace() -> None:
    plain = small()
    expected = copy.deepcopy(plain)
    fast = fastres.optimize(plain, inplace=True)
    assert fast is plain
    assert isinstance(plain.layer1, Stage)
    assert_same_function(fast, expected, image())


@pytest.mark.parametrize("inplace", [False, True])
def test_state_dict_is_unchanged(inplace: bool) -> None:
    plain = small()
    keys = list(plain.state_dict())
    fast = fastres.optimize(plain, inplace=inplace)
    assert list(fast.state_dict()) == keys
    fast.load_state_dict(small().state_dict())
    assert "fastres_report" not in dict(fast.named_modules())


def test_idempotent() -> None:
    plain = small()
    once = fastres.optimize(plain)
    twice = fastres.optimize(once)
    assert [type(m) for m in twice.modules()] == [type(m) for m in once.modules()]
    assert twice.fastres_report.converted == ()
    assert_same_function(twice, plain, image())


def test_hooks_and_mode_are_kept() -> None:
    plain = small()
    plain.layer1.train()
    plain.layer2[0].register_forward_hook(lambda _, x, y: y * 2)
    fast = fastres.optimize(plain)
    assert [m.training for m in fast.modules()] == [m.training for m in plain.modules()]
    plain.layer1.eval()
    fast.layer1.eval()
    assert_same_function(fast, plain, image())


def test_backend() -> None:
    fast = fastres.optimize(small(), backend="reference")
    assert fast.backend == "reference"
    assert {layer.backend for layer in fastres.explain(fast, image()).layers} == {"reference"}
    assert fastres.optimize(fast).backend is None


def test_an_optimized_model_can_be_pickled() -> None:
    plain = small()
    fast = pickle.loads(pickle.dumps(fastres.optimize(plain)))
    assert_same_function(fast, plain, image())


# --- what is left


def test_a_subclass_is_left_and_reported() -> None:
    class Odd(tv.Bottleneck):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 0.5

    plain = tv.ResNet(Odd, [1, 1, 1, 1], width_per_group=16)  # type: ignore[arg-type]
    randomize(plain).eval()
    with pytest.warns(UserWarning, match="left 4 modules as they are: layer1.0"):
        fast = fastres.optimize(plain)
    assert [name for name, _ in fast.fastres_report.left] == ["layer1.0", "layer2.0", "layer3.0", "layer4.0"]
    assert "Odd is a subclass of torchvision.models.resnet.Bottleneck" in str(fast.fastres_report)
    assert_same_function(fast, plain, image())
    assert fused_layers(fast, image()) == {"conv1"}


def test_a_model_without_a_residual_block() -> None:
    with pytest.warns(UserWarning, match="found no ResNet block in this Sequential"):
        fast = fastres.optimize(nn.Sequential(nn.Linear(2, 2)))
    assert fast.fastres_report.converted == ()


def test_no_module() -> None:
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got str"):
        fastres.optimize("resnet50")  # type: ignore[type-var]
