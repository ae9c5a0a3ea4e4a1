"""torchvision's detectors on a fastres body: the same losses and gradients, step after step.

In float64, where an error of logic is larger than rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import image, randomize
from tolerance import assert_right, to_oracle
from torch import Tensor, nn
from torchvision.models import resnet as tv
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

import fastres

SIZE = {"min_size": 64, "max_size": 96, "num_classes": 4}


def faster_rcnn(body: nn.Module) -> nn.Module:
    fpn = _resnet_fpn_extractor(body, 5, extra_blocks=LastLevelMaxPool())
    return FasterRCNN(fpn, rpn_pre_nms_top_n_train=50, rpn_post_nms_top_n_train=20, box_detections_per_img=5, **SIZE)


def retina_net(body: nn.Module) -> nn.Module:
    extra = LastLevelP6P7(256, 256)
    return RetinaNet(_resnet_fpn_extractor(body, 5, returned_layers=[2, 3, 4], extra_blocks=extra), **SIZE)


def body(ours: bool, norm_layer: Any) -> nn.Module:
    """A narrow ResNet of five bottlenecks."""
    kind, block = (fastres.ResNet, fastres.Bottleneck) if ours else (tv.ResNet, tv.Bottleneck)
    return kind(block, [1, 2, 1, 1], width_per_group=16, norm_layer=norm_layer)


def examples() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    images = [torch.rand(3, 90, 110), torch.rand(3, 100, 80)]
    boxes = torch.tensor([[10.0, 12.0, 50.0, 60.0], [30.0, 5.0, 75.0, 80.0]])
    return images, [{"boxes": boxes, "labels": torch.tensor([1, 3])}, {"boxes": boxes[:1], "labels": torch.tensor([2])}]


def train(model: nn.Module, steps: int) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """(losses of each step, gradients of the last) under SGD; anchors are sampled alike."""
    model.double()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)
    torch.manual_seed(7)
    images, targets = examples()
    images = [image.double() for image in images]
    targets = [{name: t.double() if t.is_floating_point() else t for name, t in target.items()} for target in targets]
    model.train()
    losses = []
    for _ in range(steps):
        found = model(images, copy.deepcopy(targets))
        optimizer.zero_grad()
        sum(found.values()).backward()
        optimizer.step()
        losses.append({name: loss.item() for name, loss in found.items()})
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("detector", [faster_rcnn, retina_net])
@pytest.mark.parametrize("norm_layer", [FrozenBatchNorm2d, nn.BatchNorm2d])
def test_detectors_train_as_on_torchvisions_body(detector: Callable[..., nn.Module], norm_layer: Any) -> None:
    theirs = detector(body(False, norm_layer))
    ours = detector(body(True, norm_layer))
    ours.load_state_dict(theirs.state_dict())
    losses, gradients = train(ours, 2)
    expected_losses, expected_gradients = train(theirs, 2)
    for found, expected in zip(losses, expected_losses, strict=True):
        assert found == pytest.approx(expected, rel=1e-7)
    assert losses[-1] != losses[0]
    assert gradients.keys() == expected_gradients.keys()
    assert any(name.startswith("backbone.body.layer2") for name in gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], msg=name)
    for (name, a), b in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


@pytest.mark.parametrize("detector", [faster_rcnn, retina_net])
def test_an_optimized_detector_trains_on(detector: Callable[..., nn.Module]) -> None:
    theirs = detector(body(False, FrozenBatchNorm2d))
    ours = fastres.optimize(copy.deepcopy(theirs))
    assert any(name.startswith("backbone.body") for name in ours.fastres_report.converted)
    losses, gradients = train(ours, 2)
    expected_losses, expected_gradients = train(theirs, 2)
    for found, expected in zip(losses, expected_losses, strict=True):
        assert found == pytest.approx(expected, rel=1e-7)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], msg=name)


def test_frozen_layers_fuse_below_trained_ones() -> None:
    """torchvision's default, three trained stages: gradients of the whole backbone by the tolerance rule."""
    theirs = randomize(_resnet_fpn_extractor(body(False, FrozenBatchNorm2d), 3))
    ours = fastres.optimize(copy.deepcopy(theirs))
    oracle = to_oracle(theirs)
    x = image()
    found = []
    for model, batch in ((ours, x), (theirs, x), (oracle, x.double())):
        sum(level.square().mean() for level in model.train()(batch).values()).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert "body.layer2.0.conv1.weight" in found[0]
    assert "body.layer1.0.conv1.weight" not in found[0]
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert_right(gradient, found[1][name], found[2][name], name)


def test_the_body_is_fused_in_evaluation() -> None:
    model = fastres.optimize(faster_rcnn(body(True, FrozenBatchNorm2d))).eval()
    images, _ = examples()
    with torch.no_grad():
        layers = fastres.explain(model.backbone.body, model.transform(images)[0].tensors).layers
    assert {layer.backend for layer in layers} == {"onednn"}
    assert model(images)[0].keys() == {"boxes", "labels", "scores"}
