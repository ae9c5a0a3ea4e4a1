"""BatchNorm folding and its cache.

In evaluation, BatchNorm is an affine map per channel and folds into the convolution before it:

    scale = gamma / sqrt(var + eps);  weight' = weight * scale;  bias' = (bias - mean) * scale + beta

What is made of the folded weights is cached so that a forward costs a look-up, and must never be stale. An entry is
found by *which memory* its sources occupy and is valid while *their versions* stand:

- Identity is the tensor's address, and for all but vectors the storage's and the strides: assigning to `.data` may
  turn a weight into another view of the same memory. The entry holds weak references to the storages, which keep a
  storage's address from being reused without keeping its memory: a deleted model frees its weights, and the entry goes
  with the next sweep. Vectors are held outright: they are small, and many.
- Validity is every source's `_version`, `num_batches_tracked`'s included (BatchNorm's training forward moves the
  running statistics without moving their own versions), and an epoch that every `torch.optim` step bumps (fused
  optimizers write parameters without moving versions).

Writes that leave no such trace (through NumPy, or in place through `.data`: `weight.data.mul_(2)`) need `refresh`.
FASTRES_CHECK_FOLD=1 recomputes every hit and raises on a mismatch.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import register_optimizer_step_post_hook

from .block import ConvBN

_CHECK = "FASTRES_CHECK_FOLD"
MAX_HELD_BYTES = 1 << 16  # a vector in a larger storage may be a view of a whole model's parameters
MAX_ENTRIES = 4096  # 26 ResNet-152s; the oldest entry goes first

Prepare = Callable[[Tensor, Tensor], Any]


class _Entry(NamedTuple):
    sources: tuple[StorageWeakRef, ...]
    watched: tuple[StorageWeakRef, ...]  # those of vectors too large to hold; looked at on every hit
    held: tuple[Tensor, ...]  # aliases of the other vectors, so that their addresses stay theirs
    stamp: list[int]
    made: Any
    stream: int  # the CUDA stream that made it; 0 elsewhere


_entries: dict[tuple[Hashable, ...], _Entry] = {}
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
    key = (recipe, *places)
    entry = _entries.get(key)
    if entry is None or entry.stamp != stamp or any(ref.expired() for ref in entry.watched):
        made = _make(sources, make)
        if not keep(made):
            return made
        entry = _store(key, stamp, sources, made)
    elif _CHECK in os.environ and os.environ[_CHECK] == "1":
        _check(entry, _make(sources, make), sources)
    if sources[0].is_cuda:
        _use_on_current_stream(entry, sources[0].device)
    return entry.made


def refresh(model: torch.nn.Module | None = None) -> None:
    """Makes the next forward fold all weights anew.

    Needed only after writes that PyTorch does not record: through NumPy, in place through `.data`, or by an optimizer
    that is not a `torch.optim.Optimizer` and moves no version. Also frees what is folded of deleted models, which
    otherwise stays until the next fold. `model` is accepted for readability.
    """
    if model is not None and not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    global _epoch
    with _lock:
        _epoch += 1
        _entries.clear()  # none can be found again


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


def _stamp(sources: list[Tensor]) -> list[int] | None:
    """What changes when a source's values do; None for inference tensors, which keep no version."""
    try:
        return [*[t._version for t in sources], _epoch]
    except RuntimeError:
        return None


def _make(sources: list[Tensor], make: Callable[[], Any]) -> Any:
    # Ordinary tensors whatever mode the caller is in: the entry outlives it.
    with torch.inference_mode(False), torch.no_grad():
        made = make()
    if sources[0].is_cuda and not torch.cuda.is_current_stream_capturing():
        torch.cuda.current_stream(sources[0].device).synchronize()  # once a fold: any stream may read it from now on
    return made


def _store(key: tuple[Hashable, ...], stamp: list[int], sources: list[Tensor], made: Any) -> _Entry:
    vectors = [t for t in sources if t.dim() == 1]
    held = tuple(t.detach() for t in vectors if t.untyped_storage().nbytes() <= MAX_HELD_BYTES)
    watched = _references([t for t in vectors if t.untyped_storage().nbytes() > MAX_HELD_BYTES])
    references = _references([t for t in sources if t.dim() != 1]) + watched
    stream = torch.cuda.current_stream(sources[0].device).cuda_stream if sources[0].is_cuda else 0
    entry = _Entry(references, watched, held, stamp, made, stream)
    with _lock:
        if key not in _entries:
            for old in [k for k, e in _entries.items() if any(ref.expired() for ref in e.sources)]:
                del _entries[old]
            while len(_entries) >= MAX_ENTRIES:
                del _entries[next(iter(_entries))]
        _entries[key] = entry
    return entry


def _references(tensors: list[Tensor]) -> tuple[StorageWeakRef, ...]:
    storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors}
    return tuple(map(StorageWeakRef, storages.values()))


def _tensors(made: Any) -> list[Tensor]:
    """The tensors in a nest of tuples and lists."""
    if isinstance(made, Tensor):
        return [made]
    return [t for part in made for t in _tensors(part)] if isinstance(made, tuple | list) else []


def _check(entry: _Entry, fresh: Any, sources: list[Tensor]) -> None:
    dense = [[t.to_dense() if t.is_mkldnn else t for t in _tensors(made)] for made in (entry.made, fresh)]
    if not all(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in zip(*dense, strict=True)):
        shape = tuple(sources[0].shape)
        raise RuntimeError(
            f"{_CHECK}: the folded weights of a convolution {shape} are stale: its parameters or statistics were "
            "written in a way that PyTorch does not record. Call fastres.refresh(model) after such a write"
        )


def _use_on_current_stream(entry: _Entry, device: torch.device) -> None:
    stream = torch.cuda.current_stream(device)
    if stream.cuda_stream != entry.stream:
        for tensor in _tensors(entry.made):
            tensor.record_stream(stream)  # its memory must not be reused before this stream is done with it


def _on_optimizer_step(*_: Any) -> None:
    refresh()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it, and does not exist in the child


register_optimizer_step_post_hook(_on_optimizer_step)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
