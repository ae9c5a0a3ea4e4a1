"""The plain networks that the paper compares with: the residual ones without their shortcuts (figure 3, middle)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torchvision.models import resnet as tv

from .. import fused
from .resnet import Carrier, ResNet


class PlainBlock(tv.BasicBlock, Carrier):
    """Two 3x3 convolutions, each with BatchNorm and ReLU, and no shortcut. Arguments as torchvision's `BasicBlock`."""

    def __init__(
        self, inplanes: int, planes: int, stride: int = 1, downsample: Any = None, *args: Any, **kw: Any
    ) -> None:
        super().__init__(inplanes, planes, stride, None, *args, **kw)

    def forward(self, x: Tensor) -> Tensor:
        x = fused.conv_bn_act(x, self.conv1, self.bn1, act=self.relu, backend=self.backend_name)
        return fused.conv_bn_act(x, self.conv2, self.bn2, act=self.relu, backend=self.backend_name)


class PlainNet(ResNet):
    """A plain network of two convolutions a block, in the ImageNet family's shape.

    Names and shapes in the state dict are those of the residual network with option A, so one loads into the other.

    Args:
        num_classes: outputs of the classifier.
        backend: as in `fastres.ResNet`.
        norm_layer: as in torchvision's `ResNet`.
        **pixels: `input`, `mean` and `std`, as in `fastres.ResNet`.

    Shape and errors as `fastres.ResNet`.
    """

    layers: ClassVar[tuple[int, int, int, int]]

    def __init__(
        self, num_classes: int = 1000, *, backend: str | None = None, norm_layer: Any = None, **pixels: Any
    ) -> None:
        super().__init__(PlainBlock, list(self.layers), num_classes, backend=backend, norm_layer=norm_layer, **pixels)


class PlainNet18(PlainNet):
    layers = (2, 2, 2, 2)


class PlainNet34(PlainNet):
    layers = (3, 4, 6, 3)
