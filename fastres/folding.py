"""BatchNorm folding and its cache.

In evaluation, BatchNorm is an affine map per channel and folds into the convolution before it:

    scale = gamma / sqrt(var + eps);  weight' = weight * scale;  bias' = (bias - mean) * scale + beta

What is made of the folded weights is cached so that a forward pass costs a look-up, and must never be stale. What was
made is found by *which memory* its sources occupy, and is valid while these stand:

- Identity: the tensors' addresses, and for all but vectors the storages and the strides, as assigning to `.data` may
  turn a weight into another view of the same memory. Weak references to the storages keep a storage's address from
  being reused without keeping its memory: a deleted model frees its weights, and its folds go with a later sweep.
  Vectors are held outright: they are small, and many.
- Versions: every source's `_version`, `num_batches_tracked`'s included (BatchNorm's training forward moves the running
  statistics without moving their own versions), and an epoch that every `torch.optim` step bumps (fused optimizers
  write parameters without moving versions).
- Values, on the CPU: vectors in full and a sample of every weight (see `sampling`). This finds writes that move no
  version: in place through `.data`, through NumPy, by another process into shared memory, by a collective, into a
  storage, or by a BatchNorm that does not count its batches.

Two kinds of write are not found, and need `refresh`: one that moves no version and changes too few elements of a weight
to meet the sample; and on a GPU, whose values are not compared as that would wait for it, any that moves no version.
FASTRES_CHECK_FOLD=1 makes everything anew on every hit and raises on a mismatch.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import register_optimizer_step_post_hook

from .block import ConvBN
from .sampling import Sample

_CHECK = "FASTRES_CHECK_FOLD"
MAX_HELD_BYTES = 1 << 16  # a vector in a larger storage may be a view of a whole model's parameters
MAX_FOLDS = 4096  # sets of sources: 25 ResNet-152s; the oldest goes first
MAX_RECIPES = 128  # of one set of sources: image sizes of a stage, say; the oldest goes first
SWEEP_AFTER = 8  # deleted models' sets are looked for once an eighth of all sets are new: a few looks a new set

Prepare = Callable[[Tensor, Tensor], Any]


class _Made(NamedTuple):
    value: Any
    stream: int  # the CUDA stream that made it; 0 elsewhere


class _Folds:
    """All that is made of one set of sources while they keep their values, by recipe."""

    __slots__ = ("_held", "_sample", "_sources", "_stamp", "_watched", "made")

    def __init__(self, sources: list[Tensor], stamp: list[int]) -> None:
        vectors = [t for t in sources if t.dim() == 1]
        # Aliases of vectors, so that their addresses stay theirs; those too large to hold are looked at on every hit.
        self._held = tuple(t.detach() for t in vectors if t.untyped_storage().nbytes() <= MAX_HELD_BYTES)
        self._watched = _references([t for t in vectors if t.untyped_storage().nbytes() > MAX_HELD_BYTES])
        self._sources = _references([t for t in sources if t.dim() != 1]) + self._watched
        self._stamp = stamp
        self._sample = Sample(sources)
        self.made: dict[Hashable, _Made] = {}

    def are_valid(self, stamp: list[int]) -> bool:
        """Whether the sources, being where they were, are what they were."""
        return self._stamp == stamp and not any(ref.expired() for ref in self._watched) and self._sample.same()

    def are_orphaned(self) -> bool:
        return any(ref.expired() for ref in self._sources)


_folds: dict[tuple[Hashable, ...], _Folds] = {}
_created = 0  # sets since the last sweep
_lock = threading.Lock()
_epoch = 0
_own: ContextVar[OwnFolds | None] = ContextVar("fastres_own_folds", default=None)


def fold(layer: ConvBN, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight of `dtype`, [Cout, Cin/groups, R, S], and bias, [Cout], in float32 (float64 for float64 weights).

    Per-channel factors are computed in float64 and rounded once; the weights are multiplied in the bias's dtype.
    """
    exact = torch.float64 if layer.weight.dtype == torch.float64 else torch.float32
    scale = (layer.var.double() + layer.eps).rsqrt()
    if layer.gamma is not None:
        scale = scale * layer.gamma.double()
    shift = -layer.mean.double() if layer.bias is None else layer.bias.double() - layer.mean.double()
    bias = shift * scale
    if layer.beta is not None:
        bias = bias + layer.beta.double()
    weight = layer.weight.to(exact) * scale.to(exact).view(-1, 1, 1, 1)
    return weight.to(dtype), bias.to(exact)


def folded(layer: ConvBN, dtype: torch.dtype, recipe: Hashable, prepare: Prepare) -> Any:
    """`prepare(*fold(layer, dtype))`, cached: a tuple that holds all tensors made.

    `recipe` names the preparation (the backend, and what its packing depends on): entries of two recipes stand side
    by side. What `prepare` returns is shared between threads and must not be written.
    """
    sources = [t for t in layer.tensors() if t is not None]
    own = _own.get()
    cached = derived if own is None else own.get
    return cached(sources, (recipe, dtype, layer.eps), lambda: prepare(*fold(layer, dtype)))


def derived(
    sources: list[Tensor], recipe: Hashable, make: Callable[[], Any], keep: Callable[[Any], bool] = lambda made: True
) -> Any:
    """`make()`, cached for as long as `sources` keep their values, unless `keep(made)` says no.

    What is kept must not refer to a source: it would keep a deleted model's memory.
    """
    stamp = _stamp(sources)
    if stamp is None or _own.get() is not None:
        return _make(sources, make)
    places: list[Hashable] = [t.data_ptr() for t in sources]
    places += [t.untyped_storage()._cdata for t in sources if t.dim() != 1]
    places += [(t.shape, t.stride()) for t in sources if t.dim() > 1]
    key = tuple(places)
    folds = _folds.get(key)
    if folds is None or not folds.are_valid(stamp):
        folds = _create(key, sources, stamp)
    made = folds.made.get(recipe)
    if made is None:
        value = _make(sources, make)
        if not keep(value):
            return value
        made = _keep(folds, recipe, value, sources[0])
    elif _CHECK in os.environ and os.environ[_CHECK] == "1":
        _check(made.value, _make(sources, make), sources)
    if sources[0].is_cuda:
        _use_on_current_stream(made, sources[0].device)
    return made.value


def refresh(model: torch.nn.Module | None = None) -> None:
    """Makes the next forward pass fold all weights anew.

    Needed only after writes that PyTorch does not record (in place through `.data`, by a collective, by an optimizer
    that is not a `torch.optim.Optimizer` and moves no version): on a GPU after every such write; on a CPU, where such
    writes are looked for, only after one that changes a few elements of a weight. Also frees what is folded of deleted
    models, which otherwise stays until a later fold.

    Args:
        model: The model that was written to; accepted for readability.

    Raises:
        TypeError: `model` is not a module.
    """
    if model is not None and not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    global _epoch
    with _lock:
        _epoch += 1
        _folds.clear()  # none can be found again


class OwnFolds:
    """Folded weights of one caller's own, in memory that stays theirs: for a CUDA graph, which knows addresses.

    Within `used()`, everything that is folded in this thread is made here instead of in the cache. `renew` folds anew,
    into the same memory, what has changed since. The sources are held.
    """

    def __init__(self) -> None:
        self._folds: dict[Hashable, tuple[list[Tensor], Callable[[], Any], Any, list[int] | None]] = {}

    @contextmanager
    def used(self) -> Iterator[None]:
        token = _own.set(self)
        try:
            yield
        finally:
            _own.reset(token)

    def get(self, sources: list[Tensor], recipe: Hashable, make: Callable[[], Any]) -> Any:
        key = (recipe, *map(id, sources))
        if key not in self._folds:
            self._folds[key] = sources, make, _make(sources, make), _stamp(sources)
        return self._folds[key][2]

    def renew(self) -> int:
        """Returns how many folds had changed."""
        changed = 0
        for key, (sources, make, made, stamp) in self._folds.items():
            now = _stamp(sources)
            if now is None or now != stamp:
                for old, new in zip(_tensors(made), _tensors(_make(sources, make)), strict=True):
                    old.copy_(new)
                self._folds[key] = sources, make, made, now
                changed += 1
        return changed


def require_memory(tensors: Iterable[Tensor | None]) -> None:
    """Raises RuntimeError for a tensor whose storage was freed: not all of PyTorch's operators do."""
    for t in tensors:
        if t is not None and not t.data_ptr() and t.numel():
            raise RuntimeError(f"parameter {tuple(t.shape)}: expected a tensor with memory, got one that was freed")


def _stamp(sources: list[Tensor]) -> list[int] | None:
    """What changes when a source's values do; None for inference tensors, which keep no version."""
    try:
        return [*[t._version for t in sources], _epoch]
    except RuntimeError:
        return None


def _make(sources: list[Tensor], make: Callable[[], Any]) -> Any:
    require_memory(sources)
    # Ordinary tensors whatever mode the caller is in: the entry outlives it.
    with torch.inference_mode(False), torch.no_grad():
        made = make()
    if sources[0].is_cuda and not torch.cuda.is_current_stream_capturing():
        torch.cuda.current_stream(sources[0].device).synchronize()  # once a fold: any stream may read it from now on
    return made


def _create(key: tuple[Hashable, ...], sources: list[Tensor], stamp: list[int]) -> _Folds:
    """A new set, before anything is made of it: a write in between then shows as a change."""
    global _created
    folds = _Folds(sources, stamp)
    with _lock:
        if key not in _folds:
            _created += 1
            if _created * SWEEP_AFTER >= len(_folds):
                _created = 0
                for old in [k for k, f in _folds.items() if f.are_orphaned()]:
                    del _folds[old]
            while len(_folds) >= MAX_FOLDS:
                del _folds[next(iter(_folds))]
        _folds[key] = folds
    return folds


def _keep(folds: _Folds, recipe: Hashable, value: Any, weight: Tensor) -> _Made:
    made = _Made(value, torch.cuda.current_stream(weight.device).cuda_stream if weight.is_cuda else 0)
    with _lock:
        while len(folds.made) >= MAX_RECIPES:
            del folds.made[next(iter(folds.made))]
        folds.made[recipe] = made
    return made


def _references(tensors: list[Tensor]) -> tuple[StorageWeakRef, ...]:
    storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors}
    return tuple(map(StorageWeakRef, storages.values()))


def _tensors(made: Any) -> list[Tensor]:
    """The tensors in a nest of tuples and lists."""
    if isinstance(made, Tensor):
        return [made]
    return [t for part in made for t in _tensors(part)] if isinstance(made, tuple | list) else []


def _check(kept: Any, fresh: Any, sources: list[Tensor]) -> None:
    dense = [[t.to_dense() if t.is_mkldnn else t for t in _tensors(made)] for made in (kept, fresh)]
    if not all(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in zip(*dense, strict=True)):
        shape = tuple(sources[0].shape)
        raise RuntimeError(
            f"{_CHECK}: the folded weights of a convolution {shape} are stale: its parameters or statistics were "
            "written in a way that PyTorch does not record. Call fastres.refresh(model) after such a write"
        )


def _use_on_current_stream(made: _Made, device: torch.device) -> None:
    stream = torch.cuda.current_stream(device)
    if stream.cuda_stream != made.stream:
        for tensor in _tensors(made.value):
            tensor.record_stream(stream)  # its memory must not be reused before this stream is done with it


def _on_optimizer_step(*_: Any) -> None:
    refresh()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it, and does not exist in the child


register_optimizer_step_post_hook(_on_optimizer_step)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
