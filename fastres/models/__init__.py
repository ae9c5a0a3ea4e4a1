"""The networks: `resnet` (ImageNet's family), `cifar` (6n+2 layers), `plain` (no shortcuts), and timm's blocks."""

from . import cifar, plain, resnet

__all__ = ["cifar", "plain", "resnet"]
