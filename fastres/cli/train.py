"""`fastres train`: a network of the paper, trained by the paper's recipe."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from .arguments import integer
from .errors import UsageError, printable

NAME = "train"
HELP = "train a network of the paper"

_EPILOG = """\
examples:
  fastres train
  fastres train --data cifar10 --download --model resnet110 --amp bfloat16
  fastres train --data imagefolder /data/imagenet --model resnet50 --amp float16
  fastres train --resume runs/digits-resnet20
  torchrun --nproc-per-node 8 -m fastres train --data cifar10 --model resnet56 --sync-bn

Without arguments: ResNet-20 on scikit-learn's 1,797 handwritten digits, which are bundled with it. A folder of images
has 'train' and 'val' in it, and in each one folder a class. Defaults are the paper's: SGD with momentum 0.9, weight
decay 0.0001, rate 0.1, divided by ten on its schedule; 110 layers and more begin with a tenth of it.

A run's folder holds checkpoint.pt, log.csv (a row an iteration) and, with matplotlib, curves.png. Ctrl-C saves and
exits; --resume goes on exactly, with the run's own settings. 'fastres classify --weights' reads checkpoints of models
for imagefolder.

exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted and saved.
"""
_SETTINGS = ("data", "path", "model", "epochs", "batch", "lr", "weight_decay", "seed", "amp", "sync_bn")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from . import training

    parser.description = "Trains a network of the paper and prints its test accuracy."
    parser.epilog = _EPILOG
    add: Any = parser.add_argument
    add("path", nargs="?", metavar="PATH", help="folder of images, for --data imagefolder")
    add("--data", choices=("digits", "cifar10", "cifar100", "imagefolder"), help="data set (default: digits)")
    add("--model", metavar="NAME", help="resnet20, plainnet56, ... (default: resnet20; resnet50 for imagefolder)")
    add("--epochs", type=integer(1, 10**6), metavar="N", help="passes over the training images")
    add("--batch", type=integer(2, 10**6), metavar="N", help="images in a batch, over all processes")
    add("--lr", type=training.number, metavar="RATE", help="learning rate to begin with (default: 0.1)")
    add("--weight-decay", type=training.number, metavar="D", help="weight decay (default: 0.0001)")
    add("--seed", type=integer(0, 2**31), metavar="N", help="seed of weights, order and augmentation (default: 0)")
    add("--amp", choices=("bfloat16", "float16"), help="mixed precision in this dtype (default: float32 throughout)")
    add("--sync-bn", action="store_true", default=None, help="BatchNorm statistics over all processes")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", metavar="DIR", help="folder of the run (default: a new one, runs/DATA-MODEL)")
    where.add_argument("--resume", metavar="DIR", help="go on with the run in this folder")
    training.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from .. import train
    from ..train import distributed, log, plot
    from . import training

    with training.clear_errors():
        given = {name: getattr(args, name) for name in _SETTINGS}
        state = None
        if args.resume is not None:
            recipe, state = training.read_run(Path(args.resume))
            _check_same(given, recipe, args.resume)
        else:
            recipe = _new_recipe(given)
        where = training.place(args, recipe.data)
        with distributed.world(where) as world:
            folder = Path(world.agree(str(_folder(args, recipe)) if world.rank == 0 else ""))
            if world.rank == 0:
                print(
                    f"training {recipe.model} on {recipe.data} for {recipe.epochs} epochs into {printable(folder)}",
                    flush=True,
                )
            try:
                accuracy = training.run(args, recipe, folder, where, world, state)
            except BaseException:
                if args.resume is None and args.out is None and world.rank == 0:
                    training.remove_empty(folder)  # of a run that never began
                raise
            if world.rank == 0:
                try:
                    plot.curves(log.read(folder / "log.csv"), recipe.model, folder / "curves.png")
                except train.TrainingError as error:
                    print(f"fastres: no plot of the curves: {error}", file=sys.stderr)
                print(f"test accuracy: {accuracy:.2f} %")
    return 0


def _new_recipe(given: dict[str, Any]) -> Any:
    from .. import train

    data = given.pop("data") or "digits"
    path = given["path"]
    if data == "imagefolder" and path is None:
        raise UsageError("argument PATH: expected the folder of images after --data imagefolder")
    if data != "imagefolder" and path is not None:
        raise UsageError(f"argument PATH: expected none for --data {data}, got {path!r}")
    return train.recipe(data, given.pop("model"), **given)


def _check_same(given: dict[str, Any], recipe: Any, folder: str) -> None:
    for name, value in given.items():
        own = getattr(recipe, name)
        if value is not None and value != own:
            argument = "PATH" if name == "path" else f"--{name.replace('_', '-')}"
            raise UsageError(f"argument {argument}: the run in {folder!r} has {own!r}, got {value!r}")


def _folder(args: argparse.Namespace, recipe: Any) -> Path:
    from . import training

    if args.resume is not None:
        return Path(args.resume)
    if args.out is None:
        return training.free_folder(Path("runs"), f"{recipe.data}-{recipe.model}")
    if os.path.lexists(os.path.join(args.out, "checkpoint.pt")):
        raise UsageError(f"argument --out: {args.out!r} holds a run already: --resume goes on with it")
    return Path(args.out)
