"""Frozen batch norms of other packages: those that compute torchvision's formula fuse, whatever they are called."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from frozen_norms import DetectronFrozen, DetrFrozen, NearlyFrozen, OtherInTraining
from models import image, small_pair
from steps import assert_same_step
from tolerance import assert_same_function
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torchvision.ops import FrozenBatchNorm2d

import fastres
from fastres import frozen

FROZEN = [DetrFrozen, DetectronFrozen, lambda n: DetectronFrozen(n, eps=0.1)]
IDS = ["DETR", "Detectron2", "Detectron2, large eps"]


def plain_convolutions(model: nn.Module, x: Tensor) -> dict[str, str]:
    return {layer.name: layer.reason for layer in fastres.explain(model, x).layers if layer.backend == "plain"}


@pytest.mark.parametrize("norm_layer", FROZEN, ids=IDS)
@pytest.mark.parametrize("training", [False, True])
def test_they_fuse_in_either_mode(norm_layer: Any, training: bool) -> None:
    ours, theirs = (model.train(training) for model in small_pair(norm_layer=norm_layer))
    assert_same_function(ours, theirs, image())
    with torch.no_grad():
        assert plain_convolutions(ours, image()) == {}


@pytest.mark.parametrize("norm_layer", FROZEN, ids=IDS)
def test_they_train(norm_layer: Any) -> None:
    ours, theirs = small_pair(norm_layer=norm_layer)
    assert_same_step(ours, theirs, image())


@pytest.mark.parametrize("norm_layer", [NearlyFrozen, OtherInTraining])
def test_another_formula_runs_as_it_is(norm_layer: Any) -> None:
    ours, theirs = small_pair(norm_layer=norm_layer)
    for training in (False, True):
        assert_same_function(ours.train(training), theirs.train(training), image())
    assert {*plain_convolutions(ours.eval(), image()).values()} == {
        f"{norm_layer.__name__} is not exactly one of BatchNorm2d, SyncBatchNorm, FrozenBatchNorm2d"
    }


def test_eps() -> None:
    assert frozen.eps_of(DetrFrozen(3)) == 1e-5
    assert frozen.eps_of(DetectronFrozen(3)) == 1e-3
    assert frozen.eps_of(DetectronFrozen(3, eps=0.2)) == 0.2
    assert frozen.eps_of(FrozenBatchNorm2d(3, eps=0.2)) == 0.2
    for module in (nn.BatchNorm2d(3), nn.GroupNorm(1, 3), nn.Identity(), NearlyFrozen(3), OtherInTraining(3)):
        assert frozen.eps_of(module) is None


def test_a_forward_replaced_later_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    bn = DetrFrozen(3)
    assert frozen.eps_of(bn) == 1e-5
    monkeypatch.setattr(DetrFrozen, "forward", lambda self, x: x)
    assert frozen.eps_of(bn) is None


def test_a_replaced_forward_of_one_module_says_nothing_of_its_class() -> None:
    class Frozen(DetrFrozen):
        pass

    odd = Frozen(3)
    odd.forward = lambda x: x  # type: ignore[method-assign]
    assert frozen.eps_of(odd) is None
    assert frozen.eps_of(Frozen(3)) == 1e-5


def test_nothing_is_learned_from_fake_tensors() -> None:
    class Frozen(DetrFrozen):
        pass

    found = []
    bn = Frozen(3)
    make_fx(lambda x: found.append(frozen.eps_of(bn)) or x + 1, tracing_mode="fake")(torch.zeros(1))
    assert found == [None]
    assert frozen.eps_of(bn) == 1e-5


def test_it_is_compiled() -> None:
    ours, theirs = small_pair(norm_layer=DetrFrozen)
    fastres.explain(ours, image())
    compiled = torch.compile(copy.deepcopy(ours), backend="eager", fullgraph=True)
    assert_same_function(compiled, theirs, image())
