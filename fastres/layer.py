"""The plain data that operators, folding and backends share: one convolution with its BatchNorm, and blocks of them.

A `ConvBN` holds raw tensors and the geometry of one convolution. It flattens into the argument list of an operator
(tensors, ints, floats: all that a PyTorch operator schema can carry) and is rebuilt from it inside the implementation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from torch import Tensor

_TENSOR_FIELDS = 7  # weight .. steps
_SPEC_FIELDS = 8  # which tensors are present, stride (2), padding (2), dilation (2), groups


class ConvBN(NamedTuple):
    """A convolution followed by a BatchNorm in evaluation mode.

    y = gamma * (conv(x, weight) + bias - mean) / sqrt(var + eps) + beta

    `weight` is [Cout, Cin/groups, R, S]; the vectors are [Cout]; `steps` is BatchNorm's `num_batches_tracked`, whose
    version is the only trace that a training forward leaves of having moved `mean` and `var`.
    """

    weight: Tensor
    bias: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    mean: Tensor
    var: Tensor
    steps: Tensor | None
    eps: float
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.weight, self.bias, self.gamma, self.beta, self.mean, self.var, self.steps

    def out_size(self, x: Tensor) -> tuple[int, int, int, int]:
        """[N, Cout, P, Q] of the output for an input [N, Cin, H, W]."""
        n, _, height, width = x.shape
        cout, _, r, s = self.weight.shape
        (sh, sw), (ph, pw), (dh, dw) = self.stride, self.padding, self.dilation
        return n, cout, (height + 2 * ph - dh * (r - 1) - 1) // sh + 1, (width + 2 * pw - dw * (s - 1) - 1) // sw + 1

    def check(self, x: Tensor) -> None:
        """Raises ValueError unless `x` is a [N, Cin, H, W] tensor that this convolution accepts."""
        if x.dim() != 4:
            raise ValueError(f"x: expected 4 dimensions [N, C, H, W], got {x.dim()}: {tuple(x.shape)}")
        channels = self.weight.shape[1] * self.groups
        if x.shape[1] != channels:
            raise ValueError(f"x: expected {channels} channels in dimension 1, got {x.shape[1]}: {tuple(x.shape)}")
        if x.device != self.weight.device:
            raise ValueError(f"x: expected device {self.weight.device}, that of the weights, got {x.device}")
        if min(self.out_size(x)[2:]) < 1:
            kernel = tuple(self.weight.shape[2:])
            raise ValueError(f"x: image {tuple(x.shape[2:])} is too small for a {kernel} kernel with {self.padding=}")


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
    pool: tuple[int, int, int] = (0, 0, 0)

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
            spec += (present, *layer.stride, *layer.padding, *layer.dilation, layer.groups)
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
            layers.append(ConvBN._make([*fields, next(epsilon), (sh, sw), (ph, pw), (dh, dw), groups]))
        blocks.append(Block(tuple(layers[:depth]), layers[depth] if projected else None))
    return blocks
