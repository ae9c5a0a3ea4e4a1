"""Where the cases run, and convolution problems as data: run by a launcher, by PyTorch and by the oracle alike.

In Triton's interpreter where TRITON_INTERPRET=1 is set, else on a GPU; `test_interpreter` sees to both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tolerance import assert_right, to_oracle
from torch import Tensor
from triton import knobs

from fastres.kernels.conv import conv, pack
from fastres.tuning import Tile

INTERPRETED = bool(knobs.runtime.interpret)
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float32, torch.float16] if INTERPRETED else [torch.float32, torch.float16, torch.bfloat16]
SMALL = Tile(16, 16, 16, 4, 2, 2)  # so that small problems have several tiles in every direction

Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None]


@dataclass(frozen=True)
class Convolution:
    """relu(conv(x) + bias + residual) of [n, c, *image] to k channels."""

    n: int = 2
    c: int = 16
    image: tuple[int, int] = (6, 5)
    k: int = 24
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    residual: bool = True
    relu: bool = True

    def plain(self, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
        """With PyTorch's operators, one after the other."""
        y = F.conv2d(x, weight, bias.to(x.dtype), self.stride, self.padding, self.dilation, self.groups)
        y = y if residual is None else y + residual
        return F.relu(y) if self.relu else y

    def inputs(self, dtype: torch.dtype) -> Inputs:
        weight = torch.randn(self.k, self.c // self.groups, *self.kernel).div(self.c**0.5).to(dtype)
        x = channels_last(torch.randn(self.n, self.c, *self.image, dtype=dtype))
        shape = self.plain(x[:1].float(), weight.float(), torch.zeros(self.k), None).shape[1:]
        residual = channels_last(torch.randn(self.n, *shape, dtype=dtype)) if self.residual else None
        return x, weight, torch.randn(self.k), residual

    def fused(self, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, tile: Tile | None) -> Tensor:
        packed, groups = pack(weight.to(DEVICE), self.groups)
        return conv(
            x.to(DEVICE),
            packed,
            bias.to(DEVICE),
            None if residual is None else residual.to(DEVICE),
            relu=self.relu,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=groups,
            tile=tile,
        )

    def check(self, dtype: torch.dtype, tile: Tile | None = SMALL, inputs: Inputs | None = None) -> None:
        """Fails unless the kernel keeps the rule of `tolerance`."""
        inputs = inputs or self.inputs(dtype)
        oracle = self.plain(*to_oracle(inputs))
        assert_right(self.fused(*inputs, tile=tile), self.plain(*inputs), oracle, str(self))


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
