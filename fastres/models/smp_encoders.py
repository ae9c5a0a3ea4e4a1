"""Counterpart of segmentation-models-pytorch's ResNet encoder. Needs segmentation-models-pytorch."""

from __future__ import annotations

from typing import Any

from segmentation_models_pytorch.encoders import resnet as smp
from torch import Tensor, nn

from .. import fused
from . import chain
from .resnet import Carrier

_STAGES = ("relu", "layer1", "layer2", "layer3", "layer4")  # whose outputs are the features, by depth


class ResNetEncoder(smp.ResNetEncoder, Carrier):
    """The image and up to five feature maps, as the package's own class returns them."""

    plain_class = smp.ResNetEncoder
    takes_image = True

    def forward(self, x: Tensor) -> list[Tensor]:
        x = fused.normalize(x, self.conv1, self.pixels)  # the first feature is the image itself
        wanted = {name: name for name in _STAGES[: self._depth]}
        return [x, *chain.run(x, encoder_layers(self), wanted, backend=self.backend_name)[1].values()]


def encoder_layers(encoder: Any) -> list[tuple[str, nn.Module]]:
    names = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]
    count = 3 if encoder._depth == 1 else 3 + encoder._depth
    return [(name, getattr(encoder, name)) for name in names[:count]]
