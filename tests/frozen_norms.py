"""Stand-ins for other packages' frozen batch norms, written from what those compute: neither package is needed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DetrFrozen(nn.Module):
    """DETR's: eps is a constant inside `forward`, and there is no counter of batches."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(n))
        self.register_buffer("bias", torch.zeros(n))
        self.register_buffer("running_mean", torch.zeros(n))
        self.register_buffer("running_var", torch.ones(n))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean, var = (
            b.view(1, -1, 1, 1) for b in (self.weight, self.bias, self.running_mean, self.running_var)
        )
        scale = weight * torch.rsqrt(var + 1e-5)
        return x * scale + (bias - mean * scale)


class DetectronFrozen(DetrFrozen):
    """Detectron2's: eps is an attribute, and an input that needs no gradient goes to PyTorch's batch norm."""

    def __init__(self, num_features: int, eps: float = 1e-3) -> None:
        super().__init__(num_features)
        self.num_features, self.eps = num_features, eps
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None].to(x.dtype) + shift[:, None, None].to(x.dtype)


class NearlyFrozen(DetrFrozen):
    """Has the same structure, and another formula: eps is added to the deviation."""

    def forward(self, x: Tensor) -> Tensor:
        deviation = self.running_var.sqrt() + 1e-5
        return ((x.permute(0, 2, 3, 1) - self.running_mean) * self.weight / deviation + self.bias).permute(0, 3, 1, 2)


class OtherInTraining(DetrFrozen):
    """The same formula in evaluation, another in training."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (0.5 if self.training else 1)
