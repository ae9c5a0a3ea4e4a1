"""8-bit images as a model's input: what a pixel counts as, read from a model's arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of images in [0, 1]: torchvision's transforms
INPUTS = ("float", "uint8")


class Pixels(NamedTuple):
    """A pixel p of channel c counts as (p / 255 - mean[c]) / std[c]; what is padded around the image counts as 0."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def scale(self) -> tuple[float, ...]:
        """(p / 255 - mean) / std = p * scale + shift."""
        return tuple(1 / (255 * std) for std in self.std)

    @property
    def shift(self) -> tuple[float, ...]:
        return tuple(-mean / std for mean, std in zip(self.mean, self.std, strict=True))


def pixels_of(kind: str, mean: Sequence[float] | None, std: Sequence[float] | None, channels: int) -> Pixels | None:
    """What a model whose `input` is "uint8" makes of its pixels, ImageNet's mean and std by default; None for "float".

    Raises ValueError, naming `input`, `mean` or `std`, for what is neither.
    """
    if kind not in INPUTS:
        raise ValueError(f"input: expected 'float' or 'uint8', got {kind!r}")
    if kind == "float":
        for name, value in (("mean", mean), ("std", std)):
            if value is not None:
                raise ValueError(f"{name}: expected None, as the model is given numbers (input='float'), got {value!r}")
        return None
    pixels = Pixels(tuple(map(float, MEAN if mean is None else mean)), tuple(map(float, STD if std is None else std)))
    for name, values in pixels._asdict().items():
        if len(values) != channels or not all(map(math.isfinite, values)):
            raise ValueError(f"{name}: expected {channels} finite numbers, one a channel, got {values}")
    if min(pixels.std) <= 0:
        raise ValueError(f"std: expected positive numbers, got {pixels.std}")
    return pixels
