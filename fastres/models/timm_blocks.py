"""Counterparts of timm's ResNet and its blocks, to which `fastres.optimize` converts. Needs timm.

Each is a subclass of timm's own class with the same attributes, so a conversion changes a module's class and nothing
else. timm's blocks offer more than the paper's (squeeze and excitation, anti-aliasing, stochastic depth): `extras`
names what keeps a block from being one, and then timm's own forward runs.
"""

from __future__ import annotations

from typing import Any

from timm.layers import DropBlock2d, DropPath
from timm.models import _features as timm_features
from timm.models import resnet as timm
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from .. import fused
from . import chain
from .resnet import Carrier

# These do nothing in evaluation; another class in their place might.
_DROPS = (DropPath, DropBlock2d, nn.Dropout, nn.Dropout2d)


def extras(block: Any) -> str | None:
    """What a timm block does at present beyond convolution, BatchNorm, activation and shortcut, or None."""
    return lasting_extras(block) or next((why for module, why in _drops(block) if module.training), None)


def lasting_extras(block: Any) -> str | None:
    """What of it the block does in evaluation, too, or None."""
    if block.se is not None:
        return f"it has attention: {type(block.se).__name__}"
    for name in ("aa", "drop_block", "drop_path"):
        module = getattr(block, name)
        if module is None or fused.reason_unsupported(module, nn.Identity) is None:
            continue
        if name == "aa" or type(module) not in _DROPS or fused.reason_unsupported(module, type(module)):
            return f"it has {name}: {type(module).__name__}"
    return None


def training_extras(block: Any) -> str | None:
    """What of it the block does in training alone, or None."""
    return next((why for _, why in _drops(block)), None)


def _drops(block: Any) -> list[tuple[nn.Module, str]]:
    """The drop layers that drop something."""
    found = []
    for name in ("drop_block", "drop_path"):
        module = getattr(block, name)
        probability = next((getattr(module, p) for p in ("drop_prob", "p") if hasattr(module, p)), 0)
        if type(module) in _DROPS and probability:
            found.append((module, f"it has {name}: {type(module).__name__}"))
    return found


@fused.fuses
class BasicBlock(timm.BasicBlock, Carrier):
    """timm's BasicBlock."""

    plain_class = timm.BasicBlock

    def forward(self, x: Tensor) -> Tensor:
        return fused.residual_block(x, self, backend=self.backend_name)

    def residual_parts(self) -> fused.ResidualParts | None:
        return None if extras(self) else self.all_parts()

    def all_parts(self) -> fused.ResidualParts:
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
        return None if extras(self) else self.all_parts()

    def all_parts(self) -> fused.ResidualParts:
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
            return super().forward_features(fused.normalize(x, _first_convolution(self.conv1), self.pixels))
        return chain.run(x, self._layers(), {}, pixels=self.pixels, backend=self.backend_name)[0]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """As timm's: the outputs of the stem's activation (index 0) and of the stages (1 to 4), and the last."""
        if self.grad_checkpointing or output_fmt != "NCHW":
            x = fused.normalize(x, _first_convolution(self.conv1), self.pixels)
            return super().forward_intermediates(x, indices, norm, stop_early, output_fmt, intermediates_only)
        taken, last = feature_take_indices(5, indices)
        names = ["act1", "layer1", "layer2", "layer3", "layer4"]
        layers = self._layers()
        if stop_early:
            layers = layers[: 4 + last]
        wanted = {name: name for at, name in enumerate(names) if at in taken}
        x, found = chain.run(x, layers, wanted, pixels=self.pixels, backend=self.backend_name)
        return list(found.values()) if intermediates_only else (x, list(found.values()))

    def _layers(self) -> list[tuple[str, nn.Module]]:
        names = ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4")
        return [(name, getattr(self, name)) for name in names]


class FeatureDictNet(timm_features.FeatureDictNet, Carrier):
    """timm's `features_only` of a ResNet, by name."""

    plain_class = timm_features.FeatureDictNet
    takes_image = True

    def _collect(self, x: Tensor) -> Any:
        if self.grad_checkpointing:
            return super()._collect(fused.normalize(x, _first_convolution(self), self.pixels))
        return chain.run(x, self.items(), self.return_layers, pixels=self.pixels, backend=self.backend_name)[1]


class FeatureListNet(FeatureDictNet, timm_features.FeatureListNet):
    """timm's `features_only` of a ResNet, as a list."""

    plain_class = timm_features.FeatureListNet

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self._collect(x).values())


def _first_convolution(module: nn.Module) -> nn.Conv2d:
    return next(m for m in module.modules() if isinstance(m, nn.Conv2d))
