"""The ImageNet family of "Deep Residual Learning for Image Recognition", and its ResNeXt and wide relatives.

Subclasses of torchvision's own classes: names, arguments, initialisation, weights and state dict are theirs. A forward
is written in fused calls; table 1 of the paper is the list of classes at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar, cast

from torch import Tensor, nn
from torchvision.models import _utils as tv_utils
from torchvision.models import resnet as tv

from .. import fused
from ..backends import registry
from ..pixels import Pixels, pixels_of
from . import shortcuts


class Carrier:
    """Mixed into a module that carries the name of the backend its model asks for ("" for none)."""

    backend_name: str = ""
    takes_image: ClassVar[bool] = False  # whether a model's image goes to this module, and `pixels` counts
    pixels: Pixels | None = None
    plain_class: ClassVar[type[nn.Module] | None] = None  # computes the same in PyTorch's own modules

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script compiles instead, as TorchScript cannot read how modules fuse: `plain_class`."""
        module, kind = cast(nn.Module, self), self.plain_class
        if kind is None or not type(self).__module__.startswith("fastres."):
            raise TypeError(
                f"torch.jit.script: {type(self).__name__} has no equivalent that TorchScript can compile; use "
                "torch.export, torch.compile or torch.jit.trace"
            )
        if self.pixels is not None:
            raise TypeError("torch.jit.script: TorchScript has no input='uint8'; script a model that takes numbers")
        plain = kind.__new__(kind)
        plain.__dict__.update(module.__dict__, _modules=dict(module._modules))  # torch.jit writes into _modules
        return plain


class Model(Carrier):
    """Mixed into the module of a whole model: `backend`, which every carrier within follows."""

    @property
    def backend(self) -> str | None:
        """Name of the backend that this model asks for, or None."""
        return self.backend_name or None

    @backend.setter
    def backend(self, name: str | None) -> None:
        registry.check_name(name)
        for module in cast(nn.Module, self).modules():
            if isinstance(module, Carrier):
                module.backend_name = name or ""


@fused.fuses
class BasicBlock(tv.BasicBlock, Carrier):
    """Two 3x3 convolutions and a shortcut (figure 5, left). Arguments as torchvision's."""

    plain_class = tv.BasicBlock

    def forward(self, x: Tensor) -> Tensor:
        return fused.residual_block(x, self, backend=self.backend_name)

    def residual_parts(self) -> fused.ResidualParts:
        m = self._modules  # read on every call: past nn.Module's slow attribute protocol
        return fused.ResidualParts(
            ((m["conv1"], m["bn1"]), (m["conv2"], m["bn2"])),
            m.get("downsample"),
            (m["relu"],),
        )


@fused.fuses
class Bottleneck(tv.Bottleneck, Carrier):
    """1x1, 3x3 (with the stride) and 1x1 convolutions and a shortcut (figure 5, right). Arguments as torchvision's."""

    plain_class = tv.Bottleneck

    def forward(self, x: Tensor) -> Tensor:
        return fused.residual_block(x, self, backend=self.backend_name)

    def residual_parts(self) -> fused.ResidualParts:
        m = self._modules  # read on every call: past nn.Module's slow attribute protocol
        return fused.ResidualParts(
            ((m["conv1"], m["bn1"]), (m["conv2"], m["bn2"]), (m["conv3"], m["bn3"])),
            m.get("downsample"),
            (m["relu"],),
        )


@fused.fuses
class Stage(nn.Sequential, Carrier):
    """Residual blocks in sequence, one operator for as many neighbours as may fuse."""

    plain_class = nn.Sequential

    def forward(self, x: Tensor) -> Tensor:
        return fused.stage(x, self, backend=self.backend_name)


def blocks_of(*stages: nn.Module) -> Iterator[nn.Module]:
    """The blocks of consecutive stages, to run as one; a stage with a hook, or of another class, stays itself."""
    for stage in stages:
        if type(stage) is Stage and not fused.must_be_called(stage):
            yield from stage
        else:
            yield stage


class ResNet(tv.ResNet, Model):
    """torchvision's `ResNet` with fused inference: the same constructor, plus what is named here.

    Args:
        block: `BasicBlock` or `Bottleneck` of this module, or torchvision's, which then run unfused.
        layers: number of blocks in each of the four stages.
        backend: name of the backend to run fused operators on; None lets fastres choose. Also a property.
        input: "float", images of numbers of the weights' dtype, normalised; or "uint8", images of 8-bit pixels, which
            are normalised as they are loaded: a byte a pixel is moved, and none by the host.
        mean: of "uint8" images as fractions of 255, one number a channel; ImageNet's by default, as in torchvision's
            transforms.
        std: likewise.
        shortcut: the paper's option "A" (identities, zero-padded where dimensions grow), "B" (projections where
            dimensions grow, as torchvision's) or "C" (all projections).
        stride_in_1x1: a bottleneck's stride in its first 1x1 convolution, as in the paper, not in the 3x3.
        *args, **kwargs: torchvision's, unchanged: `num_classes`, `zero_init_residual`, `groups`, `width_per_group`,
            `replace_stride_with_dilation`, `norm_layer`.

    Shape:
        [N, 3, H, W], any size and layout, to [N, num_classes]. Convolutions run in channels_last. Images that are
        stored as [N, H, W, 3] are `x.permute(0, 3, 1, 2)`, which copies nothing.

    Raises:
        TypeError, ValueError: for an input of another type, rank, channel count, dtype or device.
        BackendError: where the backend asked for cannot run.
    """

    plain_class = tv.ResNet
    takes_image = True

    def __init__(
        self,
        block: type[tv.BasicBlock | tv.Bottleneck],
        layers: list[int],
        *args: Any,
        backend: str | None = None,
        input: str = "float",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        shortcut: str = "B",
        stride_in_1x1: bool = False,
        **kwargs: Any,
    ) -> None:
        registry.check_name(backend)
        shortcuts.check_option(shortcut)
        pixels = pixels_of(input, mean, std, channels=3)
        super().__init__(block, layers, *args, **kwargs)
        blocks = [block for stage in (self.layer1, self.layer2, self.layer3, self.layer4) for block in stage]
        shortcuts.set_shortcuts(blocks, shortcut, self._norm_layer)
        if stride_in_1x1:
            shortcuts.move_stride_to_1x1(blocks)
        self.backend = backend
        self.pixels = pixels

    def _make_layer(self, *args: Any, **kwargs: Any) -> Stage:
        return Stage(*super()._make_layer(*args, **kwargs))

    def _forward_impl(self, x: Tensor) -> Tensor:
        fused.check_input(x, self.conv1, self.pixels)
        stem = self.conv1, self.bn1, self.relu, self.maxpool
        x = fused.stem(x, *stem, pixels=self.pixels, backend=self.backend_name)
        x = fused.stage(x, blocks_of(self.layer1, self.layer2, self.layer3, self.layer4), backend=self.backend_name)
        return fused.head(x, self.avgpool, self.fc, backend=self.backend_name)


V = TypeVar("V", bound="_Variant")


def _as_torchvision(call: Callable[..., Any], weights_enum: Any) -> Callable[..., Any]:
    """Gives `call(*, weights, ...)` what torchvision's functions have: an annotation, `pretrained`, its warnings."""
    call.__annotations__["weights"] = weights_enum | None
    return tv_utils.handle_legacy_interface(weights=("pretrained", weights_enum.IMAGENET1K_V1))(call)


class _Variant(ResNet):
    """A row of the tables: called as torchvision's function of the same lower-case name.

    `pretrained` and positional arguments are accepted with torchvision's deprecation warnings.

    Args:
        weights: a member of `weights_enum`, its name ("DEFAULT", "IMAGENET1K_V2"), or None. Downloaded by torchvision.
            They are of option B with the stride in the 3x3, so other choices raise ValueError.
        progress: whether to show the download.
        **kwargs: as `ResNet`; they take precedence over the row's own.
    """

    block: ClassVar[type[tv.BasicBlock | tv.Bottleneck]]
    layers: ClassVar[tuple[int, int, int, int]]
    arguments: ClassVar[dict[str, Any]] = {}
    weights_enum: ClassVar[type[tv.WeightsEnum]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "weights_enum" not in cls.__dict__ or "__init__" in cls.__dict__:
            return

        def __init__(self: Any, *, weights: Any = None, progress: bool = True, **kwargs: Any) -> None:
            super(cls, self).__init__(weights=weights, progress=progress, **kwargs)

        cls.__init__ = _as_torchvision(__init__, cls.weights_enum)  # type: ignore[method-assign]

    def __init__(self, *, weights: Any = None, progress: bool = True, **kwargs: Any) -> None:
        verified = self.weights_enum.verify(weights)
        kwargs = {**self.arguments, **kwargs}
        if verified is not None:
            classes = len(verified.meta["categories"])
            if kwargs.setdefault("num_classes", classes) != classes:
                raise ValueError(f"num_classes: expected {classes}, that of {verified}, got {kwargs['num_classes']}")
            for name, value in {"shortcut": "B", "stride_in_1x1": False}.items():
                if kwargs.get(name, value) != value:
                    raise ValueError(f"{name}: expected {value!r}, that of {verified}, got {kwargs[name]!r}")
        super().__init__(self.block, list(self.layers), **kwargs)
        if verified is not None:
            self.load_state_dict(verified.get_state_dict(progress=progress, check_hash=True))


class ResNet18(_Variant):
    block, layers, weights_enum = BasicBlock, (2, 2, 2, 2), tv.ResNet18_Weights


class ResNet34(_Variant):
    block, layers, weights_enum = BasicBlock, (3, 4, 6, 3), tv.ResNet34_Weights


class ResNet50(_Variant):
    block, layers, weights_enum = Bottleneck, (3, 4, 6, 3), tv.ResNet50_Weights


class ResNet101(_Variant):
    block, layers, weights_enum = Bottleneck, (3, 4, 23, 3), tv.ResNet101_Weights


class ResNet152(_Variant):
    block, layers, weights_enum = Bottleneck, (3, 8, 36, 3), tv.ResNet152_Weights


class ResNeXt50_32x4d(_Variant):
    block, layers, weights_enum = Bottleneck, (3, 4, 6, 3), tv.ResNeXt50_32X4D_Weights
    arguments: ClassVar[dict[str, Any]] = {"groups": 32, "width_per_group": 4}


class ResNeXt101_32x8d(_Variant):
    block, layers, weights_enum = Bottleneck, (3, 4, 23, 3), tv.ResNeXt101_32X8D_Weights
    arguments: ClassVar[dict[str, Any]] = {"groups": 32, "width_per_group": 8}


class ResNeXt101_64x4d(_Variant):
    block, layers, weights_enum = Bottleneck, (3, 4, 23, 3), tv.ResNeXt101_64X4D_Weights
    arguments: ClassVar[dict[str, Any]] = {"groups": 64, "width_per_group": 4}


class WideResNet50_2(_Variant):
    block, layers, weights_enum = Bottleneck, (3, 4, 6, 3), tv.Wide_ResNet50_2_Weights
    arguments: ClassVar[dict[str, Any]] = {"width_per_group": 128}


class WideResNet101_2(_Variant):
    block, layers, weights_enum = Bottleneck, (3, 4, 23, 3), tv.Wide_ResNet101_2_Weights
    arguments: ClassVar[dict[str, Any]] = {"width_per_group": 128}


BY_NAME: dict[str, type[_Variant]] = {
    "resnet18": ResNet18,
    "resnet34": ResNet34,
    "resnet50": ResNet50,
    "resnet101": ResNet101,
    "resnet152": ResNet152,
    "resnext50_32x4d": ResNeXt50_32x4d,
    "resnext101_32x8d": ResNeXt101_32x8d,
    "resnext101_64x4d": ResNeXt101_64x4d,
    "wide_resnet50_2": WideResNet50_2,
    "wide_resnet101_2": WideResNet101_2,
}


# torchvision's lower-case names: functions, as there.
def _function(kind: type[V], name: str) -> Callable[..., V]:
    def build(*, weights: Any = None, progress: bool = True, **kwargs: Any) -> V:
        return kind(weights=weights, progress=progress, **kwargs)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"Builds a `{kind.__name__}`; arguments as there."
    build.__annotations__["return"] = kind
    return _as_torchvision(build, kind.weights_enum)


resnet18 = _function(ResNet18, "resnet18")
resnet34 = _function(ResNet34, "resnet34")
resnet50 = _function(ResNet50, "resnet50")
resnet101 = _function(ResNet101, "resnet101")
resnet152 = _function(ResNet152, "resnet152")
resnext50_32x4d = _function(ResNeXt50_32x4d, "resnext50_32x4d")
resnext101_32x8d = _function(ResNeXt101_32x8d, "resnext101_32x8d")
resnext101_64x4d = _function(ResNeXt101_64x4d, "resnext101_64x4d")
wide_resnet50_2 = _function(WideResNet50_2, "wide_resnet50_2")
wide_resnet101_2 = _function(WideResNet101_2, "wide_resnet101_2")
