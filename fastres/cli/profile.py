"""`fastres profile`: a model layer by layer against the roofline and the library, and what each fusion is worth."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import arguments, measuring
from .errors import CommandError, UsageError

NAME = "profile"
HELP = "a model layer by layer: time, roofline, kernels, and what each fusion is worth"

WIDE, FULL = 170, 210  # columns

_EPILOG = """\
A step is what fastres runs as one operator: a convolution with what follows it, the stem with its pooling, the end of a
projection block with its shortcut, the head. Each is checked against a float64 oracle before it is timed, in turns with
the library's own call (on a GPU cuDNN's fused one, on a CPU PyTorch's convolution, BatchNorm and ReLU) and with itself,
each fusion on and off. TFLOP/s, GB/s and roofline are of the flops and the fewest bytes that the step must move,
against this device's ceilings, measured in the same run. The exit status is 1 if a result was wrong.

examples:
  fastres profile resnet50                                  on the GPU if any, else the CPU
  fastres profile ResNet50 --batch 32 --dtype bfloat16 --json r50.json --trace r50-trace.json
  fastres profile resnet18 --backend onednn --threads 2
  fastres profile resnet50 --html r50.html                  a page with charts
  fastres profile --show r50.json --html r50.html           the tables and the page of an earlier profile
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Times a model layer by layer, beside the library and with each fusion on and off."
    parser.epilog = _EPILOG
    add: Callable[..., Any] = parser.add_argument
    add("model", nargs="?", type=arguments.model, metavar="MODEL", help="a model's name, such as resnet50")
    add("--batch", type=arguments.integer(1, 65536), default=8, metavar="N", help="default: 8")
    add("--size", type=arguments.integer(32, 4096), default=224, metavar="PIXELS", help="image size (default: 224)")
    arguments.add_placement(parser)
    add("--rounds", type=arguments.integer(1, 10000), default=15, metavar="N", help="samples of each (default: 15)")
    add("--threads", type=arguments.integer(1, 4096), metavar="N", help="CPU threads (default: PyTorch's choice)")
    add(
        "--seconds",
        type=arguments.integer(0, 10**6),
        default=150,
        metavar="S",
        help="on a busy machine, cut rounds to stay near this time; 0: never (default: 150)",
    )
    add("--json", type=Path, metavar="FILE", help="save the record, every sample in it")
    add("--trace", type=Path, metavar="FILE", help="save a trace of some forwards, for chrome://tracing or Perfetto")
    add("--html", type=Path, metavar="FILE", help="save a page with charts: one file, to look at or to print")
    add("--show", type=Path, metavar="FILE", help="show a saved record and measure nothing")


def run(args: argparse.Namespace) -> int:
    from .. import files
    from ..measure import page, profile, profile_tables

    if (args.model is None) == (args.show is None):
        raise UsageError("expected MODEL, or --show FILE")
    if args.show is not None and args.trace is not None:
        raise UsageError("argument --trace: a record has no trace in it: leave out --show")
    for argument in ("json", "trace", "html"):
        if (path := getattr(args, argument)) is not None:
            measuring.check_writable(path, f"--{argument}")
    record = measuring.load(args.show) if args.show else _measure(args)
    if record["kind"] != profile.KIND:
        raise UsageError(f"argument --show: {args.show}: expected a profile's record, got one of {record['kind']}")
    console = measuring.console(FULL)
    with measuring.from_record(args.show):
        tables = profile_tables.tables(measuring.plain(record), wide=console.width >= WIDE)
        html = page.page(record) if args.html else ""
        failures = profile.failures(record)
    console.print(tables)
    if args.json:
        measuring.save(record, args.json)
    if args.html:
        with measuring.writing(args.html):
            files.write(args.html, html)
    return 1 if failures else 0


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    from ..backends import BackendError
    from ..measure import traffic
    from ..measure.profile import Settings, profile
    from ..measure.workload import Workload

    device = args.device or arguments.default_device()
    measuring.check_dtype(args.dtype, device)
    workload = Workload(args.model, args.batch, args.size, args.dtype, device)
    backend = "" if args.backend in (None, "auto") else args.backend
    settings = Settings(workload, backend, args.rounds, args.seconds, args.threads)
    total = len({step.problem() for step in traffic.steps(args.model, args.batch, args.size)})
    with measuring.progress(total) as (title, progress):
        title(f"{args.model}, batch {args.batch}")
        try:
            if args.trace is None:
                return profile(settings, progress=progress)
            with measuring.writing(args.trace):
                return profile(settings, args.trace, progress)
        except BackendError as error:
            raise CommandError(str(error)) from error
