"""The models are torchvision's: names, arguments, state dict, weights, numbers and gradients."""

from __future__ import annotations

import functools
import inspect
import pickle
import warnings
from typing import Any

import pytest
import torch
import torchvision.models._api
from models import VARIANTS, image, pair, randomize, small_pair
from steps import assert_same_step
from tolerance import assert_same_function
from torch import Tensor, nn
from torchvision.models import resnet as tv
from torchvision.ops import FrozenBatchNorm2d

import fastres

NAMES = [name for name, _ in VARIANTS]

ARGUMENTS: dict[str, dict[str, Any]] = {
    "zero_init_residual": {"zero_init_residual": True},
    "groups and width": {"groups": 4, "width_per_group": 8},
    "dilated": {"replace_stride_with_dilation": [False, True, True]},
    "frozen": {"norm_layer": FrozenBatchNorm2d},
    "other eps": {"norm_layer": functools.partial(nn.BatchNorm2d, eps=1e-3)},
    "group norm": {"norm_layer": functools.partial(nn.GroupNorm, 8)},
    "default norm": {"norm_layer": None},
    "classes": {"num_classes": 1003},
}


# --- structure


@pytest.mark.parametrize(("name", "theirs"), VARIANTS)
def test_structure_is_torchvisions(name: str, theirs: Any) -> None:
    with torch.device("meta"):
        ours, plain = getattr(fastres, name)(), theirs()
    assert isinstance(ours, tv.ResNet)
    assert [(n, p.shape, p.dtype) for n, p in ours.state_dict().items()] == [
        (n, p.shape, p.dtype) for n, p in plain.state_dict().items()
    ]
    assert [n for n, _ in ours.named_modules()] == [n for n, _ in plain.named_modules()]
    assert all(isinstance(a, type(b)) for a, b in zip(ours.modules(), plain.modules(), strict=True))


@pytest.mark.parametrize("kwargs", ARGUMENTS.values(), ids=ARGUMENTS)
def test_initialisation_is_torchvisions(kwargs: dict[str, Any]) -> None:
    torch.manual_seed(1)
    plain = tv.resnet50(**kwargs)
    torch.manual_seed(1)
    ours = fastres.ResNet50(**kwargs)
    assert ours.state_dict().keys() == plain.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


@pytest.mark.parametrize("kwargs", [{"groups": 2}, {"width_per_group": 32}, {"replace_stride_with_dilation": [1]}])
def test_arguments_that_torchvision_refuses(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"BasicBlock|replace_stride") as theirs:
        tv.resnet18(**kwargs)
    with pytest.raises(ValueError, match=r"BasicBlock|replace_stride") as ours:
        fastres.ResNet18(**kwargs)
    assert str(ours.value) == str(theirs.value)


# --- numbers


@pytest.mark.parametrize("name", NAMES)
def test_evaluation(name: str) -> None:
    ours, theirs = pair(name)
    assert_same_function(ours, theirs, image())


@pytest.mark.parametrize("kwargs", ARGUMENTS.values(), ids=ARGUMENTS)
def test_evaluation_with_arguments(kwargs: dict[str, Any]) -> None:
    ours, theirs = small_pair(**kwargs)
    assert_same_function(ours, theirs, image())


def test_the_fused_operators_ran() -> None:
    ours, _ = small_pair()
    assert {layer.backend for layer in fastres.explain(ours, image()).layers} == {"onednn"}


@pytest.mark.parametrize("name", NAMES)
def test_training_step(name: str) -> None:
    """Output, gradients and running statistics; then the evaluation that sees them. The last stage's image is 2 x 2."""
    ours, theirs = pair(name)
    assert_same_step(ours, theirs, image(2, 3, 33, 33))
    with torch.no_grad():
        torch.testing.assert_close(*(model.eval()(torch.ones(1, 3, 33, 33).double()) for model in (ours, theirs)))


@pytest.mark.parametrize("kwargs", ARGUMENTS.values(), ids=ARGUMENTS)
def test_training_step_with_arguments(kwargs: dict[str, Any]) -> None:
    ours, theirs = small_pair(**kwargs)
    assert_same_step(ours, theirs, image(2, 3, 49, 33))


def test_gradients_in_evaluation_mode() -> None:
    """A fine-tune with frozen statistics: gradients of every parameter and of the input, in float64."""
    ours, theirs = (model.double() for model in small_pair())
    grads = []
    for model in (ours, theirs):
        x = torch.linspace(-2, 2, 2 * 3 * 64 * 64, dtype=torch.float64).view(2, 3, 64, 64).requires_grad_()
        model(x).square().sum().backward()
        grads.append({"x": x.grad, **{name: p.grad for name, p in model.named_parameters()}})
    torch.testing.assert_close(*grads)


# --- inputs


@pytest.mark.parametrize("size", [(32, 32), (33, 33), (65, 47), (224, 160), (1, 1), (7, 90)])
def test_any_image_size(size: tuple[int, int]) -> None:
    ours, theirs = small_pair()
    assert_same_function(ours, theirs, image(1, 3, *size))


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_any_batch(batch: int) -> None:
    ours, theirs = small_pair()
    assert_same_function(ours, theirs, image(batch, 3, 64, 64))


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_any_batch_in_training(batch: int) -> None:
    ours, theirs = small_pair()
    x = image(batch, 3, 64, 64).double()
    torch.testing.assert_close(ours.double().train()(x), theirs.double().train()(x))


def _misaligned(x: Tensor) -> Tensor:
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x)


LAYOUTS = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every other column": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "every other image": lambda x: x.repeat_interleave(2, 0)[::2],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "one channel expanded": lambda x: x[:, :1].expand_as(x),
    "misaligned": _misaligned,
    "misaligned channels_last": lambda x: _misaligned(x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2),
    "crop": lambda x: nn.functional.pad(x, (1, 2, 3, 4))[:, :, 3:-4, 1:-2],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_any_layout(layout: Any) -> None:
    ours, theirs = small_pair()
    x = image(2, 3, 65, 47)
    laid_out = layout(x)
    before = laid_out.clone()
    assert_same_function(ours, theirs, laid_out)
    assert torch.equal(laid_out, before)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_any_dtype_and_memory_format(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    """`auto` runs what the processor's library lacks (float64, and often float16) by the reference.

    Nothing is more exact than float64, so there torchvision runs in the layout of ours and the two must be equal.
    """
    ours, theirs = small_pair()
    ours.to(dtype=dtype, memory_format=memory_format)
    theirs.to(dtype=dtype, memory_format=torch.channels_last if dtype == torch.float64 else memory_format)
    assert_same_function(ours, theirs, image(2, 3, 65, 47, dtype=dtype))


# --- pretrained weights, without a download


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What torchvision would have downloaded: {"url": ..., "state": ...}; tests set "state"."""
    asked: dict[str, Any] = {}

    def load(url: str, **_: Any) -> Any:
        asked["url"] = url
        return asked["state"]

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", load)
    return asked


@pytest.mark.parametrize("weights", ["DEFAULT", "IMAGENET1K_V1", tv.ResNet18_Weights.IMAGENET1K_V1])
def test_weights(published: dict[str, Any], weights: Any) -> None:
    _, theirs = pair("ResNet18")
    published["state"] = theirs.state_dict()
    ours = fastres.ResNet18(weights=weights)
    assert published["url"] == tv.ResNet18_Weights.IMAGENET1K_V1.url
    assert_same_function(ours.eval(), theirs, image())


@pytest.mark.parametrize(("name", "theirs"), VARIANTS)
def test_every_variant_has_torchvisions_weights(name: str, theirs: Any) -> None:
    assert getattr(fastres, name).weights_enum is torchvision.models.get_model_weights(theirs)


def called(call: Any, *args: Any, **kwargs: Any) -> tuple[list[str], dict[str, Tensor] | str]:
    """The warnings of a call that builds a model, and its state dict or what it raises."""
    with warnings.catch_warnings(record=True) as caught, torch.random.fork_rng():
        warnings.simplefilter("always")
        torch.manual_seed(0)
        try:
            result: Any = call(*args, **kwargs).state_dict()
        except (TypeError, ValueError, KeyError) as error:
            result = type(error).__name__
    return [str(warning.message) for warning in caught], result


LEGACY: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "nothing": ((), {}),
    "pretrained=False": ((), {"pretrained": False}),
    "pretrained=True": ((), {"pretrained": True}),
    "positional None": ((None,), {}),
    "positional False": ((False,), {}),
    "positional True": ((True,), {}),
    "positional name": (("IMAGENET1K_V1", False), {}),
    "weights=False": ((), {"weights": False}),
    "weights and pretrained": ((), {"weights": None, "pretrained": False}),
    "three positionals": ((None, True, 10), {}),
}


@pytest.mark.parametrize("spelling", ["resnet18", "ResNet18"])
@pytest.mark.parametrize(("args", "kwargs"), LEGACY.values(), ids=LEGACY)
def test_the_legacy_interface_is_torchvisions(
    published: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any], spelling: str
) -> None:
    published["state"] = randomize(tv.resnet18()).state_dict()
    expected_warnings, expected = called(tv.resnet18, *args, **kwargs)
    url = published.pop("url", None)
    found_warnings, found = called(getattr(fastres, spelling), *args, **kwargs)
    assert found_warnings == expected_warnings
    assert published.get("url") == url
    if isinstance(expected, str):
        assert found == expected
    else:
        assert not isinstance(found, str)
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("name", "theirs"), VARIANTS)
def test_names_and_signatures_are_torchvisions(name: str, theirs: Any) -> None:
    ours = getattr(fastres, theirs.__name__)
    expected = torchvision.models.get_model_weights(theirs)
    assert (ours.__name__, ours.__qualname__, inspect.isfunction(ours)) == (theirs.__name__, theirs.__qualname__, True)
    assert torchvision.models.get_model_weights(ours) is torchvision.models.get_model_weights(getattr(fastres, name))
    assert torchvision.models.get_model_weights(ours) is expected
    described = [(p.name, p.kind, p.default) for p in inspect.signature(ours).parameters.values()]
    assert described == [(p.name, p.kind, p.default) for p in inspect.signature(theirs).parameters.values()]
    assert pickle.loads(pickle.dumps(ours)) is ours
    with torch.device("meta"):
        assert type(ours()) is getattr(fastres, name)


def test_weights_load_strictly(published: dict[str, Any]) -> None:
    state = tv.resnet18().state_dict()
    published["state"] = {name: tensor for name, tensor in state.items() if name != "fc.bias"}
    with pytest.raises(RuntimeError, match=r"Missing key.*fc\.bias"):
        fastres.ResNet18(weights="DEFAULT")


def test_weights_of_another_number_of_classes(published: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"num_classes: expected 1000.*got 10"):
        fastres.ResNet18(weights="DEFAULT", num_classes=10)
    assert "url" not in published


@pytest.mark.parametrize("weights", ["IMAGENET22K", tv.ResNet50_Weights.DEFAULT])
def test_weights_that_do_not_exist(published: dict[str, Any], weights: Any) -> None:
    with pytest.raises((TypeError, KeyError, ValueError)) as theirs:
        tv.resnet18(weights=weights)
    with pytest.raises(type(theirs.value)):
        fastres.ResNet18(weights=weights)
    assert "url" not in published
