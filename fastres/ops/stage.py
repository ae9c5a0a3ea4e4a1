"""Operator `stage`: residual blocks in sequence, one call for one of the paper's conv2_x to conv5_x.

One operator instead of a dozen saves dispatch; and since every block's output but the last is known to no one else,
the next block may accumulate into it, which the operators of one convolution must not do with their residual.
"""

from __future__ import annotations

from torch import Tensor

from .. import reference
from ..backends import ranking, registry
from ..block import unflatten
from ..folding import derived
from ..layout import empty, nhwc
from .conv import Prepared, prepared, run_projection
from .library import define

# A block as it is run: the branch's convolutions, and the shortcut's if it is a projection.
_Plan = list[tuple[list[Prepared], Prepared | None]]


def _run(x: Tensor, tensors: list[Tensor], spec: list[int], eps: list[float], backend: str) -> Tensor:
    x = nhwc(x)
    owned = False  # whether `x` was made in this call
    for branch, shortcut in _plan(x, tensors, spec, eps, backend):
        y = x
        for conv, weights in branch[:-1]:
            y = conv.conv(y, weights, True)
        if shortcut is None:
            conv, weights = branch[-1]
            x = conv.conv(y, weights, True, x, owned)
        else:
            x = run_projection(y, branch[-1], x, shortcut)
        owned = True
    return nhwc(x)


def _plan(x: Tensor, tensors: list[Tensor], spec: list[int], eps: list[float], backend: str) -> _Plan:
    """The stage as backends and prepared weights: checked and resolved once, then one look-up for all its layers."""
    if not spec:
        raise ValueError("spec: expected one block or more, got none")
    name = registry.requested(backend)

    def make() -> _Plan:
        plan: _Plan = []
        meta = x
        for branch, shortcut in unflatten(tensors, spec, eps):
            block_input, steps = meta, []
            last = ranking.RESIDUAL if shortcut is None else ranking.PROJECTION
            for layer in branch:
                layer.check(meta)
                steps.append(prepared(meta, layer, name, last if layer is branch[-1] else ranking.CONV))
                meta = empty(x, layer.out_size(meta))
            projected = None
            if shortcut is not None:
                shortcut.check(block_input)
                projected = prepared(block_input, shortcut, name, ranking.SHORTCUT, steps[-1][0])
            identity = block_input.shape if shortcut is None else shortcut.out_size(block_input)
            if meta.shape != identity:
                raise ValueError(f"a block's branch gives {tuple(meta.shape)}, its shortcut {tuple(identity)}")
            plan.append((steps, projected))
        return plan

    def cacheable(plan: _Plan) -> bool:
        steps = [step for branch, shortcut in plan for step in (*branch, shortcut) if step is not None]
        return not any(backend.keeps_parameters for backend, _ in steps)

    if registry.is_recording():
        return make()
    recipe = ("stage", x.shape, x.dtype, x.device, name, registry.switches(), tuple(spec), tuple(eps))
    return derived(tensors, recipe, make, cacheable)


def _fake(x: Tensor, tensors: list[Tensor], spec: list[int], eps: list[float], backend: str) -> Tensor:
    for branch, _ in unflatten(tensors, spec, eps):
        for layer in branch:
            x = empty(x, layer.out_size(x))
    return x


define(
    "stage(Tensor x, Tensor[] tensors, int[] spec, float[] eps, str backend) -> Tensor",
    implementation=_run,
    fake=_fake,
    reference=lambda x, tensors, spec, eps, backend: reference.stage(x, unflatten(tensors, spec, eps)),
    activations=(0,),
)
