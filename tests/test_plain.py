"""The paper's other choices in the ImageNet family: plain nets, shortcut options, the original stride placement."""

from __future__ import annotations

import pytest
import torch
import torchvision.models._api
import twins
from models import image, randomize, without_initialisation
from steps import assert_same_step
from tolerance import assert_same_function
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet as tv

import fastres
from fastres.models import plain

DEPTHS = {"18": [2, 2, 2, 2], "34": [3, 4, 6, 3]}
CASES = [(option, layers) for option in ("A", "C", "plain") for layers in DEPTHS]


def build(option: str, layers: str) -> nn.Module:
    if option == "plain":
        return getattr(plain, f"PlainNet{layers}")()
    return getattr(fastres, f"ResNet{layers}")(shortcut=option)


def pair(option: str, layers: str) -> tuple[nn.Module, nn.Module]:
    """(ours, the twin), in evaluation mode, with equal randomised parameters of their own."""
    twin = randomize(twins.imagenet(option, DEPTHS[layers])).eval()
    ours = without_initialisation(build, option, layers)
    ours.load_state_dict(twin.state_dict())
    return ours.eval(), twin


def original(name: str) -> tuple[nn.Module, nn.Module]:
    """(ours, torchvision's) with the stride in the first 1x1 convolution."""
    theirs = getattr(tv, name.lower())()
    for block in theirs.modules():
        if isinstance(block, tv.Bottleneck) and block.stride != 1:
            block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
    randomize(theirs).eval()
    ours = without_initialisation(getattr(fastres, name), stride_in_1x1=True)
    ours.load_state_dict(theirs.state_dict())
    return ours.eval(), theirs


def multiply_adds(model: nn.Module) -> float:
    """Billions for one image of 224 x 224: convolutions and the classifier, as the paper counts."""
    with FlopCounterMode(display=False) as counted:
        model.train()(torch.empty(2, 3, 224, 224, device="meta"))
    return counted.get_total_flops() / 2 / 2 / 1e9


# Table 1 and figure 3 give one decimal, rounded up or down.
@pytest.mark.parametrize(
    ("name", "option", "billions"),
    [
        ("18", "plain", 1.8),
        ("18", "A", 1.8),
        ("34", "plain", 3.6),
        ("34", "A", 3.6),
        ("50", "B", 3.8),
        ("101", "B", 7.6),
        ("152", "B", 11.3),
    ],
)
def test_multiply_adds_are_the_papers(name: str, option: str, billions: float) -> None:
    with torch.device("meta"):
        if name in DEPTHS:
            model = build(option, name)
        else:
            model = getattr(fastres, f"ResNet{name}")(shortcut=option, stride_in_1x1=True)
        assert abs(multiply_adds(model) - billions) < 0.1


@pytest.mark.parametrize("layers", DEPTHS)
def test_identities_have_no_parameters(layers: str) -> None:
    with torch.device("meta"):
        plain_net, identity = build("plain", layers), build("A", layers)
        projected, all_projected = build("B", layers), build("C", layers)
    assert plain_net.state_dict().keys() == identity.state_dict().keys()
    assert not any("downsample" in name for name in identity.state_dict())
    sizes = [sum(p.numel() for p in model.parameters()) for model in (plain_net, identity, projected, all_projected)]
    assert sizes[0] == sizes[1] < sizes[2] < sizes[3]
    assert projected.state_dict().keys() == getattr(tv, f"resnet{layers}")().state_dict().keys()


@pytest.mark.parametrize(("option", "layers"), CASES)
def test_evaluation(option: str, layers: str) -> None:
    assert_same_function(*pair(option, layers), image())


@pytest.mark.parametrize(("option", "layers"), CASES)
def test_every_convolution_is_fused(option: str, layers: str) -> None:
    ours, _ = pair(option, layers)
    assert {layer.backend for layer in fastres.explain(ours, image(1, 3, 48, 48)).layers} == {"onednn"}


@pytest.mark.parametrize("option", ["A", "C", "plain"])
def test_training_step(option: str) -> None:
    assert_same_step(*pair(option, "18"), image(2, 3, 48, 48))


@pytest.mark.parametrize("name", ["ResNet50", "ResNeXt50_32x4d"])
def test_original_stride_placement(name: str) -> None:
    ours, theirs = original(name)
    assert_same_function(ours, theirs, image())
    x = image(2, 3, 48, 48).double()
    with torch.no_grad():
        torch.testing.assert_close(*(model.double().train()(x) for model in (ours, theirs)))


@pytest.mark.parametrize("shortcut", ["A", "C"])
def test_shortcuts_of_bottlenecks_run(shortcut: str) -> None:
    model = fastres.ResNet(fastres.Bottleneck, [1, 1, 1, 2], width_per_group=16, shortcut=shortcut, num_classes=7)
    assert model.eval()(image(1, 3, 32, 32)).shape == (1, 7)
    kinds = {type(block.downsample) for block in (model.layer1[0], model.layer4[0])}
    assert kinds == ({nn.Sequential} if shortcut == "C" else {type(model.layer1[0].downsample)})
    assert (model.layer4[1].downsample is None) == (shortcut == "A")


def test_initialisation_of_new_projections_is_he() -> None:
    model = fastres.ResNet18(shortcut="C")
    weight = model.layer4[1].downsample[0].weight
    assert weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.02)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"shortcut: expected one of 'A', 'B', 'C', got 'a'"):
        fastres.ResNet18(shortcut="a")
    with pytest.raises(ValueError, match=r"stride_in_1x1: expected False"):
        fastres.ResNet18(stride_in_1x1=True)
    with pytest.raises(TypeError, match="weights"):
        plain.PlainNet18(weights="DEFAULT")


@pytest.mark.parametrize("choice", [{"shortcut": "A"}, {"shortcut": "C"}, {"stride_in_1x1": True}])
def test_published_weights_are_of_another_structure(choice: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("a download was asked for")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", never)
    with pytest.raises(ValueError, match=rf"{next(iter(choice))}: expected .* that of ResNet50_Weights"):
        fastres.ResNet50(weights="DEFAULT", **choice)
