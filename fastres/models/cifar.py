"""The paper's networks for CIFAR-10 (section 4.2): 6n+2 layers, three stages of n blocks of 16, 32 and 64 channels."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from .. import fused
from ..backends import registry
from . import shortcuts
from .plain import PlainBlock
from .resnet import BasicBlock, Model, Stage, blocks_of


class ResNet(nn.Module, Model):
    """A residual network of `depth` = 6n+2 layers for small images.

    Args:
        depth: number of weighted layers: 20, 32, 44, 56, 110, 1202 in the paper; any 6n+2 from 8 on.
        num_classes: outputs of the classifier.
        in_channels: channels of the images.
        shortcut: the paper's option, "A" (its choice for these networks), "B" or "C"; see `fastres.ResNet`.
        norm_layer: called with a number of channels; None for `nn.BatchNorm2d`.
        backend: as in `fastres.ResNet`.

    Shape:
        [N, in_channels, H, W], any size (the paper's is 32 x 32) and layout, to [N, num_classes].

    Raises:
        ValueError: for a depth that is not 6n+2, an unknown shortcut or backend.
        TypeError, ValueError: in a forward, for an input of another type, rank, channel count, dtype or device.
    """

    block: ClassVar[type[BasicBlock | PlainBlock]] = BasicBlock

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        shortcut: str = "A",
        norm_layer: Any = None,
        backend: str | None = None,
    ) -> None:
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth: expected 6n+2 with n >= 1 (8, 14, 20, ...), got {depth}")
        registry.check_name(backend)
        shortcuts.check_option(shortcut)
        super().__init__()
        norm_layer = norm_layer or nn.BatchNorm2d
        self.depth = depth
        self.conv1 = nn.Conv2d(in_channels, 16, kernel_size=3, padding=1, bias=False)
        self.bn1 = norm_layer(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._make_layer(16, 16, norm_layer)
        self.layer2 = self._make_layer(16, 32, norm_layer)
        self.layer3 = self._make_layer(32, 64, norm_layer)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(64, num_classes)
        if self.block is BasicBlock:
            blocks = [block for stage in (self.layer1, self.layer2, self.layer3) for block in stage]
            shortcuts.set_shortcuts(blocks, shortcut, norm_layer)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.backend = backend

    def _make_layer(self, inplanes: int, planes: int, norm_layer: Any) -> Stage:
        stride, downsample = 1, None
        if inplanes != planes:
            stride = 2
            downsample = nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), norm_layer(planes))
        blocks = [self.block(inplanes, planes, stride, downsample, norm_layer=norm_layer)]
        blocks += [self.block(planes, planes, norm_layer=norm_layer) for _ in range((self.depth - 2) // 6 - 1)]
        return Stage(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        fused.check_input(x, self.conv1)
        x = fused.conv_bn_act(x, self.conv1, self.bn1, act=self.relu, backend=self.backend_name)
        x = fused.stage(x, blocks_of(self.layer1, self.layer2, self.layer3), backend=self.backend_name)
        return fused.head(x, self.avgpool, self.fc, backend=self.backend_name)


class PlainNet(ResNet):
    """The same network without shortcuts: the paper's plain counterpart. Arguments as `ResNet`, less `shortcut`."""

    block = PlainBlock

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        norm_layer: Any = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(depth, num_classes, in_channels=in_channels, norm_layer=norm_layer, backend=backend)


class _ResNetRow(ResNet):
    """A row of table 6: its depth, and everything else as `ResNet`."""

    layers: ClassVar[int]

    def __init__(self, num_classes: int = 10, **kwargs: Any) -> None:
        super().__init__(self.layers, num_classes, **kwargs)


class _PlainNetRow(PlainNet):
    """A plain counterpart of a row of table 6: its depth, and everything else as `PlainNet`."""

    layers: ClassVar[int]

    def __init__(self, num_classes: int = 10, **kwargs: Any) -> None:
        super().__init__(self.layers, num_classes, **kwargs)


class ResNet20(_ResNetRow):
    layers = 20


class ResNet32(_ResNetRow):
    layers = 32


class ResNet44(_ResNetRow):
    layers = 44


class ResNet56(_ResNetRow):
    layers = 56


class ResNet110(_ResNetRow):
    layers = 110


class ResNet1202(_ResNetRow):
    layers = 1202


class PlainNet20(_PlainNetRow):
    layers = 20


class PlainNet32(_PlainNetRow):
    layers = 32


class PlainNet44(_PlainNetRow):
    layers = 44


class PlainNet56(_PlainNetRow):
    layers = 56
