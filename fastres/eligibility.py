"""What may fuse: modules are read into a `Reading`, or the reason why they must be called one by one is given.

Asked anew on every call, so that a hook added, a weight pruned or a mode switched between two forward passes is
respected. That is 53 times in a ResNet-50, so `read` looks at each attribute once, past nn.Module's attribute protocol.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.nn.modules import module as _module
from torchvision.ops import FrozenBatchNorm2d

from . import frozen
from .backends import registry, training
from .block import Block, ConvBN, Geometry, Norm

Pair = tuple[nn.Module, nn.Module]
C = TypeVar("C", bound=type)

BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)
_TRAINED = BATCH_NORMS[:2]  # other norms are frozen: torchvision's, and those that `frozen` knows
# Tensor: DataParallel's replicas, functional_call; FakeTensor: torch.export. Not DTensor, nor a quantised weight.
_WEIGHTS = (nn.Parameter, Tensor, FakeTensor)

# What stands for a module's function, by class. A kernel computes what these did when fastres was imported.
_METHODS: dict[type, tuple[str, ...]] = {
    nn.Conv2d: ("forward", "_conv_forward"),
    nn.BatchNorm2d: ("forward", "_check_input_dim"),
    nn.SyncBatchNorm: ("forward", "_check_input_dim"),
    FrozenBatchNorm2d: ("forward",),
    nn.ReLU: ("forward",),
    nn.MaxPool2d: ("forward",),
    nn.AdaptiveAvgPool2d: ("forward",),
    nn.Linear: ("forward",),
    nn.Identity: ("forward",),
    nn.Sequential: ("forward",),
}
_classes = SimpleNamespace(Module=nn.Module, **{kind.__name__: kind for kind in _METHODS})
_functions_now = attrgetter(
    "Module.__call__",
    "Module._call_impl",
    *(f"{kind.__name__}.{name}" for kind, names in _METHODS.items() for name in (*names, "__call__")),
)
_FUNCTIONS = _functions_now(_classes)
_BY_CLASS = {kind: [getattr(kind, name) for name in (*names, "__call__")] for kind, names in _METHODS.items()}
_blocks: set[Any] = set()


class Reading(NamedTuple):
    """Modules as one operator takes them, a projection's convolution last."""

    layers: tuple[ConvBN, ...]
    projected: bool
    training: bool  # gradients are recorded, or a BatchNorm normalises by its batch
    norms: tuple[Norm, ...] = ()  # in training, one a layer
    batch_norms: tuple[Any, ...] = ()
    group: str = ""  # over which synchronised statistics are, or ""

    def block(self) -> Block:
        return Block(self.layers[:-1], self.layers[-1]) if self.projected else Block(self.layers, None)


def read(
    x: Any,
    pairs: Sequence[Pair],
    acts: Iterable[nn.Module | None] = (),
    other: Tensor | None = None,
    *,
    projection: Pair | None = None,
    backend: str = "",
) -> Reading | str:
    """Reads convolutions with their BatchNorms, or says why they may not run as one operator on `x`.

    Args:
        x: the first one's input, [N, C, H, W].
        pairs: (convolution, BatchNorm) of the branch.
        acts: the activations between and behind them.
        other: a second activation that the call takes: a residual or a block's input.
        projection: (convolution, BatchNorm) of the shortcut.
        backend: the name that the model carries, or "".
    """
    if isinstance(x, fx.Proxy):
        return "the call is traced by torch.fx"
    every = pairs if projection is None else (*pairs, projection)
    layers: list[ConvBN] = []
    trains = False
    for conv, bn in every:
        layer = _read_pair(conv, bn)
        if isinstance(layer, str):
            return layer
        layers.append(layer)
        trains = trains or (bn.training and type(bn) in _TRAINED)
    for act in acts:
        if act is not None and (why := reason_unsupported(act, nn.ReLU)):
            return why
    if why := call_unsupported(backend):
        return why
    if _functions_replaced():
        kinds = {nn.Conv2d, nn.ReLU, *(type(bn) for _, bn in every)}
        if replaced := [kind.__name__ for kind in kinds if _is_replaced(kind)]:
            return f"a function of {', '.join(sorted(replaced))} was replaced"
    if not (trains or _records_gradient(x, other, layers)):
        # In a compiled graph the operator is told by its resolver: to compute the same without fusing.
        if not torch.compiler.is_compiling() and registry.requested(backend) == registry.PLAIN:
            return "asked for by name"
        return Reading(tuple(layers), projection is not None, False)
    return _read_training(x, layers, [bn for _, bn in every], projection is not None, backend)


def _records_gradient(x: Any, other: Tensor | None, layers: list[ConvBN]) -> bool:
    return torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, other, *(t for layer in layers for t in layer.tensors()))
    )


def _read_training(x: Any, layers: list[ConvBN], bns: list[Any], projected: bool, backend: str) -> Reading | str:
    for layer, bn in zip(layers, bns, strict=True):
        if layer.bias is not None:
            return "the convolution has a bias, and is trained"
        if bn.training and type(bn) in _TRAINED:
            if not bn.track_running_stats:
                return "BatchNorm is told not to track its statistics"
            if layer.num_batches_tracked is None:
                return "BatchNorm does not count its batches"
    if torch.compiler._is_exporting_flag:
        return "a training step is exported as PyTorch's own operators"
    if x.numel() == 0:
        return "an empty batch"
    if why := _training_unsupported(str(x.device), backend):
        return why
    norms, groups = zip(*map(_norm, bns), strict=True)
    group = max(groups)  # "" is less than any name
    if any(name not in ("", group) for name in groups):
        return "BatchNorms of one block synchronise over different process groups"
    return Reading(tuple(layers), projected, True, norms, tuple(bns), group)


@torch.compiler.assume_constant_result
def _training_unsupported(device: str, backend: str) -> str:
    return training.reason_unsupported(torch.device(device), backend) or ""


def _norm(bn: Any) -> tuple[Norm, str]:
    """How a BatchNorm normalises, and the name of the process group over which, or ""."""
    if not bn.training or not isinstance(bn, nn.modules.batchnorm._BatchNorm):
        return Norm.RUNNING, ""
    if type(bn) is nn.SyncBatchNorm and dist.is_available() and dist.is_initialized():
        group: Any = bn.process_group or dist.group.WORLD
        if dist.get_world_size(group) > 1:
            return Norm.SYNCHRONISED, group.group_name
    return Norm.BATCH, ""


def pair_unsupported(conv: nn.Module, bn: nn.Module, act: nn.Module | None = None) -> str | None:
    """Why a convolution, its norm and its activation fuse in neither mode, or None. For reports, not for each call."""
    layer = _read_pair(conv, bn)
    if isinstance(layer, str):
        return layer
    return None if act is None else reason_unsupported(act, nn.ReLU)


def call_unsupported(backend: str) -> str | None:
    """Why nothing may fuse at present, whatever the modules, or None. `backend` is the name that the model carries."""
    if torch.compiler._is_exporting_flag and not _named(backend):  # Dynamo holds is_exporting() to be always true
        return "an exported program holds PyTorch's operators unless a backend is named, 'auto' for any"
    if torch.compiler.is_compiling():
        return None  # what follows are eager states that a compiled graph cannot be in
    if torch.jit.is_tracing():
        return "the call is traced by torch.jit"
    if forward_ad._current_level >= 0:
        return "tangents are computed, by forward-mode differentiation"
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform is active"
    if _module._has_any_global_hook():
        return "a global module hook is registered"
    return None


def reason_unsupported(module: Any, kind: type[nn.Module]) -> str | None:
    """Why `module` must be called rather than read as a `kind` of PyTorch's, or None.

    It is of another type, has a hook, or one of its functions was replaced, on the class or on the module.
    """
    if type(module) is not kind:
        return f"{type(module).__name__} is not exactly {kind.__name__}"
    if why := _changed(module):
        return why
    if _functions_replaced() and _is_replaced(kind):
        return f"a function of {kind.__name__} was replaced"
    return None


def must_be_called(module: nn.Module) -> bool:
    """Whether reading the parts of a fastres block or stage instead of calling it would compute something else."""
    kind = type(module)
    if kind.forward not in _blocks or kind.__call__ is not _CALL or _changed(module) is not None:
        return True
    return not torch.compiler.is_compiling() and _module._has_any_global_hook()


def fuses(cls: C) -> C:
    """Class decorator: instances whose `forward` is this class's, as it is now, may be read instead of called."""
    _blocks.add(cls.forward)  # type: ignore[attr-defined]
    return cls


def hooked(module: nn.Module) -> bool:
    """Whether a hook is registered on this very module."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def plain_weight(weight: Any) -> bool:
    """Whether a parameter is an ordinary tensor, whose memory a kernel may read."""
    return type(weight) in _WEIGHTS


_CALL = nn.Module.__call__


def _changed(module: Any) -> str | None:
    """What was changed on this very module, or None."""
    if hooked(module):
        return f"a hook is registered on {type(module).__name__}"
    of_module = module.__dict__
    for name in ("forward", "_conv_forward", "_check_input_dim", "_call_impl"):
        if name in of_module:
            return f"the {name} of this {type(module).__name__} was replaced"
    return None


@torch.compiler.assume_constant_result
def _named(backend: str) -> bool:
    return registry.is_named(backend)


@torch.compiler.assume_constant_result
def _functions_replaced() -> bool:
    """Whether any function of a class that fuses is another than at import."""
    if torch.compiler._is_exporting_flag:  # the exporter's own, which calls the module's
        return False
    return _functions_now(_classes) != _FUNCTIONS


@torch.compiler.assume_constant_result
def _is_replaced(kind: Any) -> bool:
    of_module = nn.Module.__call__, nn.Module._call_impl
    now = [getattr(kind, name) for name in (*_METHODS.get(kind, ()), "__call__")]
    return of_module != _FUNCTIONS[:2] or now != _BY_CLASS.get(kind, now)


def _read_pair(conv: Any, bn: Any) -> ConvBN | str:
    kind = type(bn)
    of_conv_dict, of_bn_dict = conv.__dict__, bn.__dict__
    if (
        (kind not in BATCH_NORMS and frozen.eps_of(bn) is None)
        or type(conv) is not nn.Conv2d
        or conv._forward_hooks
        or conv._forward_pre_hooks
        or bn._forward_hooks
        or bn._forward_pre_hooks
        or conv.padding_mode != "zeros"
        or isinstance(conv.padding, str)
        or "forward" in of_conv_dict
        or "_conv_forward" in of_conv_dict
        or "_call_impl" in of_conv_dict
        or "forward" in of_bn_dict
        or "_check_input_dim" in of_bn_dict
        or "_call_impl" in of_bn_dict
        or conv._backward_hooks
        or conv._backward_pre_hooks
        or bn._backward_hooks
        or bn._backward_pre_hooks
    ):
        return _why_not(conv, bn)
    of_conv: dict[str, Any] = conv._parameters
    of_bn: dict[str, Any] = bn._buffers
    try:
        weight, bias = of_conv["weight"], of_conv["bias"]
        mean, var = of_bn["running_mean"], of_bn["running_var"]
        count = of_bn.get("num_batches_tracked")
        of_bn = bn._parameters if kind in _TRAINED else of_bn
        gamma, beta = of_bn["weight"], of_bn["bias"]
    except KeyError:  # DataParallel's replicas have attributes instead
        weight, bias, gamma, beta = conv.weight, conv.bias, bn.weight, bn.bias
        mean, var, count = bn.running_mean, bn.running_var, getattr(bn, "num_batches_tracked", None)
    if type(weight) not in _WEIGHTS:
        return f"the weight is a {type(weight).__name__}"
    if mean is None or var is None:
        return "BatchNorm keeps no running statistics"
    if count is not None and count.is_meta and not weight.is_meta:
        count = None  # left there by load_state_dict(assign=True, strict=False): it counts nothing
    geometry = Geometry(_pair(conv.stride), _pair(conv.padding), _pair(conv.dilation), conv.groups)
    eps: Any = bn.eps if kind in BATCH_NORMS else frozen.eps_of(bn)
    return ConvBN(weight, bias, gamma, beta, mean, var, count, eps, geometry)


def _pair(sides: Any) -> tuple[int, int]:
    """Of a convolution's stride, padding or dilation, for which a user may have set one int."""
    return (sides, sides) if isinstance(sides, int) else sides


def _why_not(conv: Any, bn: Any) -> str:
    if type(bn) not in BATCH_NORMS and frozen.eps_of(bn) is None:
        return f"{type(bn).__name__} is not exactly one of {', '.join(k.__name__ for k in BATCH_NORMS)}"
    if why := reason_unsupported(conv, nn.Conv2d) or reason_unsupported(bn, type(bn)):
        return why
    return f"padding {conv.padding!r} in mode {conv.padding_mode!r}, not zeros of a given width"
