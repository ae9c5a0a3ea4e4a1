"""Counterparts of the ResNet of Hugging Face's transformers. Needs transformers.

Its blocks keep each convolution and norm in a layer of their own: they are read through it unless it must be called.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.models.resnet import modeling_resnet as hf

from .. import fused
from .resnet import Carrier


@fused.fuses
class _Block(Carrier):
    """What the two kinds of block share."""

    def forward(self, x: Tensor) -> Tensor:
        return fused.residual_block(x, self, backend=self.backend_name)

    def residual_parts(self) -> fused.ResidualParts | None:
        return read_block(self)


class BasicBlock(_Block, hf.ResNetBasicLayer):
    """transformers' ResNetBasicLayer."""

    plain_class = hf.ResNetBasicLayer


class Bottleneck(_Block, hf.ResNetBottleNeckLayer):
    """transformers' ResNetBottleNeckLayer."""

    plain_class = hf.ResNetBottleNeckLayer


class ResNetStage(hf.ResNetStage, Carrier):
    """transformers' ResNetStage: one operator for as many neighbouring blocks as may fuse."""

    plain_class = hf.ResNetStage

    def forward(self, input: Tensor) -> Tensor:
        return fused.stage(input, self.layers, backend=self.backend_name)


class ResNetEmbeddings(hf.ResNetEmbeddings, Carrier):
    """transformers' ResNetEmbeddings: the stem."""

    plain_class = hf.ResNetEmbeddings
    takes_image = True

    def forward(self, pixel_values: Tensor) -> Tensor:
        layer = self.embedder
        if pixel_values.shape[1] != self.num_channels or not _is_exactly(layer, hf.ResNetConvLayer):
            conv = next(m for m in self.modules() if isinstance(m, nn.Conv2d))
            return super().forward(fused.normalize(pixel_values, conv, self.pixels))
        fused.check_input(pixel_values, layer.convolution, self.pixels)
        stem = layer.convolution, layer.normalization, layer.activation, self.pooler
        return fused.stem(pixel_values, *stem, pixels=self.pixels, backend=self.backend_name)


def read_block(block: Any) -> fused.ResidualParts | None:
    """A block's modules, or None where it holds others than transformers builds, or some that must be called."""
    layers = list(block.layer) if _is_exactly(block.layer, nn.Sequential) else []
    if not layers or not all(_is_exactly(layer, hf.ResNetConvLayer) for layer in layers):
        return None
    if not _is_exactly(layers[-1].activation, nn.Identity):
        return None
    shortcut = None
    if not _is_exactly(block.shortcut, nn.Identity):
        if not _is_exactly(block.shortcut, hf.ResNetShortCut):
            return None
        shortcut = _projection(block)
    branch = tuple((layer.convolution, layer.normalization) for layer in layers)
    return fused.ResidualParts(branch, shortcut, (*(layer.activation for layer in layers[:-1]), block.activation))


def _projection(block: Any) -> nn.Sequential:
    """The shortcut's convolution and norm as the nn.Sequential that `fused` reads; kept, but not registered."""
    own = block.shortcut.convolution, block.shortcut.normalization
    kept = block.__dict__.get("_projection_view")
    if kept is None or kept[0] is not own[0] or kept[1] is not own[1]:
        block.__dict__["_projection_view"] = kept = nn.Sequential(*own)
    return kept


def _is_exactly(module: nn.Module, kind: type[nn.Module]) -> bool:
    return fused.reason_unsupported(module, kind) is None
