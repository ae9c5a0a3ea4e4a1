"""What the backends `cuda` and `emulator` share: tensors in, launches of the kernels of csrc/kernels out.

A launch is planned on the host (`fastres._C`): kernel, grid, shared memory and the bytes of its parameters, which hold
the tensors' addresses. Running it is the backend's part: on a GPU's stream, or in the PTX emulator on CPU tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import native
from ..block import STEM_POOL, ConvBN, Geometry, pooled
from ..folding import folded
from ..layout import empty
from ..pixels import Pixels
from . import ranking
from .registry import Backend
from .steps import Affine, Steps

_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "tf32"}
_MOST_PIXELS = 2**31 - 256
_LARGEST_SIDE = 2**20 - 1
_STEM_FILTERS = 64  # the stem's kernel takes filters in blocks of so many
_SOMEWHERE = 1024  # stands for the address of any tensor of ours, in questions about a problem
HOPPER = (9, 0)  # the one compute capability that has conv_sm90's instructions


class Filter(NamedTuple):
    """One convolution without its numbers."""

    filters: int
    channels: int  # of the input, over all groups
    kernel: tuple[int, int]
    geometry: Geometry

    @classmethod
    def of(cls, weight: Tensor, geometry: Geometry) -> Filter:
        filters, channels, r, s = weight.shape
        return cls(filters, channels * geometry.groups, (r, s), geometry)

    def out_size(self, x: Sequence[int]) -> tuple[int, int, int, int]:
        """[N, K, P, Q] for an input [N, C, H, W]."""
        return x[0], self.filters, *self.geometry.out_size(x[2:], self.kernel)

    def is_stem(self) -> bool:
        """Whether the stem's kernel computes it, in 16 bits."""
        filters, channels, kernel, geometry = self
        return channels <= 4 and filters % 8 == 0 and (kernel, geometry) == ((7, 7), Geometry((2, 2), (3, 3)))


class Prepared(NamedTuple):
    """One convolution as the kernels want it."""

    weight: Tensor  # [K, pitch]: KRSC, each filter padded with zeros to a multiple of 16 bytes
    bias: Tensor | None  # [K] in float32
    stem: Tensor | None  # [K rounded up to 64, 7, 8, 4], zeros in tap 8 and in absent channels, if it is such a stem
    filter: Filter


class Work(NamedTuple):
    """Launches, to be run in their order, and every tensor whose address is in them."""

    plans: list[Any]
    reads: list[Tensor]
    scratch: list[Tensor]  # written by one launch, read by the next
    result: Tensor  # written by the last launch; may be one of `reads`
    moments: Tensor | None = None  # [tiles, K, 3], one of `scratch`: the statistics of each tile of a convolution


@cache
def missing() -> str | None:
    """Why this build has no CUDA kernels, or None."""
    module = native.load()
    if module is None:
        return native.why_missing()
    info = module.build_info()
    return None if info["cuda"] else f"this build has no CUDA kernels: {info['cuda_missing']}"


def pack(weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Prepared:
    """`weight` [K, C/groups, R, S] and `bias` [K], folded, or the weight alone, in the kernels' layouts."""
    filters, channels = weight.shape[:2]
    rows = weight.permute(0, 2, 3, 1).reshape(filters, -1)
    if missing := -rows.shape[1] % (16 // weight.element_size()):
        rows = F.pad(rows, (0, missing))
    elif rows.data_ptr() % 16:
        rows = rows.clone()
    rows = rows.contiguous()
    filter, stem = Filter.of(weight, geometry), None
    if bias is not None and filter.is_stem() and weight.element_size() == 2:
        padding = (0, 4 - channels, 0, 1, 0, 0, 0, -filters % _STEM_FILTERS)
        stem = F.pad(weight.permute(0, 2, 3, 1), padding).contiguous()
    return Prepared(rows, None if bias is None else bias.float().contiguous(), stem, filter)


def takes_prologue(x: Tensor, groups: int) -> bool:
    """Whether `convolution` can apply a prologue to x: its address and groups of channels are multiples of 16 bytes."""
    return x.data_ptr() % 16 == 0 and x.shape[1] // groups * x.element_size() % 16 == 0


def convolution(
    operands: Sequence[tuple[Tensor, Prepared]],
    relu: bool,
    residual: Tensor | None = None,
    overwrite: bool = False,
    *,
    prologue: Affine | None = None,
    moments: bool = False,
    sms: int,
    kernel: str = "conv_sm80",
    tile: Sequence[int] = (),
) -> Work:
    """act(conv(x) [+ conv(x2)] [+ residual]), with one or two operands (x, prepared) of one output size.

    Args:
        operands: x is [N, C, H, W], bfloat16, float16 or float32 (computed in TF32), dense in channels_last.
        relu: whether ReLU is applied.
        residual: [N, K, P, Q], of x's dtype and device, dense in channels_last.
        overwrite: whether the result may be written over `residual`.
        prologue: x stands for relu(x * scale + shift), with zeros outside the image; where `takes_prologue`, and
            with one operand.
        moments: whether `Work.moments` is to be written, if the depth is not split; without bias, residual and ReLU.
        sms: multiprocessors of the GPU, by which the tile is chosen.
        kernel: "conv_sm80", or "conv_sm90" where `conv_sm90_unsupported` has nothing against it, without prologue.
        tile: rows, columns, splits of the depth, and of conv_sm90 blocks in a cluster; what is 0 or not given, the plan
            chooses.

    Raises:
        ValueError: an argument that the kernels cannot run on, by name.
    """
    module = native.require()
    x, prepared = operands[0]
    dtype = dtype_of(x)
    shape = prepared.filter.out_size(x.shape)
    parts = []
    reads = []
    for index, (given, weights) in enumerate(operands):
        name, filter = f"operands[{index}]", weights.filter
        check_dense(f"{name}.x", given, x)
        check_dense(f"{name}.weight", weights.weight, x, torch.contiguous_format)
        if given.shape[1] != filter.channels:
            raise ValueError(f"{name}.x: expected {filter.channels} channels, got {given.shape[1]}")
        if filter.out_size(given.shape) != shape:
            raise ValueError(f"{name}: gives {filter.out_size(given.shape)}, expected {shape}")
        image = _aligned(given) if kernel == "conv_sm90" else given
        bias = 0 if weights.bias is None else weights.bias.data_ptr()
        addresses = image.data_ptr(), weights.weight.data_ptr(), bias
        parts.append(_operand(addresses, image.shape, filter, weights.weight.shape[1]))
        reads += [tensor for tensor in (image, weights.weight, weights.bias) if tensor is not None]
    if residual is not None:
        check_dense("residual", residual, x)
        if tuple(residual.shape) != shape:
            raise ValueError(f"residual: expected {shape}, got {tuple(residual.shape)}")
        if residual.data_ptr() % 16:
            residual, overwrite = _aligned(residual), True
        reads.append(residual)
    result = residual if overwrite and residual is not None else empty(x, shape)

    vectors = [] if prologue is None else [_of_input(name, v, x) for name, v in prologue._asdict().items()]
    n, filters, p, q = shape
    address = 0 if residual is None else residual.data_ptr()
    problem = module.ConvProblem(
        parts,
        (n, p, q, filters),
        prepared.filter.geometry.groups,
        address,
        result.data_ptr(),
        relu,
        *(v.data_ptr() for v in vectors),
    )
    chosen, floats = getattr(module, f"{kernel}_tile")(dtype, problem, sms, (*tile, 0, 0, 0, 0)[:4])
    rows, splits = chosen[0], chosen[2]
    scratch = [torch.empty(floats, dtype=torch.float32, device=x.device)] if floats else []
    of_tiles = None
    if moments and splits == 1:
        if kernel == "conv_sm90":
            rows = module.conv_sm90_moment_rows(dtype, chosen)
        of_tiles = torch.empty((-(-n * p * q // rows), filters, 3), dtype=torch.float32, device=x.device)
        problem.moments = of_tiles.data_ptr()
        scratch.append(of_tiles)
    plan, workspace = getattr(module, f"{kernel}_plan"), scratch[0].data_ptr() if floats else 0
    plans = plan(dtype, problem, sms, chosen, workspace)
    return Work(plans, [*reads, *vectors], scratch, result, of_tiles)


@lru_cache(maxsize=4096)
def conv_sm90_unsupported(dtype: torch.dtype, x: tuple[int, ...], filter: Filter) -> str | None:
    """Why conv_sm90 cannot run a convolution on x of this shape [N, C, H, W], or None."""
    module = native.require()
    if "90a-real" not in module.build_info()["archs"]:
        return "this build has no kernels for compute capability 9.0"
    n, filters, p, q = filter.out_size(x)
    groups = filter.geometry.groups
    pitch = filter.kernel[0] * filter.kernel[1] * filter.channels // groups
    part = _operand([_SOMEWHERE] * 3, x, filter, pitch + -pitch % 8)
    problem = module.ConvProblem([part], (n, p, q, filters), groups, 0, _SOMEWHERE, False)
    return module.conv_sm90_obstacle(getattr(module.DType, _NAMES[dtype]), problem) or None


def _operand(addresses: Sequence[int], x: Sequence[int], filter: Filter, pitch: int) -> Any:
    _, c, h, w = x
    window = filter.kernel, *filter.geometry[:3]
    return native.require().ConvOperand(*addresses, (h, w, c), *window, pitch)


def stem(
    x: Tensor,
    prepared: Prepared,
    scale: Sequence[float] = (1.0, 1.0, 1.0),
    shift: Sequence[float] = (0.0, 0.0, 0.0),
) -> Work:
    """3x3/2 max pool of relu(7x7/2 convolution of v + bias).

    Args:
        x: [N, C, H, W] with C at most 4, in any layout: the weights' dtype, and v = x; or uint8, and
            v = x * scale[c] + shift[c] rounded to the weights' dtype, and zero outside the image.
        prepared: of a layer for which `Prepared.stem` is there.
        scale: of 8-bit images, one value a channel.
        shift: likewise.

    Raises:
        ValueError: an argument that the kernel cannot run on, by name.
    """
    module = native.require()
    weight, bias = prepared.stem, prepared.bias
    if weight is None or bias is None:
        raise ValueError("prepared: expected a 7x7/2 convolution of at most 4 channels to a multiple of 8, in 16 bits")
    if x.dtype not in (weight.dtype, torch.uint8) or x.device != weight.device:
        raise ValueError(f"x: expected {weight.dtype} or uint8 on {weight.device}, got {x.dtype} on {x.device}")
    channels = prepared.filter.channels
    if x.dim() != 4 or x.shape[1] != channels or x.numel() == 0:
        raise ValueError(f"x: expected {channels} channels, got {tuple(x.shape)}")
    if min(len(scale), len(shift)) < channels and x.dtype == torch.uint8:
        raise ValueError(f"scale, shift: expected {channels} values each, got {len(scale)} and {len(shift)}")
    n, filters, p, q = prepared.filter.out_size(x.shape)
    pooled_size = pooled((p, q), STEM_POOL)
    result = empty(x, (n, filters, *pooled_size), weight.dtype)
    fill = [0.0] * 4
    plan = module.stem_plan(
        dtype_of(weight),
        x.dtype == torch.uint8,
        x.data_ptr(),
        tuple(x.shape),
        x.stride(),
        weight.data_ptr(),
        bias.data_ptr(),
        result.data_ptr(),
        (p, q),
        pooled_size,
        filters,
        [*scale, *fill][:4],
        [*shift, *fill][:4],
    )
    return Work([plan], [x, weight, bias], [], result)


class Planned(Backend):
    """A backend of the kernels of csrc/kernels. A subclass says where they run: on which architecture, and how."""

    def capability(self, device: torch.device) -> tuple[int, int]:
        """The compute capability whose kernels are run."""
        raise NotImplementedError

    def multiprocessors(self, device: torch.device) -> int:
        """By how many blocks at a time a problem is divided."""
        raise NotImplementedError

    def run(self, work: Work) -> Tensor:
        """Runs the launches and gives the result."""
        raise NotImplementedError

    def fingerprint(self) -> str | None:
        return None if missing() else native.kernel_hash()

    def steps(self) -> Steps:
        """The passes of a training step; of them wgrad and strided dgrad are the library's."""
        from .cuda_steps import CudaSteps

        return CudaSteps(self)

    def unsupported(self, x: Tensor, layer: ConvBN) -> str | None:
        if x.dtype not in _NAMES:
            return f"does not run {x.dtype}: expected bfloat16, float16 or float32"
        if x.numel() == 0:
            return "an empty batch"
        if max(*x.shape[2:], x.shape[1], *(size for pair in layer.geometry[:3] for size in pair)) > _LARGEST_SIDE:
            return f"a size, padding, stride or dilation over {_LARGEST_SIDE}"
        n, _, p, q = layer.out_size(x)
        if n * p * q > _MOST_PIXELS:
            return f"{n * p * q} output pixels, more than {_MOST_PIXELS}"
        return None

    def prepare(self, x: Tensor, layer: ConvBN) -> Prepared:
        geometry = layer.geometry
        return folded(layer, x.dtype, ("plans", *geometry), lambda weight, bias: pack(weight, bias, geometry))

    def kernel(self, x: Tensor, layer: ConvBN, operator: str) -> str:
        filter = Filter.of(layer.weight, layer.geometry)
        if operator in (ranking.STEM, ranking.STEM_UINT8) and filter.is_stem() and layer.weight.element_size() == 2:
            return "stem"
        return self.convolution_kernel(x, filter)

    def convolution_kernel(self, x: Tensor, filter: Filter) -> str:
        """What runs a convolution without prologue."""
        hopper = self.capability(x.device) == HOPPER and conv_sm90_unsupported(x.dtype, tuple(x.shape), filter) is None
        return "conv_sm90" if hopper else "conv_sm80"

    def conv(
        self, x: Tensor, prepared: Prepared, relu: bool, residual: Tensor | None = None, overwrite: bool = False
    ) -> Tensor:
        sms, kernel = self.multiprocessors(x.device), self.convolution_kernel(x, prepared.filter)
        return self.run(convolution([(x, prepared)], relu, residual, overwrite, sms=sms, kernel=kernel))

    def projection(self, x: Tensor, prepared: Prepared, block_input: Tensor, shortcut: Prepared) -> Tensor:
        operands = [(x, prepared), (block_input, shortcut)]
        kernels = {self.convolution_kernel(image, weights.filter) for image, weights in operands}
        if len(kernels) > 1 or prepared.filter.geometry.groups != 1 or shortcut.filter.geometry.groups != 1:
            return super().projection(x, prepared, block_input, shortcut)
        sms = self.multiprocessors(x.device)
        return self.run(convolution(operands, True, sms=sms, kernel=kernels.pop()))

    def stem(self, x: Tensor, prepared: Prepared, kernel: int, stride: int, padding: int) -> Tensor:
        if prepared.stem is None or (kernel, stride, padding) != (3, 2, 1):
            return super().stem(x, prepared, kernel, stride, padding)
        return self.run(stem(x, prepared))

    def stem_uint8(
        self, x: Tensor, prepared: Prepared, kernel: int, stride: int, padding: int, pixels: Pixels, dtype: torch.dtype
    ) -> Tensor:
        if prepared.stem is None or (kernel, stride, padding) != (3, 2, 1):
            return super().stem_uint8(x, prepared, kernel, stride, padding, pixels, dtype)
        return self.run(stem(x, prepared, pixels.scale, pixels.shift))


def dtype_of(x: Tensor) -> Any:
    if x.dtype not in _NAMES:
        raise ValueError(f"x: expected bfloat16, float16 or float32, got {x.dtype}")
    return getattr(native.require().DType, _NAMES[x.dtype])


def _aligned(x: Tensor) -> Tensor:
    """`x`, or a copy where its address is no multiple of 16 bytes."""
    return x.clone(memory_format=torch.channels_last) if x.data_ptr() % 16 else x


def check_dense(
    name: str, tensor: Tensor, like: Tensor, memory_format: torch.memory_format = torch.channels_last
) -> None:
    if tensor.dtype != like.dtype or tensor.device != like.device:
        got = f"{tensor.dtype} on {tensor.device}"
        raise ValueError(f"{name}: expected {like.dtype} on {like.device}, those of x, got {got}")
    if not tensor.is_contiguous(memory_format=memory_format):
        raise ValueError(f"{name}: expected a tensor dense in {memory_format}, got strides {tensor.stride()}")


def _of_input(name: str, vector: Tensor, x: Tensor) -> Tensor:
    """A vector of a prologue of x, where 16 bytes of it can be read at a time."""
    if vector.shape != x.shape[1:2] or vector.dtype != torch.float32 or vector.device != x.device:
        got = f"{vector.dtype} {tuple(vector.shape)} on {vector.device}"
        raise ValueError(f"prologue.{name}: expected float32 [{x.shape[1]}] on {x.device}, got {got}")
    vector = vector.contiguous()
    return vector.clone() if vector.data_ptr() % 16 else vector
