"""The paper's shortcut options (section 4.1, "Identity vs. Projection Shortcuts") and the original place of the stride.

Each function changes blocks of torchvision's structure that were just built; the rest of the network is untouched.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

OPTIONS = ("A", "B", "C")


class IdentityShortcut(nn.Module):
    """Option A: x[:, :, ::stride, ::stride] with `extra` channels of zeros behind its own; no parameters.

    Shape: [N, C, H, W] to [N, C + extra, ceil(H / stride), ceil(W / stride)], of the input's dtype.
    """

    def __init__(self, stride: int, extra: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, extra

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, extra={self.extra}"


def check_option(shortcut: Any) -> None:
    """Raises ValueError unless `shortcut` is one of the paper's options."""
    if shortcut not in OPTIONS:
        raise ValueError(f"shortcut: expected one of {', '.join(map(repr, OPTIONS))}, got {shortcut!r}")


def set_shortcuts(blocks: Iterable[Any], shortcut: str, norm_layer: Any) -> None:
    """Gives residual blocks, built with option B, the shortcuts of `shortcut`.

    A: identities everywhere, zero-padded where dimensions grow. B: projections where dimensions grow, as torchvision.
    C: projections everywhere. New projections are initialised as torchvision initialises its own.
    """
    for block in blocks:
        if shortcut == "A" and block.downsample is not None:
            projection = block.downsample[0]
            extra = projection.out_channels - projection.in_channels
            block.downsample = IdentityShortcut(projection.stride[0], extra)
        elif shortcut == "C" and block.downsample is None:
            channels = block.conv1.in_channels
            projection = nn.Conv2d(channels, channels, kernel_size=1, bias=False)
            nn.init.kaiming_normal_(projection.weight, mode="fan_out", nonlinearity="relu")
            block.downsample = nn.Sequential(projection, norm_layer(channels))


def move_stride_to_1x1(blocks: Iterable[Any]) -> None:
    """Moves a bottleneck's stride from its 3x3 convolution to the 1x1 before it, where the paper has it (table 1).

    Raises ValueError for blocks without a 1x1 convolution.
    """
    for block in blocks:
        if not hasattr(block, "conv3"):
            raise ValueError("stride_in_1x1: expected False, as a BasicBlock has no 1x1 convolution, got True")
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
