"""The byte model of plans: passes counted by hand, totals against the layers' own costs."""

from math import prod

import pytest
import torch

from fastres.measure import traffic
from fastres.measure.roofline import Ceilings, Layer, layers
from fastres.measure.traffic import BOUNDS, CONV, FUSIONS, PLANS, Step, passes, total

F32 = torch.float32
CONV1 = Layer("conv", (2, 8, 4, 4), (16, 8, 1, 1), (2, 16, 4, 4), relu=True)
X, W, OUT = 2 * 8 * 16, 16 * 8, 2 * 16 * 16  # elements


def _listed(step: Step, plan: str) -> list[tuple[str, int]]:
    return [(p.name, p.cost.bytes // 4) for p in passes(step, F32, plan)]


def test_a_convolution_is_three_passes_and_fused_one() -> None:
    step = Step(CONV, (CONV1,), CONV1.x, CONV1.out)
    assert _listed(step, "unfused") == [("conv", X + W + OUT), ("batch norm", 2 * OUT), ("relu", 2 * OUT)]
    for plan in FUSIONS:
        assert _listed(step, plan) == [("conv", X + W + OUT)]
    assert traffic.distinct_plans(step) == ["unfused", "bias-relu"]


def test_a_residual_is_read_once_where_it_is_added_in_the_epilogue() -> None:
    layer = Layer("conv", *(CONV1.x, CONV1.weight, CONV1.out), relu=True, residual=True)
    step = Step(CONV, (layer,), layer.x, layer.out)
    tail = [("add", 3 * OUT), ("relu", 2 * OUT)]
    assert _listed(step, "unfused") == [("conv", X + W + OUT), ("batch norm", 2 * OUT), *tail]
    assert _listed(step, "bias-relu") == [("conv", X + W + OUT), *tail]
    assert _listed(step, "residual") == [("conv + residual", X + W + 2 * OUT)]


def test_a_projection_in_one_product_never_writes_its_shortcut() -> None:
    step = next(s for s in traffic.steps("resnet50", 2, 64) if s.kind == "projection")
    assert step.name == "layer1.0.conv3 + downsample"
    assert traffic.distinct_plans(step) == ["unfused", "bias-relu", "residual", "projection"]
    apart, together = total(step, F32, "residual"), total(step, F32, "projection")
    assert apart.bytes - together.bytes == 2 * prod(step.out) * 4
    assert apart.flops == together.flops
    assert len(passes(step, F32, "unfused")) == 6


def test_the_stem_saves_writing_and_reading_its_convolution() -> None:
    stem = traffic.steps("resnet18", 1, 224)[0]
    assert (stem.name, stem.x, stem.out) == ("conv1 + maxpool", (1, 3, 224, 224), (1, 64, 56, 56))
    saved = total(stem, F32, "projection").bytes - total(stem, F32, "stem").bytes
    assert saved == 2 * 64 * 112 * 112 * 4


@pytest.mark.parametrize("model", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_a_plan_has_the_layers_flops_and_fewer_bytes_than_the_plan_before(model: str) -> None:
    steps = traffic.steps(model, 2, 64)
    found = traffic.summary(steps, torch.bfloat16, Ceilings(1e12, 1e11))
    flops = {plan["flops"] for plan in found.values()}
    assert flops == {sum(layer.cost(torch.bfloat16).flops for layer in layers(model, 2, 64))}
    order = [found[plan]["bytes"] for plan in (*PLANS, *BOUNDS)]
    assert order == sorted(order, reverse=True)
    assert len(set(order)) == len(order)
    kernels = [found[plan]["kernels"] for plan in PLANS]
    assert kernels == sorted(kernels, reverse=True)
    assert kernels[-1] == len(steps)


def test_bounds_move_blocks_and_models_once() -> None:
    steps = traffic.steps("resnet50", 2, 64)
    weights = sum(prod(layer.weight) for step in steps for layer in step.layers)
    (model,) = traffic.costs(steps, F32, "model")
    assert model.bytes == 4 * (2 * 3 * 64 * 64 + weights + 2 * 1000)
    blocks = traffic.costs(steps, F32, "block")
    assert len(blocks) == 1 + 16 + 1
    first = 2 * 64 * 16 * 16 + 64 * 64 + 9 * 64 * 64 + 2 * 64 * 256 + 2 * 256 * 16 * 16
    assert blocks[1].bytes == 4 * first


def test_the_first_shortcut_of_a_basic_network_is_not_the_stages_to_overwrite() -> None:
    owned = [step.owned for step in traffic.steps("resnet18", 1, 64) if step.layers[0].residual]
    assert owned == [False, *[True] * 7]
    assert all(step.owned for step in traffic.steps("resnet50", 1, 64))
