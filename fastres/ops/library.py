"""How an operator of fastres is registered: schema, implementation, fake, autograd and autocast, by one call each.

`torch.library.Library.define` and `impl` rather than `custom_op`: a third of the overhead per call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def _define_namespace() -> torch.library.Library:
    """The library of all operators, in place of one left by an earlier import of fastres in this process."""
    namespace: Any = torch.ops.fastres
    if (previous := vars(namespace).get("_library")) is not None:
        previous._destroy()
    namespace._library = torch.library.Library("fastres", "DEF")
    return namespace._library


LIBRARY = _define_namespace()


def define(
    schema: str,
    *,
    implementation: Callable[..., Tensor],
    fake: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    activations: Sequence[int],
    dtypes: Sequence[int] = (),
) -> None:
    """Registers `fastres::<schema>`, functional and with one output.

    `reference` has the operator's signature and is made of differentiable PyTorch operators; the gradient is that of
    `reference`, recomputed in backward from the operator's inputs, which are all that is saved. Under autocast the
    arguments at the positions `activations` are cast, and autocast's dtype stands for those at `dtypes`; parameters
    stay as they are and are folded in full precision.
    """
    autograd = _backward_of(reference), _save_inputs
    # Of parameters that were freed, backends say so when they prepare them.
    register(schema, implementation, fake, autograd, activations, dtypes, addressed=(0, *activations[1:]))


def register(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    autograd: tuple[Callable[..., Any], Callable[..., None] | None],
    activations: Sequence[int] = (),
    dtypes: Sequence[int] = (),
    addressed: Sequence[int] | None = None,
) -> None:
    """Registers `fastres::<schema>`, functional, with `autograd`, its backward and what saves for it.

    Without `activations` and `dtypes` it is not for autocast. `addressed` as `implement` has it.
    """
    name = schema.partition("(")[0]
    qualified = f"fastres::{name}"
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
    implement(name, implementation, fake, addressed)
    backward, setup = autograd
    torch.library.register_autograd(qualified, backward, setup_context=setup, lib=LIBRARY)
    if not (activations or dtypes):
        return
    packet = getattr(torch.ops.fastres, name)
    for device in ("cpu", "cuda"):
        LIBRARY.impl(name, _autocast_of(packet.default, device, activations, dtypes), f"Autocast{device.upper()}")


def implement(
    name: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    addressed: Sequence[int] | None = None,
) -> None:
    """Gives the defined operator its implementation and its fake.

    The fake also stands for the implementation on the meta device, and PyTorch calls it if any one argument is there,
    so it raises RuntimeError if only some are. The implementation may read addresses, so it raises RuntimeError for a
    tensor whose storage was freed, as PyTorch's operators do: among the arguments at `addressed`, or among all.
    """

    def checked(*args: Any) -> Any:
        tensors = _tensors(args) if addressed is None else [(i, args[i]) for i in addressed]
        for i, tensor in tensors:
            if tensor is not None and not tensor.data_ptr() and tensor.numel():
                raise RuntimeError(f"{_argument(name, i)}: expected a tensor with memory, got one that was freed")
        return implementation(*args)

    def checked_fake(*args: Any) -> Any:
        found = {tensor.device.type == "meta": i for i, tensor in _tensors(args)}
        if len(found) == 2:
            raise RuntimeError(f"{_argument(name, found[True])}: expected a tensor with memory, got one on meta")
        return fake(*args)

    LIBRARY.impl(name, checked, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastres::{name}", checked_fake, lib=LIBRARY)


def _tensors(args: Sequence[Any]) -> list[tuple[int, Tensor]]:
    """The tensors among the arguments and in their lists, each with its argument's position."""
    lists = [(i, value if isinstance(value, list | tuple) else [value]) for i, value in enumerate(args)]
    return [(i, part) for i, parts in lists for part in parts if isinstance(part, Tensor)]


def _argument(name: str, index: int) -> str:
    return getattr(torch.ops.fastres, name).default._schema.arguments[index].name


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensors: list[Tensor] = []
    layout: list[Any] = []  # per argument: a position in `tensors`, a list of them, or the plain value
    for value in inputs:
        if isinstance(value, Tensor):
            layout.append(("tensor", len(tensors)))
            tensors.append(value)
        elif isinstance(value, list | tuple) and any(isinstance(v, Tensor) for v in value):
            layout.append(("tensors", range(len(tensors), len(tensors) + len(value))))
            tensors.extend(value)
        else:
            layout.append(("value", value))
    ctx.save_for_backward(*tensors)
    ctx.layout = layout


def _backward_of(reference: Callable[..., Tensor]) -> Callable[..., Any]:
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors

        def rebuild(pick: Callable[[int], Any], plain: Callable[[Any], Any]) -> tuple[Any, ...]:
            rule = {"tensor": pick, "tensors": lambda places: [pick(i) for i in places], "value": plain}
            return tuple(rule[kind](what) for kind, what in ctx.layout)

        with torch.enable_grad():
            # A view each: a tensor that is two inputs gets each one's share of the gradient, not twice the whole.
            inputs = [t.view_as(t) if t.requires_grad else t for t in saved]
            output = reference(*rebuild(inputs.__getitem__, lambda value: value))
        wanted = [t for t in inputs if t.requires_grad]
        # The views keep their bases' history, so a second derivative goes through them.
        grads = iter(torch.autograd.grad(output, wanted, grad, create_graph=torch.is_grad_enabled(), allow_unused=True))
        by_tensor = [next(grads) if t.requires_grad else None for t in inputs]
        return rebuild(by_tensor.__getitem__, lambda value: None)

    return backward


def _autocast_of(operator: Any, device: str, activations: Sequence[int], dtypes: Sequence[int]) -> Callable[..., Any]:
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device.upper()}"))
    castable = (torch.float32, torch.float16, torch.bfloat16)  # PyTorch's rule: float64 is left alone

    def autocast(*args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device)
        values = list(args)
        for i in activations:
            if values[i] is not None and values[i].dtype in castable:
                values[i] = values[i].to(dtype)
        for i in dtypes:
            if values[i] in castable:
                values[i] = dtype
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operator(*values)

    return autocast
