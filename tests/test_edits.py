"""What a user may change on a built model: the result is that of torchvision's model after the same change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from models import image, small_pair
from steps import assert_same_step
from tolerance import assert_same_function
from torch import nn
from torch.autograd import forward_ad


def _set(names: list[str], **values: object) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        for name in names:
            for key, value in values.items():
                setattr(model.get_submodule(name), key, value)

    return change


EDITS: dict[str, Callable[[nn.Module], None]] = {
    "a stride as int": _set(["layer2.0.conv2", "layer2.0.downsample.0"], stride=1),
    "padding and dilation as ints": _set(["layer1.0.conv2"], padding=2, dilation=2),
    "statistics not tracked": _set(["bn1", "layer1.0.bn2", "layer2.0.downsample.1"], track_running_stats=False),
    "a negative momentum": _set(["layer1.0.bn1"], momentum=-0.5),
    "a momentum of None": _set(["layer1.0.bn1"], momentum=None),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_step_after_an_edit(edit: Callable[[nn.Module], None], training: bool) -> None:
    ours, theirs = small_pair()
    edit(ours)
    edit(theirs)
    if training:
        assert_same_step(ours, theirs, image(2, 3, 48, 48))
    else:
        assert_same_function(ours.eval(), theirs.eval(), image())


@pytest.mark.parametrize("training", [False, True])
def test_a_counter_on_meta(training: bool) -> None:
    """As `load_state_dict(assign=True, strict=False)` leaves one: it counts nothing, and all else is as ever."""
    x = image(2, 3, 48, 48).double()
    found = []
    for model in small_pair():
        for bn in (model.bn1, model.layer1[0].bn1):
            bn.num_batches_tracked = torch.tensor(0, device="meta")
        y = model.double().train(training)(x)
        found.append([y, model.bn1.running_mean, model.layer1[0].bn1.running_var, model.layer1[0].bn2.running_mean])
    torch.testing.assert_close(*found)


def test_an_image_of_one_channel_for_a_weight_of_one() -> None:
    ours, theirs = small_pair()
    weight = torch.randn(64, 1, 7, 7)
    for model in (ours, theirs):
        model.conv1.weight = nn.Parameter(weight.clone())
    assert_same_function(ours, theirs, image(2, 1, 64, 64))
    with pytest.raises(ValueError, match=r"x: expected \[N, 1, H, W\], got \(2, 3, 64, 64\)"):
        ours(image())


def test_only_the_classifier_s_bias_trains() -> None:
    gradients = []
    for model in small_pair():
        model.requires_grad_(False).fc.bias.requires_grad_()
        model(torch.ones(2, 3, 32, 32)).square().sum().backward()
        gradients.append(model.fc.bias.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("recorded", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("dual", ["image", "weight"])
def test_tangents(dual: str, recorded: bool) -> None:
    x, direction = image(1, 3, 32, 32).double(), torch.randn(64, 3, 7, 7).double()
    tangents = []
    for model in small_pair():
        model.double().requires_grad_(recorded)
        with torch.set_grad_enabled(recorded), forward_ad.dual_level():
            if dual == "image":
                y = model(forward_ad.make_dual(x, x.flip(2)))
            else:
                weight = forward_ad.make_dual(model.conv1.weight.detach(), direction)
                y = torch.func.functional_call(model, {"conv1.weight": weight}, (x,))
            tangents.append(forward_ad.unpack_dual(y).tangent)
    assert tangents[1] is not None
    torch.testing.assert_close(*tangents)
