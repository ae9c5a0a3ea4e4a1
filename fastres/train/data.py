"""The data sets: scikit-learn's digits, and CIFAR and folders of images as torchvision loads them.

What an iteration sees depends on (seed, epoch, position) alone, whatever ran before and on how many processes: this is
what makes a resumed run exact, and a run of two processes see the images of a run of one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import signals
from .errors import SettingError, TrainingError
from .recipe import Recipe

Batch = tuple[Tensor, Tensor]
DIGITS_TEST = 360  # images held out of the 1,797


class Split(Protocol):
    """Labelled images of one size."""

    def __len__(self) -> int: ...

    def batches(self, order: Sequence[Tensor], seeds: Sequence[int], shard: slice) -> Iterator[Batch]:
        """For each tensor of indices in `order`, that batch's `shard`: float32 [n, C, H, W] and int64 [n], on the CPU.

        `seeds` gives each batch the randomness of its augmentation, the same for every shard.
        """
        ...


@dataclass(frozen=True)
class Data:
    """A data set: its number of classes, channels of its images, and images to train and to test with.

    `identity` says in words what it consists of, so that a run does not go on with other images unnoticed; "" for what
    cannot change.
    """

    classes: int
    channels: int
    train: Split
    test: Split
    identity: str = ""


def load(made: Recipe, *, root: str = "data", download: bool = False, workers: int = 0) -> Data:
    """The data set of a recipe.

    `root` is where CIFAR lies or, with `download`, is put. `workers` processes decode a folder's images.

    Raises SettingError or TrainingError where something is missing or no data set.
    """
    if made.data == "digits":
        return _digits()
    if made.data == "imagefolder":
        return _folder(Path(made.path), workers)
    return _cifar(made.data, root, download)


def epoch_order(count: int, batch: int, seed: int) -> list[Tensor]:
    """All full batches of a shuffled epoch, as indices; the remainder of `count` waits for the next epoch."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return list(order[: count // batch * batch].split(batch))


def in_order(count: int, batch: int) -> list[Tensor]:
    """All batches of a split, in its order, the last one smaller."""
    return list(torch.arange(count).split(batch))


class Pixels:
    """A split held in memory: [N, C, H, W] float32 images, normalised, and [N] int64 labels.

    With `pad`, images are augmented as in the paper's section 4.2: padded by that many zeros and cropped back at
    random, and with `flip`, mirrored half of the time.
    """

    def __init__(self, images: Tensor, labels: Tensor, *, pad: int = 0, flip: bool = False) -> None:
        self.images, self.labels, self.pad, self.flip = images, labels, pad, flip

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, order: Sequence[Tensor], seeds: Sequence[int], shard: slice) -> Iterator[Batch]:
        for picked, seed in zip(order, seeds, strict=True):
            images = self.images[picked]
            if self.pad or self.flip:
                images = self._augmented(images, torch.Generator().manual_seed(seed))
            yield images[shard], self.labels[picked][shard]

    def _augmented(self, images: Tensor, random: torch.Generator) -> Tensor:
        n, channels, height, width = images.shape
        top, left = torch.randint(0, 2 * self.pad + 1, (2, n, 1), generator=random)
        rows, columns = top + torch.arange(height), left + torch.arange(width)
        if self.flip:
            mirrored = torch.rand(n, 1, generator=random) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        image, channel = torch.arange(n)[:, None, None, None], torch.arange(channels)[:, None, None]
        padded = F.pad(images, [self.pad] * 4)
        return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _normalised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """The mean image of the training set subtracted ("per-pixel mean"), over one standard deviation of all pixels."""
    mean = train.mean(0)
    scale = (train - mean).std()
    return (train - mean) / scale, (test - mean) / scale


def _digits() -> Data:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise TrainingError("data 'digits' needs scikit-learn: pip install 'fastres[train]'") from error
    bundled = load_digits()
    images = torch.from_numpy(bundled.images).float()[:, None]
    labels = torch.from_numpy(bundled.target).long()
    # One split for every run, whatever its seed, so that their test errors compare.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    tested, trained = order[:DIGITS_TEST], order[DIGITS_TEST:]
    train, test = _normalised(images[trained], images[tested])
    return Data(10, 1, Pixels(train, labels[trained], pad=1), Pixels(test, labels[tested]))


def _cifar(name: str, root: str, download: bool) -> Data:
    from torchvision import datasets

    kind: Any = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        splits = [kind(root, train=train, download=download) for train in (True, False)]
    except RuntimeError as error:
        raise TrainingError(f"data {name!r} is not in {root!r}, or damaged; --download fetches it there") from error
    except OSError as error:
        raise TrainingError(f"cannot download data {name!r} to {root!r}: {error}") from error
    images = [torch.from_numpy(split.data).permute(0, 3, 1, 2).float() for split in splits]
    labels = [torch.tensor(split.targets) for split in splits]
    train, test = _normalised(*images)
    return Data(len(splits[0].classes), 3, Pixels(train, labels[0], pad=4, flip=True), Pixels(test, labels[1]))


class Files:
    """A split of torchvision's ImageFolder, decoded by `workers` processes and transformed image by image."""

    def __init__(self, folder: Any, workers: int) -> None:
        self.folder, self.workers = folder, workers

    def __len__(self) -> int:
        return len(self.folder)

    def batches(self, order: Sequence[Tensor], seeds: Sequence[int], shard: slice) -> Iterator[Batch]:
        keys = [
            [(index, seed + place) for place, index in enumerate(picked.tolist())][shard]
            for picked, seed in zip(order, seeds, strict=True)
        ]
        for batch in torch.utils.data.DataLoader(
            _Seeded(self.folder),
            batch_sampler=keys,
            num_workers=self.workers,
            collate_fn=_collate,
            worker_init_fn=_ignore_interrupts,
            generator=torch.Generator(),  # or it would draw from the global one
        ):
            if isinstance(batch, str):
                raise TrainingError(batch)
            yield batch


def _ignore_interrupts(worker: int) -> None:
    """The process that trains still needs the images of its last iteration."""
    signals.ignore_interrupts()


class _Seeded(torch.utils.data.Dataset):
    """(index, seed) to (image, label), its augmentation drawn from the seed; or to a string, what is wrong with it."""

    def __init__(self, folder: Any) -> None:
        self.folder = folder

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int] | str:
        index, seed = key
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                return self.folder[index]
            except Exception as error:  # damaged files make Pillow's parsers raise nearly anything
                return f"cannot read the image {self.folder.samples[index][0]}: {error}"


def _collate(samples: list[Any]) -> Batch | str:
    for sample in samples:
        if isinstance(sample, str):
            return sample
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)


def _folder(path: Path, workers: int) -> Data:
    from torchvision import datasets
    from torchvision.transforms import v2

    finish = [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    transforms = {
        # "the shorter side randomly sampled in [256, 480]"; "a 224x224 crop is randomly sampled [...] or its flip"
        "train": v2.Compose(
            [v2.RandomShortestSize(list(range(256, 481))), v2.RandomCrop(224), v2.RandomHorizontalFlip(), *finish]
        ),
        "val": v2.Compose([v2.Resize(256), v2.CenterCrop(224), *finish]),
    }
    splits = []
    for name, transform in transforms.items():
        if not (path / name).is_dir():
            raise SettingError(
                f"path: expected a folder with 'train' and 'val', in each one folder a class; "
                f"got {str(path)!r}, with no {name!r}"
            )
        try:
            splits.append(datasets.ImageFolder(str(path / name), transform))
        except OSError as error:
            raise SettingError(f"path: {path / name}: {error}") from error
    train, val = splits
    if len(train.classes) < 2:
        raise SettingError(f"path: expected at least two classes in {path / 'train'}, got {train.classes}")
    if train.classes != val.classes:
        odd = sorted(set(train.classes) ^ set(val.classes))
        raise SettingError(f"path: expected the same classes in 'train' and 'val' of {path}, only one has {odd[:5]}")
    return Data(len(train.classes), 3, Files(train, workers), Files(val, workers), _identity(path, train, val))


def _identity(path: Path, train: Any, val: Any) -> str:
    """Counts, and a digest of every image's name, size and class: not of its content, as ImageNet is 150 GB."""
    digest = hashlib.sha256()
    for folder in (train, val):
        for name, label in folder.samples:
            try:
                size = os.stat(name).st_size
            except OSError as error:
                raise TrainingError(f"cannot read the image {name}: {error.strerror or error}") from error
            digest.update(f"{os.path.relpath(name, path)}\0{size}\0{label}\0".encode(errors="surrogateescape"))
    return f"{len(train)} and {len(val)} images whose names and sizes have the digest {digest.hexdigest()[:12]}"
