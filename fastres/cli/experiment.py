"""`fastres experiment`: an experiment of the paper, run and drawn."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .arguments import integer

NAME = "experiment"
HELP = "run an experiment of the paper and draw its figures"

_EPILOG = """\
examples:
  fastres experiment degradation
  fastres experiment degradation --data cifar10 --download --depths 20 56 --amp bfloat16

degradation: plain and residual networks at two depths, all trained alike. Draws the paper's figure 1 (training and test
error of the plain ones), figure 4 and figure 6 (plain beside residual) as PNG, and prints the last errors. What is
trained already is not trained again: after Ctrl-C the same command goes on.

exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted and saved.
"""
_DIGITS_EPOCHS = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from . import training

    parser.description = "Trains what an experiment of the paper compares, and draws its figures."
    parser.epilog = _EPILOG
    add: Any = parser.add_argument
    add("experiment", choices=("degradation",), help="which experiment")
    add("--data", choices=("digits", "cifar10", "cifar100"), default="digits", help="data set (default: digits)")
    add(
        "--depths", type=integer(8, 10**4), nargs=2, default=(20, 56), metavar="D", help="layers, 6n+2 (default: 20 56)"
    )
    add(
        "--epochs",
        type=integer(1, 10**6),
        metavar="N",
        help=f"for each network (default: {_DIGITS_EPOCHS} on digits, else the paper's)",
    )
    add("--seed", type=integer(0, 2**31), metavar="N", help="seed of weights, order and augmentation (default: 0)")
    add("--amp", choices=("bfloat16", "float16"), help="mixed precision in this dtype (default: float32 throughout)")
    add(
        "--out",
        default="runs/degradation",
        metavar="DIR",
        help="folder of the runs and figures (default: runs/degradation)",
    )
    training.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from .. import train
    from ..train import degradation, distributed, plot
    from . import training

    with training.clear_errors():
        plot.figure(1)  # without matplotlib, fail before hours of training
        epochs = args.epochs or (_DIGITS_EPOCHS if args.data == "digits" else None)
        out = Path(args.out)
        recipes = {
            model: train.recipe(args.data, model, epochs=epochs, seed=args.seed, amp=args.amp)
            for model in degradation.models(args.depths)
        }
        where = training.place(args, args.data)
        for model, recipe in recipes.items():
            state = None
            if (out / model / "checkpoint.pt").is_file():
                found, state = training.read_run(out / model)
                if found != recipe:
                    raise train.SettingError(f"argument --out: {out / model} holds a run with other settings")
            print(f"training {model} on {recipe.data} for {recipe.epochs} epochs into {out / model}", flush=True)
            training.run(args, recipe, out / model, where, distributed.World(), state)
        for path in degradation.draw(out, args.depths, args.data):
            print(f"drew {path}")
        print(degradation.summary(out, args.depths))
    return 0
