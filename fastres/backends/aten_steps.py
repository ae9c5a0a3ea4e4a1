"""The passes of a training step on the CPU: PyTorch's own operators, arranged for few passes over few new tensors.

A pass over memory that was just allocated costs several over memory in use, as the system gives out zeroed pages. So a
result is written over an operand that is no longer needed, and what one block's backward needs for itself alone is in a
workspace that all blocks of that backward share. One block's backward uses one object: what `wgrad` makes again of a
convolution's input is the mask of the ReLU behind which `norm_backward` comes next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Variable

from ..block import Geometry
from .reference_steps import ReferenceSteps, conv_backward, stand_in
from .steps import Affine, Moments, Relu, Shortcut

FULL = (torch.float32, torch.float64)  # narrower ones are rounded where the reference rounds them
_SMALL = 8 << 20  # bytes that are soon in use again after they were let go


class AtenSteps(ReferenceSteps):
    def __init__(self) -> None:
        self._remade: tuple[Tensor, Tensor] | None = None  # y, and relu(y * scale + shift)

    def conv(
        self, x: Tensor, weight: Tensor, geometry: Geometry, prologue: Affine | None = None
    ) -> tuple[Tensor, Tensor]:
        if x.dtype not in FULL:
            return super().conv(x, weight, geometry, prologue)
        y = self.conv_alone(x, weight, geometry, prologue)
        mean, var = torch.ops.aten.batch_norm_update_stats.default(y, None, None, 0.0)
        values = y.numel() // y.shape[1]
        return y, torch.stack([torch.full_like(mean, values), mean, var * values], 1)

    def apply(self, y: Tensor, affine: Affine, shortcut: Shortcut | None = None, relu: bool = True) -> Tensor:
        if y.dtype not in FULL:
            return super().apply(y, affine, shortcut, relu)
        out = _argument(torch.empty_like(y), y, affine, shortcut)
        return out.relu_() if relu else out

    def norm_backward(
        self,
        y: Tensor,
        gradient: Tensor,
        moments: Moments,
        relu: Relu | None = None,
        *,
        reduce: Callable[[Tensor], Tensor] | None,
        overwrite: bool = False,
        keep_masked: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        if y.dtype not in FULL:
            return super().norm_backward(
                y, gradient, moments, relu, reduce=reduce, overwrite=overwrite, keep_masked=keep_masked
            )
        mean, invstd, scale, values = moments
        masked = gradient
        if relu is not None:
            if self._remade is not None and self._remade[0] is y and relu.shortcut is None:
                argument = self._remade[1]
            else:
                # What is kept is the caller's until the block's end, past the masks of the layers before.
                argument = _argument(workspace.like(y, "kept" if keep_masked else "masked"), y, *relu)
            masked = gradient if overwrite else argument
            torch.ops.aten.threshold_backward.grad_input(gradient, argument, 0, grad_input=masked)
        whole = reduce is None and y.nbytes <= _SMALL
        dy, dgamma, dbeta = torch.ops.aten.native_batch_norm_backward.default(
            masked, y, scale / invstd, None, None, mean, invstd, True, 0.0, [whole, True, True]
        )
        sums = torch.stack([dbeta, dgamma / invstd], 1)
        if whole:
            return dy, masked if keep_masked else None, sums
        total = sums if reduce is None else reduce(sums)
        # scale * g + slope * y + offset
        slope = total[:, 1] * scale * invstd.square() / -values
        offset = total[:, 0] * scale / -values - mean * slope
        owned = not keep_masked and (overwrite or masked is not gradient)
        # Without a ReLU, the workspace may have the gradient of the branch beside this shortcut.
        out = masked if owned else torch.empty_like(y) if relu is None else workspace.like(y, "dy")
        dy = _affine(out, masked, Affine(scale, offset))
        return dy.addcmul_(y, slope[:, None, None]), masked if keep_masked else None, sums

    def dgrad(
        self, gradient: Tensor, weight: Tensor, x: Tensor, geometry: Geometry, residual: Tensor | None = None
    ) -> Tensor:
        dx = super().dgrad(gradient, weight, x, geometry)
        return dx if residual is None else dx.add_(residual)

    def wgrad(
        self, gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, prologue: Affine | None = None
    ) -> Tensor:
        if x.dtype not in FULL:
            return super().wgrad(gradient, x, weight, geometry, prologue)
        a = x
        if prologue is not None:
            a = _affine(workspace.like(x, "input"), x, prologue).relu_()
            self._remade = x, a
        return conv_backward(gradient, a, stand_in(weight, x), geometry, (False, True))[1]


def _affine(out: Tensor, x: Tensor, affine: Affine) -> Tensor:
    """x * scale + shift, written to `out`, which may be x."""
    return torch.addcmul(affine.shift[:, None, None], x, affine.scale[:, None, None], out=out)


def _argument(out: Tensor, y: Tensor, affine: Affine, shortcut: Shortcut | None) -> Tensor:
    """y * scale + shift [+ shortcut], what a ReLU is applied to, written to `out`."""
    if shortcut is None:
        return _affine(out, y, affine)
    if shortcut.affine is None:
        return _affine(out, y, affine).add_(shortcut.x)
    _affine(out, y, Affine(affine.scale, affine.shift + shortcut.affine.shift))
    return out.addcmul_(shortcut.x, shortcut.affine.scale[:, None, None])


class _Workspace(threading.local):
    """Memory that blocks use one after the other within one backward, by purpose; let go of at its end."""

    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}

    def like(self, x: Tensor, purpose: str) -> Tensor:
        """An uninitialised tensor like x, dense in channels_last: the caller's until the next call for this purpose."""
        buffer = self.buffers.get(purpose)
        if buffer is None or buffer.dtype != x.dtype or buffer.numel() < x.numel():
            if not self.buffers and not self._ends_with_backward():
                return torch.empty_like(x, memory_format=torch.channels_last)
            self.buffers.pop(purpose, None)
            del buffer
            buffer = self.buffers[purpose] = x.new_empty(x.numel())
        n, c, h, w = x.shape
        return buffer[: x.numel()].view(n, h, w, c).permute(0, 3, 1, 2)

    def _ends_with_backward(self) -> bool:
        """Whether a backward is running, and will clear the workspace when it ends."""
        try:
            Variable._execution_engine.queue_callback(self.buffers.clear)
        except RuntimeError:
            return False
        return True


workspace = _Workspace()
