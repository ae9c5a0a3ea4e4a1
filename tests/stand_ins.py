"""Stand-ins for models of packages that the tests do not install, with the same module trees and the same results.

They are put where `fastres.models` imports the packages from, so that `optimize` finds them as it would the originals.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torchvision.models import resnet as tv

HF = "transformers.models.resnet.modeling_resnet"
SMP = "segmentation_models_pytorch.encoders.resnet"


class ResNetConvLayer(nn.Module):
    def __init__(self, cin: int, cout: int, kernel: int = 3, stride: int = 1, act: Any = nn.ReLU) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False)
        self.normalization = nn.BatchNorm2d(cout)
        self.activation = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.normalization(self.convolution(x)))


class ResNetShortCut(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(cin, cout, 1, stride, bias=False)
        self.normalization = nn.BatchNorm2d(cout)

    def forward(self, x: Tensor) -> Tensor:
        return self.normalization(self.convolution(x))


class _Layer(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, act: Any) -> None:
        super().__init__()
        grows = cin != cout or stride != 1
        self.shortcut = ResNetShortCut(cin, cout, stride) if grows else nn.Identity()
        self.layer = self._branch(cin, cout, stride)
        self.activation = act()


class ResNetBasicLayer(_Layer):
    def _branch(self, cin: int, cout: int, stride: int) -> nn.Sequential:
        return nn.Sequential(ResNetConvLayer(cin, cout, 3, stride), ResNetConvLayer(cout, cout, act=nn.Identity))

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.layer(x) + self.shortcut(x))


class ResNetBottleNeckLayer(_Layer):
    def _branch(self, cin: int, cout: int, stride: int) -> nn.Sequential:
        width = cout // 4
        first, middle = ResNetConvLayer(cin, width, 1), ResNetConvLayer(width, width, 3, stride)
        return nn.Sequential(first, middle, ResNetConvLayer(width, cout, 1, act=nn.Identity))

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.layer(x) + self.shortcut(x))


class ResNetStage(nn.Module):
    def __init__(self, block: Any, cin: int, cout: int, stride: int, depth: int, act: Any) -> None:
        super().__init__()
        first = block(cin, cout, stride, act)
        self.layers = nn.Sequential(first, *(block(cout, cout, 1, act) for _ in range(depth - 1)))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class ResNetEmbeddings(nn.Module):
    def __init__(self, channels: int, act: Any) -> None:
        super().__init__()
        self.embedder = ResNetConvLayer(3, channels, 7, 2, act)
        self.pooler = nn.MaxPool2d(3, 2, 1)
        self.num_channels = 3

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.num_channels:
            raise ValueError("channel dimension of the pixel values")
        return self.pooler(self.embedder(x))


class HuggingFace(nn.Module):
    """A narrow ResNetModel: two stages, the hidden state pooled."""

    def __init__(self, block: Any = ResNetBottleNeckLayer, act: Any = nn.ReLU) -> None:
        super().__init__()
        self.embedder = ResNetEmbeddings(16, act)
        first, second = ResNetStage(block, 16, 64, 1, 2, act), ResNetStage(block, 64, 128, 2, 2, act)
        self.encoder = nn.ModuleList([first, second])
        self.pooler = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedder(x)
        for stage in self.encoder:
            x = stage(x)
        return self.pooler(x)


class ResNetEncoder(tv.ResNet):
    """segmentation-models-pytorch's: the image, then as many feature maps as `depth` says."""

    def __init__(self, depth: int = 5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._depth = depth
        del self.fc, self.avgpool

    def forward(self, x: Tensor) -> list[Tensor]:
        stem = nn.Sequential(self.conv1, self.bn1, self.relu)
        first = nn.Sequential(self.maxpool, self.layer1)
        features = [x]
        for part in (stem, first, self.layer2, self.layer3, self.layer4)[: self._depth]:
            features.append(part(features[-1]))
        return features


def install() -> None:
    """Makes the stand-ins importable under the packages' names, for this process."""
    for path, kinds in (
        (HF, (ResNetConvLayer, ResNetShortCut, ResNetBasicLayer, ResNetBottleNeckLayer, ResNetStage, ResNetEmbeddings)),
        (SMP, (ResNetEncoder,)),
    ):
        parents = path.split(".")
        for depth in range(1, len(parents) + 1):
            name = ".".join(parents[:depth])
            sys.modules.setdefault(name, ModuleType(name))
            if depth > 1:
                setattr(sys.modules[".".join(parents[: depth - 1])], parents[depth - 1], sys.modules[name])
        for kind in kinds:
            setattr(sys.modules[path], kind.__name__, kind)
