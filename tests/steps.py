"""A training step of a model, ours beside torchvision's."""

from __future__ import annotations

import copy
from typing import Any

import torch
from tolerance import assert_right, to_oracle
from torch import Tensor, nn

from fastres.measure.parity import pytorchs_own


def step(model: nn.Module, x: Tensor, train: bool = True) -> dict[str, Tensor]:
    """By name: the output, the gradients of the input and of the parameters, and the buffers after the step."""
    model.zero_grad()
    x = x.detach().clone().requires_grad_()
    inner = getattr(model, "_orig_mod", model)  # of a compiled one
    out = model.train(train)(x)
    (out.square().mean() + out.sin().sum()).backward()
    found = {"output": out.detach(), "gradient of x": x.grad}
    found |= {f"gradient of {name}": p.grad for name, p in inner.named_parameters() if p.grad is not None}
    return found | {name: buffer.detach().clone() for name, buffer in inner.named_buffers()}


def assert_same_step(ours: nn.Module, theirs: nn.Module, x: Tensor, **kwargs: Any) -> None:
    """Fails unless both models' steps agree in float64 to half its digits, by each tensor's largest value.

    There an error of logic is larger than rounding; in float32 a whole network's gradients would show luck, too: a ReLU
    whose argument is within rounding of zero.
    """
    found, expected = (step(model.double(), x.double(), **kwargs) for model in (ours, theirs))
    assert list(found) == list(expected)
    for name, tensor in found.items():
        right = expected[name]
        assert tensor.shape == right.shape, name
        assert (tensor - right).abs().max() <= right.abs().max() * torch.finfo(torch.float64).eps ** 0.5, name


def assert_step_is_right(ours: nn.Module, theirs: nn.Module, x: Tensor, **kwargs: Any) -> None:
    """Fails unless our step keeps the tolerance rule: the output, and everything else as one, by each largest value.

    As one, because the rule compares largest errors, and among a vector's few values those are luck.
    """
    oracle = step(to_oracle(copy.deepcopy(theirs)), to_oracle(x), **kwargs)
    found = step(ours, x, **kwargs)
    with pytorchs_own():
        expected = step(theirs, x, **kwargs)
    assert list(found) == list(expected)
    assert_right(found["output"], expected["output"], oracle["output"])
    assert_right(*(_as_one(tensors, oracle) for tensors in (found, expected, oracle)))


def _as_one(tensors: dict[str, Tensor], scales: dict[str, Tensor]) -> Tensor:
    return torch.cat([(tensor / scales[name].abs().max().to(tensor)).flatten() for name, tensor in tensors.items()])
