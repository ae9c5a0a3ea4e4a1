"""Operator `head`: global average pooling and the classifier."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..backends.registry import AUTO, PLAIN, get, requested
from .library import define


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    if x.dim() != 4 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"x: expected [N, {weight.shape[1]}, H, W], got {tuple(x.shape)}")
    name = requested(backend)
    return get("reference" if name in (AUTO, PLAIN) else name).head(x, weight, bias)


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    return torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)


define(
    "head(Tensor x, Tensor weight, Tensor? bias, str backend) -> Tensor",
    implementation=_run,
    fake=_fake,
    reference=lambda x, weight, bias, backend: reference.head(x, weight, bias),
    activations=(0,),
)
