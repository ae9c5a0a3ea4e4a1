"""`input="uint8"`: images of 8-bit pixels, normalised inside the stem, on every path and through every transform."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from models import image, randomize, small_pair
from test_ops import GEOMETRIES, OPS, answered, make_layer, with_gradients
from test_transforms import _capturing, operators
from tolerance import assert_right, assert_same_function, to_oracle
from torch import Tensor, fx, nn
from torchvision.models import resnet as tv
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms.v2 import functional as F

import fastres
from fastres import reference
from fastres.block import ConvBN
from fastres.measure.parity import pytorchs_own
from fastres.models.plain import PlainNet18
from fastres.pixels import MEAN, STD, Pixels

LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


def pixels(*size: int) -> Tensor:
    return torch.randint(0, 256, size or (2, 3, 64, 64), dtype=torch.uint8)


class Normalized(nn.Module):
    """A model behind torchvision's own conversion and normalisation."""

    def __init__(self, model: nn.Module, mean: Any = MEAN, std: Any = STD) -> None:
        super().__init__()
        self.model, self.mean, self.std = model, list(mean), list(std)

    def forward(self, x: Tensor) -> Any:
        dtype = next(self.model.parameters()).dtype
        exact = torch.promote_types(dtype, torch.float32)
        return self.model(F.normalize(F.to_dtype(x, exact, scale=True), self.mean, self.std).to(dtype))


def model_pair(**kwargs: Any) -> tuple[fastres.ResNet, nn.Module]:
    """(ours of 8-bit pixels, torchvision's behind its normalisation)."""
    _, theirs = small_pair()
    ours = fastres.ResNet(fastres.Bottleneck, [1, 2, 1, 1], width_per_group=16, input="uint8", **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return ours.eval(), Normalized(theirs, **kwargs)


# --- numbers


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_model_takes_what_torchvision_normalises(layout: torch.memory_format) -> None:
    ours, theirs = model_pair()
    assert_same_function(ours, theirs, pixels().contiguous(memory_format=layout))
    assert_same_function(ours, theirs, pixels(1, 3, 33, 41).contiguous(memory_format=layout))
    packed = torch.randint(0, 256, (2, 40, 48, 3), dtype=torch.uint8)  # as image libraries store them
    assert_same_function(ours, theirs, packed.permute(0, 3, 1, 2))


def test_mean_and_std_are_the_callers() -> None:
    ours, theirs = model_pair(mean=(0.1, -0.5, 0.9), std=[2.0, 0.05, 0.3])
    assert ours.pixels == Pixels((0.1, -0.5, 0.9), (2.0, 0.05, 0.3))
    assert_same_function(ours, theirs, pixels())


def test_bfloat16() -> None:
    ours, theirs = model_pair()
    assert_same_function(ours.bfloat16(), theirs.bfloat16(), pixels())


def normalized_stem(x: Tensor, layer: ConvBN, pool: tuple[int, int, int], numbers: Pixels) -> Tensor:
    """The specification spelled out: normalise, then pad with zeros."""
    dtype = torch.promote_types(layer.weight.dtype, torch.float32)
    image = F.normalize(F.to_dtype(x, dtype, scale=True), list(numbers.mean), list(numbers.std))
    return reference.stem(image.to(layer.weight.dtype), layer, *pool)


@pytest.mark.parametrize("pool", [(3, 2, 1), (2, 2, 0)], ids=str)
@pytest.mark.parametrize("size", [(9, 14), (32, 31), (1, 1)], ids=str)
def test_the_border_is_zero_after_normalisation(
    size: tuple[int, int], pool: tuple[int, int, int], backend: str
) -> None:
    """A black image far from the mean: a border padded with black, or with the shift, would be off by much."""
    layer = make_layer(**GEOMETRIES["7x7/2"] | {"cout": 64})
    numbers = Pixels((0.9, 0.2, 0.5), (0.1, 0.02, 0.05))
    if min(size) < 2 and pool[2] == 0:
        return
    black, white = (torch.full((1, 3, *size), value, dtype=torch.uint8) for value in (0, 255))
    x = torch.cat([black, white, pixels(2, 3, *size).to(black.device)])
    with answered(backend, layer):
        result = OPS.stem_uint8(x, *layer.arguments(), *pool, torch.float32, *numbers, "")
        exact = normalized_stem(x.cpu(), to_oracle(layer), pool, numbers)
        with pytorchs_own():
            plain = normalized_stem(x, layer, pool, numbers)
        assert_right(result, plain, exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_inside_the_cuda_kernel(dtype: torch.dtype) -> None:
    """In the emulator: only if the kernel is the one of 8-bit pixels is no image of numbers made."""
    layer = make_layer(**GEOMETRIES["7x7/2"] | {"cout": 64}, dtype=dtype)
    x, numbers = pixels(1, 3, 20, 17), Pixels((0.9, 0.2, 0.5), (0.1, 0.02, 0.05))
    with torch.profiler.profile() as profile:
        result = OPS.stem_uint8(x, *layer.arguments(), 3, 2, 1, dtype, *numbers, "emulator")
    assert "aten::div" not in {event.key for event in profile.key_averages()}
    exact = normalized_stem(x, to_oracle(layer), (3, 2, 1), numbers)
    assert_right(result, normalized_stem(x, layer, (3, 2, 1), numbers), exact)


# --- paths that do not fuse


def test_training_is_that_of_normalised_images() -> None:
    ours, _ = model_pair()
    floats = fastres.ResNet(fastres.Bottleneck, [1, 2, 1, 1], width_per_group=16)
    floats.load_state_dict(ours.state_dict())
    x = pixels()
    assert ours.pixels is not None
    ours.train()(x).square().mean().backward()
    floats.train()(reference.normalize(x, ours.pixels, torch.float32)).square().mean().backward()
    for (name, a), b in zip(ours.named_parameters(), floats.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


def test_with_a_hook_on_the_first_convolution() -> None:
    ours, theirs = model_pair()
    seen: list[torch.dtype] = []
    ours.conv1.register_forward_hook(lambda module, args, output: seen.append(args[0].dtype))
    assert_same_function(ours, theirs, pixels())
    assert seen == [torch.float32]


def test_without_the_max_pool() -> None:
    ours, theirs = model_pair()
    ours.maxpool = theirs.model.maxpool = nn.Identity()
    assert_same_function(ours, theirs, pixels(1, 3, 24, 24))


# --- transforms


@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16])
def test_autocast(parameters: torch.dtype) -> None:
    ours, theirs = (model.to(parameters) for model in model_pair())
    x = pixels()
    oracle = to_oracle(theirs)(x)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        result, plain = ours(x), theirs(x)
        first = ours.conv1, ours.bn1, ours.relu, ours.maxpool
        assert fastres.fused.stem(x, *first, pixels=ours.pixels).dtype == torch.bfloat16
    assert_right(result, plain, oracle)


def test_explain() -> None:
    ours, _ = model_pair()
    first = fastres.explain(ours, pixels()).layers[0]
    assert (first.name, first.x_shape, first.backend) == ("conv1", (2, 3, 64, 64), "onednn")


def test_opcheck() -> None:
    layer = make_layer(**GEOMETRIES["7x7/2"])
    args = pixels(2, 3, 21, 21), *with_gradients(layer).arguments(), 3, 2, 1, torch.float32, list(MEAN), list(STD), ""
    torch.library.opcheck(OPS.stem_uint8.default, args)


def test_compile() -> None:
    torch._dynamo.reset()
    ours, theirs = model_pair()
    graphs: list[fx.GraphModule] = []
    assert_same_function(torch.compile(ours, fullgraph=True, backend=_capturing(graphs)), theirs, pixels())
    assert operators(graphs[0]) == {"fastres::stem_uint8", "fastres::stage", "fastres::head"}


def test_export() -> None:
    ours, theirs = model_pair()
    batch = torch.export.Dim("batch", min=1, max=8)
    with torch.no_grad(), fastres.use_backend("auto"):
        program = torch.export.export(ours, (pixels(),), dynamic_shapes=({0: batch},))
    assert operators(program.graph_module) == {"fastres::stem_uint8", "fastres::stage", "fastres::head"}
    assert_same_function(program.module(), theirs, pixels(3, 3, 64, 64))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_traced_and_extracted() -> None:
    ours, theirs = model_pair()
    x = pixels()
    assert_same_function(fx.symbolic_trace(ours), theirs, x)
    extractor = create_feature_extractor(ours, ["layer2"])
    assert_same_function(extractor, Normalized(create_feature_extractor(theirs.model, ["layer2"])), x)
    with torch.no_grad():
        assert_same_function(torch.jit.trace(ours, x), theirs, x)
    with pytest.raises(TypeError, match="TorchScript has no input='uint8'"):
        torch.jit.script(ours)


def test_copies_keep_it() -> None:
    ours, theirs = model_pair(mean=(0.3, 0.2, 0.1), std=(0.1, 0.2, 0.3))
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), fastres.optimize(ours)):
        assert_same_function(copied, theirs, pixels())
    assert ours.state_dict().keys() == theirs.model.state_dict().keys()


# --- optimize


@pytest.mark.parametrize("name", ["resnet18", "resnet18d"])  # the second's stem is of three convolutions
def test_optimize_timm(name: str) -> None:
    plain = randomize(timm.create_model(name)).eval()
    fast = fastres.optimize(plain, input="uint8")
    assert_same_function(fast, Normalized(plain), pixels(1, 3, 64, 64))


def test_optimize_inside_a_larger_model() -> None:
    resnet = randomize(tv.ResNet(tv.BasicBlock, [1, 1, 1, 1])).eval()
    fast = fastres.optimize(nn.Sequential(resnet, nn.Softmax(1)), input="uint8", mean=[0.5] * 3, std=[0.2] * 3)
    assert_same_function(fast, nn.Sequential(Normalized(resnet, [0.5] * 3, [0.2] * 3), nn.Softmax(1)), pixels())


@pytest.mark.parametrize("returned", [{"layer2": "out"}, {"relu": "early", "layer1": "out"}], ids=str)
def test_optimize_the_body_of_a_segmentation_model(returned: dict[str, str]) -> None:
    resnet = randomize(tv.ResNet(tv.BasicBlock, [1, 1, 1, 1])).eval()
    plain = IntermediateLayerGetter(resnet, returned)
    assert_same_function(fastres.optimize(plain, input="uint8"), Normalized(plain), pixels())


# --- what is refused


Build = Callable[..., nn.Module]
MODEL = tv.ResNet(tv.BasicBlock, [1, 1, 1, 1])
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "input": ({"input": "int8"}, "input: expected 'float' or 'uint8', got 'int8'"),
    "mean of floats": ({"mean": MEAN}, r"mean: expected None, .*input='float'"),
    "std of floats": ({"std": STD}, r"std: expected None, .*input='float'"),
    "length": ({"input": "uint8", "mean": (0.5,)}, r"mean: expected 3 finite numbers, one a channel, got \(0\.5,\)"),
    "infinite": ({"input": "uint8", "std": (1, 1, float("inf"))}, "std: expected 3 finite numbers"),
    "zero": ({"input": "uint8", "std": (1, 0, 1)}, r"std: expected positive numbers, got \(1\.0, 0\.0, 1\.0\)"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("build", [fastres.ResNet18, PlainNet18, lambda **kwargs: fastres.optimize(MODEL, **kwargs)])
def test_arguments(build: Build, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**arguments)


def test_optimize_wants_one_that_takes_the_image() -> None:
    for model, count in ((nn.Sequential(nn.Conv2d(3, 4, 3)), 0), (nn.ModuleList([tv.resnet18(), tv.resnet18()]), 2)):
        with pytest.raises(ValueError, match=rf"one ResNet that takes the image, got {count}"):
            fastres.optimize(model, input="uint8", inplace=True)
    assert type(model[0]) is tv.ResNet, "refused before anything is converted"


@pytest.mark.parametrize("mode", ["evaluation", "training", "autocast"])
def test_an_image_of_numbers(mode: str) -> None:
    ours, theirs = model_pair()
    ours.train(mode == "training")
    message = r"x: expected torch\.uint8, as the model has input='uint8', got torch\.float32"
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"), pytest.raises(TypeError, match=message):
        ours(image())
    assert_same_function(ours.eval(), theirs, pixels())


def test_the_operator_s_arguments() -> None:
    layer, x = make_layer(**GEOMETRIES["7x7/2"]).arguments(), pixels(1, 3, 9, 9)
    for arguments, message in (
        (
            (x.float(), *layer, 3, 2, 1, torch.float32, MEAN, STD),
            r"x: expected torch\.uint8, got torch\.float32",
        ),
        (
            (x, *layer, 3, 2, 1, torch.float32, MEAN, (1.0,)),
            "pixel_mean, pixel_std: expected 3 numbers each, got 3 and 1",
        ),
        ((x[:, :2], *layer, 3, 2, 1, torch.float32, MEAN, STD), "x: expected 3 channels"),
    ):
        with pytest.raises(ValueError, match=message):
            OPS.stem_uint8(*arguments, "")


def test_empty_batch() -> None:
    ours, theirs = model_pair()
    with torch.no_grad():
        assert ours(pixels(0, 3, 32, 32)).shape == theirs(pixels(0, 3, 32, 32)).shape
