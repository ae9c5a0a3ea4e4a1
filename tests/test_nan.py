"""NaN and infinity come through a model in evaluation as they do through torchvision's, on every backend here."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from models import image, small_pair
from test_ops import AVAILABLE
from torch import Tensor, nn

import fastres

Change = Callable[[nn.Module, Tensor], object]


def _weight(name: str, value: float) -> Change:
    return lambda model, x: model.get_parameter(name).data.view(-1)[:1].fill_(value)


def _overflow(model: nn.Module, x: Tensor) -> None:
    """Every value is finite, and a sum inside is infinity less infinity."""
    for norm in (model.layer2[0].bn1, model.layer2[0].bn2):
        norm.weight.data.fill_(3e38)


CHANGES: dict[str, Change] = {
    "NaN in the image": lambda model, x: x[0, 1, 3, 4].fill_(math.nan),
    "infinity in the image": lambda model, x: x[0, 1, 3, 4].fill_(math.inf),
    "negative infinity in the image": lambda model, x: x[0, 1, 3, 4].fill_(-math.inf),
    "NaN in the first weight": _weight("conv1.weight", math.nan),
    "NaN in a weight": _weight("layer2.0.conv2.weight", math.nan),
    "infinity in a weight": _weight("layer3.0.conv3.weight", math.inf),
    "NaN in a shortcut's weight": _weight("layer1.0.downsample.0.weight", math.nan),
    "NaN in a last convolution": _weight("layer4.0.conv3.weight", math.nan),
    "NaN in a beta": _weight("layer3.0.bn2.bias", math.nan),
    "negative variance": lambda model, x: model.layer1[0].bn1.running_var.fill_(-1),
    "overflow": _overflow,
}


@pytest.mark.parametrize("backend", [*AVAILABLE, "auto"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_model(change: Change, backend: str) -> None:
    (ours, theirs), x = small_pair(), image()
    with torch.no_grad():
        ours(x)  # what is folded of the finite weights must not stay
        for model in (ours, theirs):
            change(model, x)
        with fastres.use_backend(backend):
            found = ours(x)
        expected = theirs(x)
    assert not expected.isfinite().all(), "nothing is tested"
    assert torch.equal(found.isnan(), expected.isnan())


@pytest.mark.parametrize("backend", [*AVAILABLE, "auto"])
def test_a_single_value_stays_in_its_image(backend: str) -> None:
    (ours, _), x = small_pair(), image()
    clean = copy.deepcopy(x)
    x[0, 0, 0, 0] = math.nan
    with torch.no_grad(), fastres.use_backend(backend):
        found, right = ours(x), ours(clean)
    assert found[0].isnan().all()
    assert torch.equal(found[1], right[1])
