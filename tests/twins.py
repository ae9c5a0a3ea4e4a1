"""Plain twins of the paper's networks, in torch.nn modules and torchvision's blocks alone, to compare ours with."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet as tv


class ZeroPadded(nn.Module):
    """Option A, written with average pooling over single pixels and concatenation instead of a slice and a pad."""

    def forward(self, x: Tensor) -> Tensor:
        kept = F.avg_pool2d(x, kernel_size=1, stride=2)
        return F.pad(kept.permute(0, 2, 3, 1), (0, x.shape[1])).permute(0, 3, 1, 2)


class PlainBlock(tv.BasicBlock):
    """torchvision's basic block without its shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)))


def projection(inplanes: int, planes: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))


def _shortcut(option: str, inplanes: int, planes: int) -> nn.Module | None:
    if option == "plain" or (option != "C" and inplanes == planes):
        return None
    if option == "A":
        return ZeroPadded()
    return projection(inplanes, planes, 1 if inplanes == planes else 2)


def stages(option: str, widths: list[int], depths: list[int]) -> list[nn.Sequential]:
    """Stages of basic blocks; each but the first halves the image. `option` is a shortcut's, or "plain"."""
    block: Any = PlainBlock if option == "plain" else tv.BasicBlock
    built = []
    inplanes = widths[0]
    for planes, depth in zip(widths, depths, strict=True):
        blocks = []
        for _ in range(depth):
            stride = 1 if inplanes == planes else 2
            blocks.append(block(inplanes, planes, stride, _shortcut(option, inplanes, planes)))
            inplanes = planes
        built.append(nn.Sequential(*blocks))
    return built


class Cifar(nn.Module):
    """A network of 6n+2 layers."""

    def __init__(self, n: int, option: str, classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = stages(option, [16, 32, 64], [n] * 3)
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def imagenet(option: str, depths: list[int]) -> tv.ResNet:
    """torchvision's ResNet of basic blocks with the shortcuts of `option`."""
    model = tv.ResNet(tv.BasicBlock, depths)
    model.layer1, model.layer2, model.layer3, model.layer4 = stages(option, [64, 128, 256, 512], depths)
    return model
