"""`capture(model, x)`: a model's forward as a CUDA graph, one launch instead of dozens. For small batches, where the
host, not the GPU, sets the pace.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .folding import OwnFolds

WARM_UPS = 2  # forwards before capture: lazy initialisation, tuning and folding happen there


@dataclass
class _Graph:
    """A captured forward: `replay(x)` copies `x` to the graph's input, launches it, and returns the graph's output."""

    replay: Callable[[Tensor], Any]
    folds: OwnFolds
    addresses: list[int]  # of the parameters and buffers it was captured with


class CapturedModel:
    """What `capture` returns: call it like the model.

    The result is memory of the graph: the next call with an input of the same shape overwrites it, so `.clone()` what
    must live longer. No gradients are recorded. Calls may come from any stream, one thread at a time.

    Weights may change between calls. What is folded of them is renewed in place; a parameter or buffer that moved to
    other memory makes the graph anew. A change of the model's structure (a hook, a replaced module) is not seen:
    capture again.
    """

    def __init__(self, model: nn.Module, max_graphs: int) -> None:
        self.model = model
        self.max_graphs = max_graphs
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._lock = threading.Lock()
        self._stores = [store for m in model.modules() for store in (m._parameters, m._buffers)]

    def __call__(self, x: Tensor) -> Any:
        """The model's output for `x`, a CUDA tensor; captures where `x`'s shape, layout or dtype is new.

        Raises TypeError or ValueError for an `x` that is no CUDA tensor, RuntimeError if the model is in training
        mode, and whatever the model raises.
        """
        if self.model.training:
            raise RuntimeError("model: expected evaluation mode, got training mode: call model.eval()")
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a torch.Tensor, got {type(x).__name__}")
        kind = x.device.type
        key = (x.shape, x.stride(), x.dtype, x.device, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        addresses = [t.data_ptr() for store in self._stores for t in store.values() if t is not None]
        with self._lock, torch.no_grad():
            graph = self._graphs.pop(key, None)
            if graph is None or graph.addresses != addresses:
                folds = OwnFolds()
                with folds.used():
                    graph = _Graph(_record(self.model, x), folds, addresses)
            self._graphs[key] = graph
            while len(self._graphs) > self.max_graphs:
                self._graphs.popitem(last=False)  # the one not used for longest
            graph.folds.renew()
            return graph.replay(x)


def capture(model: nn.Module, x: Tensor, *, max_graphs: int = 8) -> CapturedModel:
    """Captures `model`'s forward on inputs like `x`; see `CapturedModel` for what comes of it.

    Args:
        model: any model in evaluation mode on a CUDA device whose forward takes one tensor and does not synchronise.
        x: an example input: the first shape captured. Every other shape is captured when it first comes.
        max_graphs: how many shapes to keep, the latest used; each keeps its activations' memory.

    Raises:
        TypeError: if `model` is not an nn.Module or `x` not a tensor.
        ValueError: if `x` is not on a CUDA device, or `max_graphs` is below 1.
        RuntimeError: if the model is in training mode.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if max_graphs < 1:
        raise ValueError(f"max_graphs: expected at least 1, got {max_graphs}")
    captured = CapturedModel(model, max_graphs)
    captured(x)
    return captured


def _record(forward: Callable[[Tensor], Any], x: Tensor) -> Callable[[Tensor], Any]:
    if x.device.type != "cuda":
        raise ValueError(f"x: expected a CUDA tensor, got one on {x.device}")
    with torch.cuda.device(x.device):
        static_x = x.clone()
        caller, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(caller)
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                forward(static_x)
        caller.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = forward(static_x)
        done = torch.cuda.Event()

    def replay(x: Tensor) -> Any:
        with torch.cuda.device(static_x.device):
            torch.cuda.current_stream().wait_event(done)  # the last call may have come from another stream
            static_x.copy_(x)
            graph.replay()
            done.record()
        return y

    return replay
