"""Backend `reference`: the plain-PyTorch twins of `fastres.reference`. Runs everything, fuses nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..layer import ConvBN
from .registry import Backend


class Reference(Backend):
    name = "reference"
    note = "PyTorch's own operators, one after the other: the specification, not a fast path"

    def unsupported(self, x: Tensor, layer: ConvBN) -> str | None:
        return None

    def conv(
        self, x: Tensor, layer: ConvBN, relu: bool, residual: Tensor | None = None, overwrite: bool = False
    ) -> Tensor:
        y = reference.conv_bn_act(x, layer, residual, relu)
        return y.contiguous(memory_format=torch.channels_last)
