"""A call as a CUDA graph, so that a layer's time is the device's own, with none of the host's in it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UPS = 3  # lazy initialisation, tuning and folding happen outside the capture


def captured(forward: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """`forward` as a CUDA graph on `device`. Its output is overwritten by the next call."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            forward()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = forward()

    def replay() -> Tensor:
        graph.replay()
        return y

    return replay
