"""torchvision's IntermediateLayerGetter, the body of its detection and segmentation models, with fused layers."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor
from torchvision.models._utils import IntermediateLayerGetter

from . import chain
from .resnet import Carrier


class LayerGetter(IntermediateLayerGetter, Carrier):
    """Counterpart of torchvision's class, to which `fastres.optimize` converts."""

    plain_class = IntermediateLayerGetter
    takes_image = True

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        return chain.run(x, self.items(), self.return_layers, pixels=self.pixels, backend=self.backend_name)[1]
