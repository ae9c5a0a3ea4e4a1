"""Backend `reference`: the plain-PyTorch twins of `fastres.reference`. Runs everything, fuses nothing."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from ..block import ConvBN
from ..folding import require_memory
from .reference_steps import ReferenceSteps
from .registry import Backend
from .steps import Steps


class Reference(Backend):
    name = "reference"
    note = "PyTorch's own operators, one after the other: the specification, not a fast path"
    keeps_parameters = True

    def unsupported(self, x: Tensor, layer: ConvBN) -> str | None:
        return None

    def steps(self) -> Steps:
        return ReferenceSteps()

    def prepare(self, x: Tensor, layer: ConvBN) -> ConvBN:
        require_memory(layer.tensors())
        return layer

    def conv(
        self, x: Tensor, prepared: ConvBN, relu: bool, residual: Tensor | None = None, overwrite: bool = False
    ) -> Tensor:
        return reference.conv_bn_act(x, prepared, residual, relu)
