"""Counterparts of timm's ResNet and its blocks, to which `fastres.optimize` converts. Needs timm.

Each is a subclass of timm's own class with the same attributes, so a conversion changes a module's class and nothing
else. timm's blocks offer more than the paper's (squeeze and excitation, anti-aliasing, stochastic depth): `extras`
names what keeps a block from being one, and then timm's own forward runs.
"""

from __future__ import annotations

from typing import Any

from timm.models import resnet as timm
from torch import Tensor, nn

from .. import fused
from .resnet import Carrier, blocks_of


def extras(block: Any) -> str | None:
    """What a timm block does beyond convolution, BatchNorm, activation and shortcut, or None."""
    if block.se is not None:
        return f"it has attention: {type(block.se).__name__}"
    for name in ("aa", "drop_block", "drop_path"):
        module = getattr(block, name)
        if module is None or fused.reason_unsupported(module, nn.Identity) is None:
            continue
        if name == "aa" or module.training or fused.hooked(module):  # the drop layers do nothing in evaluation
            return f"it has {name}: {type(module).__name__}"
    return None


@fused.fuses
class BasicBlock(timm.BasicBlock, Carrier):
    """timm's BasicBlock."""

    plain_class = timm.BasicBlock

    def forward(self, x: Tensor) -> Tensor:
        return fused.residual_block(x, self, backend=self.backend_name)

    def residual_parts(self) -> fused.ResidualParts | None:
        if extras(self):
            return None
        m = self._modules  # read on every call: past nn.Module's slow attribute protocol
        return fused.ResidualParts(
            ((m["conv1"], m["bn1"]), (m["conv2"], m["bn2"])),
            m.get("downsample"),
            (m["act1"], m["act2"]),
        )


@fused.fuses
class Bottleneck(timm.Bottleneck, Carrier):
    """timm's Bottleneck."""

    plain_class = timm.Bottleneck

    def forward(self, x: Tensor) -> Tensor:
        return fused.residual_block(x, self, backend=self.backend_name)

    def residual_parts(self) -> fused.ResidualParts | None:
        if extras(self):
            return None
        m = self._modules  # read on every call: past nn.Module's slow attribute protocol
        return fused.ResidualParts(
            ((m["conv1"], m["bn1"]), (m["conv2"], m["bn2"]), (m["conv3"], m["bn3"])),
            m.get("downsample"),
            (m["act1"], m["act2"], m["act3"]),
        )


class ResNet(timm.ResNet, Carrier):
    """timm's ResNet: the stem fused here, the stages by `fastres.models.resnet.Stage`, the head timm's own."""

    plain_class = timm.ResNet
    takes_image = True

    def forward_features(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing:
            return super().forward_features(fused.normalize(x, _stem_convolutions(self.conv1)[1], self.pixels))
        deep, conv = _stem_convolutions(self.conv1)
        pixels = self.pixels
        fused.check_input(x, deep[0][0] if deep else conv, pixels)
        if deep:
            x, pixels = fused.normalize(x, conv, pixels), None
        for first_conv, bn, act in deep:
            x = fused.conv_bn_act(x, first_conv, bn, act=act, backend=self.backend_name)
        x = fused.stem(x, conv, self.bn1, self.act1, self.maxpool, pixels=pixels, backend=self.backend_name)
        stages = blocks_of(self.layer1, self.layer2, self.layer3, self.layer4)
        return fused.stage(x, stages, backend=self.backend_name)


def _stem_convolutions(conv1: Any) -> tuple[list[Any], Any]:
    """A deep stem as its first (conv, bn, act) triples and its last convolution; another stem is its convolution."""
    if fused.reason_unsupported(conv1, nn.Sequential) is None and len(conv1) == 7:
        layers = list(conv1)
        return [layers[0:3], layers[3:6]], layers[6]
    return [], conv1
