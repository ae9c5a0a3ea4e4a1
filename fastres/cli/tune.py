"""`fastres tune`: measures which tile of the Triton kernels is fastest on this GPU, and keeps it for later runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from .arguments import DTYPES, default_device, device, dtype, integer, model
from .errors import CommandError

NAME = "tune"
HELP = "measure the Triton kernels' tiles on this GPU and keep the fastest"

_EPILOG = """\
Each distinct layer is measured with every tile that fits; a tile is timed only once its result is seen to be right.
What is found goes into the user's tuning table, which comes before the one of the package.

examples:
  fastres tune ResNet50 --dtype bfloat16                    batches of 1, 32 and 256
  fastres tune ResNet18 ResNet34 --batch 8 --size 160       two models, one batch and image size
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Measures the tiles of the Triton kernels for the layers of models."
    parser.epilog = _EPILOG
    add: Callable[..., Any] = parser.add_argument
    add("model", type=model, nargs="+", metavar="MODEL", help="names of models, as in fastres.ResNet50")
    add("--batch", type=integer(1, 4096), nargs="+", default=[1, 32, 256], metavar="N", help="default: 1 32 256")
    add("--size", type=integer(32, 4096), default=224, metavar="PIXELS", help="side of the images (default: 224)")
    add("--dtype", type=dtype, default=torch.bfloat16, metavar="DTYPE", help=f"{', '.join(DTYPES)} (default: bfloat16)")
    add("--rounds", type=integer(5, 1000), default=15, metavar="N", help="samples of each tile (default: 15)")
    add("--device", type=device, help="cuda or cuda:N (default: the GPU)")


def run(args: argparse.Namespace) -> int:
    from rich.progress import Progress

    import fastres

    from .. import tuning
    from ..backends import BackendError, use_backend
    from ..measure.tiles import Measured, measuring
    from ..measure.timing import timer_for

    target = args.device or default_device()
    found: list[Measured] = []
    try:
        with use_backend("triton"), torch.inference_mode(), Progress(transient=True) as bar:
            jobs = [(name, batch) for name in args.model for batch in args.batch]
            task = bar.add_task("measuring", total=len(jobs))

            def report(measured: Measured) -> None:
                found.append(measured)
                gain = measured.known_seconds / measured.fastest_seconds
                text = f"{_text(measured.fastest)}, {gain:.2f} times as fast as before"
                bar.console.print(f"{measured.problem.key()}: {text}")
                tuning.record({measured.problem: measured.fastest}, measured.numbers, tuning.architecture(target))

            with measuring(timer_for(target), args.rounds, report):
                for name, batch in jobs:
                    net = getattr(fastres, name)().eval().to(target, args.dtype)
                    net(torch.randn(batch, 3, args.size, args.size, device=target, dtype=args.dtype))
                    bar.advance(task)
    except BackendError as error:
        raise CommandError(str(error)) from error
    print(f"{len(found)} problems measured on {target}; the table is {tuning.user_table()}")
    return 0


def _text(tile: Any) -> str:
    return f"tile {tile.m} x {tile.n} x {tile.k}, {tile.warps} warps, {tile.stages} stages"
