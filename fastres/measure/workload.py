"""What contenders are measured on: a seeded torchvision ResNet and a batch of photographs, the same in every process.

Weights are random, since nothing is downloaded; BatchNorm is calibrated on the images, so that activations stay in
range at any depth, and then randomised, negative and zero factors included: a fold that drops a term fails parity.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from ..data import photo
from ..pixels import MEAN, STD
from . import training
from .parity import pytorchs_own

DISTINCT = 8  # images that differ; larger batches repeat them, so that the oracle's cost stays bounded
CALIBRATION_SIZE = 128  # small, and with pixels enough in the last stage for statistics; for every size of input


@dataclass(frozen=True)
class Workload:
    """A model's forward: torchvision's name of the model, and a [batch, 3, size, size] input of `dtype` on `device`.

    With `train`, a training step of it: `measure.training`.
    """

    model: str
    batch: int
    size: int = 224
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")  # noqa: RUF009  immutable
    seed: int = 0
    train: bool = False


@dataclass(frozen=True)
class Material:
    """A workload made concrete: the model's state dict in its dtype, the input, and what the output should be.

    All tensors are on the CPU. `expected64` is the oracle's output and `baseline` that of PyTorch's own eager forward
    on the workload's device, in NCHW or channels_last, whichever errs more; both are [batch, 1000], or of a training
    step its summary in units of `scales`.
    """

    workload: Workload
    state: dict[str, Tensor]
    x: Tensor
    expected64: Tensor
    baseline: Tensor
    scales: list[float] = field(default_factory=list)

    def model(self) -> nn.Module:
        """torchvision's model on the workload's device, in NCHW: in evaluation mode without gradients, or to train."""
        with torch.device("meta"):
            model = torchvision.models.get_model(self.workload.model)
        model.load_state_dict(self.state, assign=True)
        train = self.workload.train
        return model.train(train).requires_grad_(train).to(self.workload.device)

    def save(self, path: Path) -> None:
        torch.save({**vars(self), "workload": vars(self.workload)}, path)

    @classmethod
    def load(cls, path: Path) -> Material:
        fields = torch.load(path, weights_only=True)
        return cls(Workload(**fields.pop("workload")), **fields)


def prepare(workload: Workload) -> Material:
    """Makes the weights, the images, the oracle's output and PyTorch's. Raises what PyTorch raises on the workload."""
    if workload.train:
        return _prepare_training(workload)
    model, expected = _foundation(workload.model, workload.size, workload.dtype, workload.seed)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = images(workload.batch, workload.size).to(workload.dtype)
    expected = expected.repeat(workload.batch // DISTINCT + 1, 1)[: workload.batch]
    material = Material(workload, state, x, expected, torch.empty(0))
    model, x = material.model(), x.to(workload.device)
    with torch.inference_mode(), pytorchs_own():
        layouts = [model(x).cpu()]
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        layouts.append(model(x.contiguous(memory_format=torch.channels_last)).cpu())
    return replace(material, baseline=max(layouts, key=lambda y: float((y - expected).abs().max())))


def _prepare_training(workload: Workload) -> Material:
    """The oracle's step is of the distinct images alone: their repetitions change neither statistics nor gradients."""
    if workload.batch > DISTINCT and workload.batch % DISTINCT:
        raise ValueError(f"batch: expected a multiple of {DISTINCT} beyond {DISTINCT} to train, got {workload.batch}")
    model, _ = _foundation(workload.model, CALIBRATION_SIZE, torch.float32, workload.seed)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = images(workload.batch, workload.size)
    target = training.targets(workload.batch, DISTINCT)
    oracle = copy.deepcopy(model).double().train().requires_grad_()
    loss = training.step(oracle, lambda: oracle(x[:DISTINCT].double()), target[:DISTINCT])()
    scales = training.norms(oracle)
    expected = training.summary(loss, oracle, scales)
    material = Material(workload, state, x, expected, torch.empty(0), scales)
    layouts = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = material.model().to(memory_format=layout)  # type: ignore[call-overload]
        placed = x.to(workload.device).contiguous(memory_format=layout)
        with pytorchs_own():
            loss = training.step(model, partial(model, placed), target.to(workload.device), workload.dtype)()
        layouts.append(training.summary(loss, model, scales))
    return replace(material, baseline=max(layouts, key=lambda y: float((y - expected).abs().max())))


@lru_cache(maxsize=1)
def _foundation(name: str, size: int, dtype: torch.dtype, seed: int) -> tuple[nn.Module, Tensor]:
    """The model in `dtype` on the CPU, and the oracle's outputs for the DISTINCT images: shared by all batch sizes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = torchvision.models.get_model(name)
        _calibrate(model, images(DISTINCT, CALIBRATION_SIZE))
        _randomise(model)
    model.eval().requires_grad_(False).to(dtype)
    with torch.inference_mode():
        expected = copy.deepcopy(model).double()(images(DISTINCT, size).to(dtype).double())
    return model, expected


def images(batch: int, size: int) -> Tensor:
    """[batch, 3, size, size], normalised, float32, NCHW: the photograph, cropped anew for each of DISTINCT images."""
    picture = F.to_dtype(F.to_image(photo()), torch.float32, scale=True)
    height, width = picture.shape[1:]
    side = min(height, width) * 3 // 4
    crops = []
    for i in range(min(batch, DISTINCT)):
        top, left = (height - side) * (i % 3) // 2, (width - side) * i // (DISTINCT - 1)
        crop = F.resized_crop(picture, top, left, side, side, [size, size], antialias=True)
        crops.append(F.normalize(crop, list(MEAN), list(STD)))
    return torch.stack(crops).repeat(batch // DISTINCT + 1, 1, 1, 1)[:batch].contiguous()


def _calibrate(model: nn.Module, x: Tensor) -> None:
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(x)
    for norm in norms:
        norm.momentum = 0.1


def _randomise(model: nn.Module) -> None:
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        spread = norm.running_var.sqrt()
        norm.running_mean += 0.2 * spread * torch.randn_like(spread)
        norm.running_var *= torch.empty_like(spread).uniform_(0.7, 1.4)
        sign = torch.where(torch.rand_like(spread) < 0.1, -1.0, 1.0)
        with torch.no_grad():
            norm.weight.copy_(sign * torch.empty_like(spread).uniform_(0.5, 1.2))
            norm.weight[:: max(1, len(norm.weight) // 4)] = 0.0
            norm.bias.normal_(0.0, 0.2)
