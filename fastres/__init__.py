"""fastres: the ResNet family of "Deep Residual Learning for Image Recognition" with its own fused GPU kernels."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version

from .backends import BackendError, backends, use_backend
from .capture import CapturedModel, capture
from .explain import explain
from .folding import refresh
from .models.resnet import (
    BasicBlock,
    Bottleneck,
    ResNet,
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
    ResNet152,
    ResNeXt50_32x4d,
    ResNeXt101_32x8d,
    ResNeXt101_64x4d,
    WideResNet50_2,
    WideResNet101_2,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnext50_32x4d,
    resnext101_32x8d,
    resnext101_64x4d,
    wide_resnet50_2,
    wide_resnet101_2,
)
from .optimize import OptimizationReport, optimize
from .warmup import warmup

try:
    __version__ = _version("fastres")
except PackageNotFoundError:  # run from a source tree
    __version__ = "0+unknown"

__all__ = [
    "BackendError",
    "BasicBlock",
    "Bottleneck",
    "CapturedModel",
    "OptimizationReport",
    "ResNeXt50_32x4d",
    "ResNeXt101_32x8d",
    "ResNeXt101_64x4d",
    "ResNet",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "ResNet101",
    "ResNet152",
    "WideResNet50_2",
    "WideResNet101_2",
    "backends",
    "capture",
    "explain",
    "optimize",
    "refresh",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "use_backend",
    "warmup",
    "wide_resnet50_2",
    "wide_resnet101_2",
]
