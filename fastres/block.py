"""The plain data that operators, folding and backends share: one convolution with its BatchNorm, and blocks of them.

A `ConvBN` holds raw tensors and the `Geometry` of one convolution. It flattens into the argument list of an operator
(tensors, ints, floats: all that a PyTorch operator schema can carry) and is rebuilt from it inside the implementation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from torch import Tensor

_TENSOR_FIELDS = 7  # weight .. num_batches_tracked
_SPEC_FIELDS = 8  # which tensors are present, stride (2), padding (2), dilation (2), groups


Pool = tuple[int, int, int]
"""A max pool's kernel, stride and padding, square; dilation 1, sizes rounded down."""

STEM_POOL: Pool = (3, 2, 1)  # that of table 1, before conv2_x


def out_side(side: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """How many windows of a convolution or a pool fit along one side of an image."""
    return (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def pooled(image: Sequence[int], pool: Pool) -> tuple[int, int]:
    """[H, W] after `pool`, for an image [H, W]."""
    height, width = image
    return out_side(height, *pool), out_side(width, *pool)


class Geometry(NamedTuple):
    """How a convolution moves over an image: what it has beside its weight."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def out_size(self, image: Sequence[int], kernel: Sequence[int]) -> tuple[int, int]:
        """[P, Q] of the output, for an image [H, W] and a kernel [R, S]."""
        (height, width), (r, s) = image, kernel
        (sh, sw), (ph, pw), (dh, dw), _ = self
        return out_side(height, r, sh, ph, dh), out_side(width, s, sw, pw, dw)


class ConvBN(NamedTuple):
    """A convolution followed by a BatchNorm in evaluation mode.

    y = gamma * (conv(x, weight) + bias - mean) / sqrt(var + eps) + beta

    `weight` is [Cout, Cin/groups, R, S]; the vectors are [Cout]; the version of `num_batches_tracked` is
    the only trace that a training forward leaves of having moved `mean` and `var`.
    """

    weight: Tensor
    bias: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    mean: Tensor
    var: Tensor
    num_batches_tracked: Tensor | None
    eps: float
    geometry: Geometry

    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.weight, self.bias, self.gamma, self.beta, self.mean, self.var, self.num_batches_tracked

    def out_size(self, x: Tensor) -> tuple[int, int, int, int]:
        """[N, Cout, P, Q] of the output for an input [N, Cin, H, W]."""
        n, _, *image = x.shape
        cout, _, *kernel = self.weight.shape
        return n, cout, *self.geometry.out_size(image, kernel)

    def arguments(self) -> tuple[Any, ...]:
        """The fields as an operator of one convolution takes them: the geometry spread out."""
        return *self.tensors(), self.eps, *self.geometry

    @classmethod
    def from_arguments(cls, arguments: Sequence[Any]) -> ConvBN:
        """The inverse of `arguments`; pairs may be lists."""
        *fields, stride, padding, dilation, groups = arguments
        return cls._make([*fields, Geometry(tuple(stride), tuple(padding), tuple(dilation), groups)])

    def check(self, x: Tensor) -> None:
        """Raises ValueError unless `x` is a [N, Cin, H, W] tensor that this convolution accepts."""
        if x.dim() != 4:
            raise ValueError(f"x: expected 4 dimensions [N, C, H, W], got {x.dim()}: {tuple(x.shape)}")
        channels = self.weight.shape[1] * self.geometry.groups
        if x.shape[1] != channels:
            raise ValueError(f"x: expected {channels} channels in dimension 1, got {x.shape[1]}: {tuple(x.shape)}")
        if x.device != self.weight.device:
            raise ValueError(f"x: expected device {self.weight.device}, that of the weights, got {x.device}")
        if min(self.out_size(x)[2:]) < 1:
            kernel = tuple(self.weight.shape[2:])
            padding = self.geometry.padding
            raise ValueError(f"x: image {tuple(x.shape[2:])} is too small for a {kernel} kernel with {padding=}")


class Norm(IntEnum):
    """Which statistics a BatchNorm normalises by."""

    RUNNING = 0
    BATCH = 1
    SYNCHRONISED = 2  # those of all processes' batches


class Block(NamedTuple):
    """A residual block: relu(branch(x) + shortcut(x)), ReLU between the branch's convolutions; None is the identity."""

    branch: tuple[ConvBN, ...]
    shortcut: ConvBN | None


class TrainBlock(NamedTuple):
    """A block as it is trained: [pool](act(branch(x) [+ shortcut(source)])), `source` being x or a second activation.

    `norms` has one entry a layer, `shortcut` last. Layers that normalise by the batch's statistics have no `mean` and
    `var`. `identity` says whether the source itself is added; `pool` is kernel, stride and padding, or zeros for none.
    """

    branch: tuple[ConvBN, ...]
    shortcut: ConvBN | None
    norms: tuple[Norm, ...]
    identity: bool = False
    relu: bool = True
    pool: Pool = (0, 0, 0)

    def layers(self) -> tuple[ConvBN, ...]:
        return self.branch if self.shortcut is None else (*self.branch, self.shortcut)

    def flatten(self) -> tuple[list[Tensor], list[int], list[float], list[int]]:
        """As operator arguments: those of `flatten`, and what it leaves."""
        return *flatten([Block(self.branch, self.shortcut)]), [self.identity, self.relu, *self.pool, *self.norms]

    @classmethod
    def unflatten(
        cls, tensors: Sequence[Tensor], spec: Sequence[int], eps: Sequence[float], options: Sequence[int]
    ) -> TrainBlock:
        [(branch, shortcut)] = unflatten(tensors, spec, eps)
        identity, relu, kernel, stride, padding, *norms = options
        pool = kernel, stride, padding
        return cls(branch, shortcut, tuple(map(Norm, norms)), bool(identity), bool(relu), pool)


def flatten(blocks: Iterable[Block]) -> tuple[list[Tensor], list[int], list[float]]:
    """Blocks as operator arguments: the tensors that are present, geometry as ints, and one eps a convolution."""
    tensors: list[Tensor] = []
    spec: list[int] = []
    eps: list[float] = []
    for block in blocks:
        spec += (len(block.branch), block.shortcut is not None)
        for layer in block.branch if block.shortcut is None else (*block.branch, block.shortcut):
            present = 0
            for position, tensor in enumerate(layer.tensors()):
                if tensor is not None:
                    tensors.append(tensor)
                    present |= 1 << position
            stride, padding, dilation, groups = layer.geometry
            spec += (present, *stride, *padding, *dilation, groups)
            eps.append(layer.eps)
    return tensors, spec, eps


def unflatten(tensors: Sequence[Tensor], spec: Sequence[int], eps: Sequence[float]) -> list[Block]:
    """The inverse of `flatten`."""
    blocks: list[Block] = []
    tensor, epsilon = iter(tensors), iter(eps)
    at = 0
    while at < len(spec):
        depth, projected = spec[at : at + 2]
        at += 2
        layers: list[ConvBN] = []
        for _ in range(depth + projected):
            present, sh, sw, ph, pw, dh, dw, groups = spec[at : at + _SPEC_FIELDS]
            at += _SPEC_FIELDS
            fields: list[Any] = [next(tensor) if present >> i & 1 else None for i in range(_TENSOR_FIELDS)]
            layers.append(ConvBN._make([*fields, next(epsilon), Geometry((sh, sw), (ph, pw), (dh, dw), groups)]))
        blocks.append(Block(tuple(layers[:depth]), layers[depth] if projected else None))
    return blocks
