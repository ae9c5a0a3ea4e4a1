"""The rule by which a result is right, `fastres.measure.parity`'s, for tensors, modules and functions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from fastres.measure.parity import ParityError, check, pytorchs_own


def without_onednn() -> AbstractContextManager[None]:
    """Within it, PyTorch's convolutions on the CPU keep NaN and infinities where they belong.

    Those of oneDNN in bfloat16, on a processor that multiplies tiles of it, make NaN of an infinity's neighbours.
    """
    return torch.backends.mkldnn.flags(enabled=False)


def to_oracle(value: Any) -> Any:
    """A float64 copy on the CPU of a tensor, a module, or a nest of them; everything else is itself."""
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).to("cpu", torch.float64)
    if isinstance(value, Tensor):
        return value.detach().to("cpu", torch.float64) if value.is_floating_point() else value.detach().cpu()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(to_oracle(v) for v in value))
    if isinstance(value, list | tuple):
        return type(value)(to_oracle(v) for v in value)
    return value


def assert_right(result: Tensor, plain: Tensor, oracle: Tensor, what: str = "result") -> None:
    """Fails unless `result` keeps the rule; `oracle` is the float64 one.

    `plain` is PyTorch's in the same dtype, on a GPU in float32 computed within `pytorchs_own`.
    """
    try:
        check(result, oracle, plain)
    except ParityError as error:
        raise AssertionError(f"{what}: {error}") from error


def assert_same_function(fast: Callable[..., Any], plain: Callable[..., Any], *inputs: Any) -> None:
    """Fails unless `fast(*inputs)` keeps the rule against `plain` (a module or a function of its inputs alone).

    A result may be a tensor, or a dict or sequence of tensors.
    """
    with torch.no_grad():
        result = fast(*inputs)
        with pytorchs_own():
            expected = plain(*inputs)
        oracle = to_oracle(plain)(*to_oracle(list(inputs)))
    for name, got in _named(result).items():
        assert_right(got, _named(expected)[name], _named(oracle)[name], name)
    assert _named(result).keys() == _named(expected).keys()


def _named(value: Any) -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {"result": value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return {f"{key}.{name}": tensor for key, part in pairs for name, tensor in _named(part).items()}
