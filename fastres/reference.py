"""A plain-PyTorch twin of every operator: the specification that kernels are held to, and the oracle in float64.

Nothing is folded or fused here. Tensors are [N, C, H, W] of any floating dtype, layout and device; parameters may have
a wider dtype than `x` (autocast), in which case convolutions run in `x`'s dtype and BatchNorm keeps its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .block import Block, ConvBN
from .pixels import Pixels


def conv_bn(x: Tensor, layer: ConvBN) -> Tensor:
    """BatchNorm(conv(x)) in evaluation mode: "BN right after each convolution" (the paper's section 3.4)."""
    weight = layer.weight.to(x.dtype)
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    y = F.conv2d(x, weight, bias, *layer.geometry)
    return F.batch_norm(y, layer.mean, layer.var, layer.gamma, layer.beta, training=False, eps=layer.eps)


def conv_bn_act(x: Tensor, layer: ConvBN, residual: Tensor | None = None, relu: bool = True) -> Tensor:
    """relu(BatchNorm(conv(x)) + residual): equation 1 of the paper where `residual` is the block's input."""
    y = conv_bn(x, layer)
    if residual is not None:
        y = y + residual
    return F.relu(y) if relu else y


def projection(x: Tensor, layer: ConvBN, block_input: Tensor, shortcut: ConvBN) -> Tensor:
    """relu(BatchNorm(conv(x)) + BatchNorm(conv(block_input))): equation 2, the projection shortcut."""
    return conv_bn_act(x, layer, conv_bn(block_input, shortcut))


def stem(x: Tensor, layer: ConvBN, kernel: int, stride: int, padding: int) -> Tensor:
    """max_pool(relu(BatchNorm(conv(x)))): conv1 and the pooling that begins conv2_x in the paper's table 1."""
    return F.max_pool2d(conv_bn_act(x, layer), kernel, stride, padding)


def normalize(x: Tensor, pixels: Pixels, dtype: torch.dtype) -> Tensor:
    """uint8 [N, C, H, W] as numbers: (x / 255 - mean) / std in at least float32, rounded once to `dtype`."""
    exact = torch.promote_types(dtype, torch.float32)
    # Filled, not copied from the host: a CUDA graph can record it.
    mean, std = (torch.cat([x.new_full((1,), v, dtype=exact) for v in values]).view(-1, 1, 1) for values in pixels)
    return ((x.to(exact) / 255 - mean) / std).to(dtype)


def stem_uint8(
    x: Tensor, layer: ConvBN, kernel: int, stride: int, padding: int, pixels: Pixels, dtype: torch.dtype
) -> Tensor:
    """`stem` of an image of 8-bit pixels, in `dtype`; the convolution's padding is of normalised zeros."""
    return stem(normalize(x, pixels, dtype), layer, kernel, stride, padding)


def head(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Global average pooling and the classifier: [N, C, H, W] to [N, classes]."""
    pooled = x.mean((2, 3))
    return F.linear(pooled, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def stage(x: Tensor, blocks: Sequence[Block]) -> Tensor:
    """Residual blocks in sequence: one of conv2_x to conv5_x of the paper's table 1."""
    for branch, shortcut in blocks:
        identity = x
        for layer in branch[:-1]:
            x = conv_bn_act(x, layer)
        last = branch[-1]
        x = conv_bn_act(x, last, identity) if shortcut is None else projection(x, last, identity, shortcut)
    return x
