"""`warmup(model, x)`: the compilation and folding that a first forward would stop for, done ahead."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def warmup(model: nn.Module, x: Tensor) -> None:
    """Runs `model(x)` once, so that no later forward on such an input compiles a kernel or folds a weight.

    Triton keeps what it compiles in its own cache on disk: after the first process, the next ones only load it. Other
    batch or image sizes may need another tile, hence another compilation: warm up each size that is to be served.

    Raises whatever `model(x)` raises, TypeError unless `model` is an nn.Module, and ValueError for a model in training
    mode, whose running statistics a forward would move.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if model.training:
        raise ValueError("model: expected one in evaluation mode, got one in training mode; call model.eval() first")
    with torch.no_grad():
        model(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
