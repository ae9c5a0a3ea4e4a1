"""`fastres classify`: the most probable classes of images, with torchvision's weights or a checkpoint of your own."""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from itertools import islice
from typing import TYPE_CHECKING, Any

from .arguments import add_placement, default_device, integer, model, models
from .errors import UsageError, printable
from .progress import progress

if TYPE_CHECKING:
    from torch import Tensor

    from .weights import Weights

NAME = "classify"
HELP = "the most probable classes of images"

_EPILOG = """\
examples:
  fastres classify cat.jpg --weights DEFAULT
  fastres classify photos/ more.png --weights ResNet152_Weights.IMAGENET1K_V2 --batch 64 --dtype bfloat16
  fastres classify photos/ --weights mine.pth --model resnet18 --labels names.txt --json > out.jsonl

Weights by name are downloaded by torchvision, once. A checkpoint is a state dict, alone or under 'state_dict' or
'model', read without running code from it; its images are preprocessed as for the model's default weights.

What cannot be read (missing, damaged, more than 89 million pixels, a folder with no image) is told on stderr and
skipped. With --json it is told on stdout too: one object a line, {"path", "predictions"} or {"path", "error"}.

exit status: 0 if every image was classified, 1 if any was skipped or on failure, 2 for wrong usage.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Prints the most probable classes of each image; folders are searched for images."
    parser.epilog = textwrap.fill(f"models: {', '.join(models())}", 100, subsequent_indent="  ") + "\n\n" + _EPILOG
    add = parser.add_argument
    add("inputs", nargs="+", metavar="IMAGE|FOLDER", help="image files, and folders of them at any depth")
    add("--weights", required=True, metavar="NAME|PATH", help="torchvision's name (DEFAULT, ...) or a checkpoint file")
    add("--model", type=model, help="model of the weights (default: resnet50, or that in the weights' name)")
    add("--top", type=integer(1, 1000), default=5, metavar="N", help="classes to print for each image (default: 5)")
    add("--batch", type=integer(1, 1024), default=16, metavar="N", help="images to run at once (default: 16)")
    add("--labels", metavar="FILE", help="names of the classes, one a line in their order (default: ImageNet's)")
    add("--json", action="store_true", help="print one JSON object a line")
    add_placement(parser)


def run(args: argparse.Namespace) -> int:
    import torch

    from . import images, weights

    source = weights.resolve(args.weights, args.model)
    names = None if args.labels is None else _read_labels(args.labels)
    inputs = list(images.find(args.inputs))
    if all(item.problem for item in inputs):  # nothing to load weights for
        for item in inputs:
            _report(*item, [], args.json)
        return 1
    device = args.device or default_device()
    skipped = 0
    with images.strict_pillow(), torch.inference_mode():
        net = weights.load(source, args.backend).to(device, args.dtype)
        labels = _labels(names, net.fc.out_features, source, args.labels)
        workers = min(4, os.cpu_count() or 1)
        stream = images.preprocessed(inputs, source.preset().transforms(), workers, args.batch + workers)
        with progress("classifying", len(inputs)) as bar:
            while chunk := list(islice(stream, args.batch)):
                tensors = [value for _, value in chunk if not isinstance(value, images.Unreadable)]
                scores = iter(_probabilities(net, tensors, device, args.dtype))
                for path, value in chunk:
                    problem = str(value) if isinstance(value, images.Unreadable) else ""
                    row = None if problem else next(scores)
                    if row is not None and not row.isfinite().all():
                        row, problem = None, f"the model's output is not finite in {args.dtype}"
                    skipped += row is None
                    _report(path, problem, [] if row is None else _best(row, labels, args.top), args.json)
                sys.stdout.flush()
                bar.advance(len(chunk))
    return 1 if skipped else 0


def _probabilities(net: Any, tensors: list[Tensor], device: Any, dtype: Any) -> Tensor | list[Tensor]:
    """[images, classes] in float32 on the CPU."""
    import torch

    if not tensors:
        return []
    return net(torch.stack(tensors).to(device, dtype)).float().softmax(1).cpu()


def _best(row: Tensor, labels: list[str], top: int) -> list[dict[str, Any]]:
    values, classes = row.topk(min(top, len(row)))
    pairs = zip(values.tolist(), classes.tolist(), strict=True)
    return [{"class": index, "label": labels[index], "probability": value} for value, index in pairs]


def _report(path: str, problem: str, predictions: list[dict[str, Any]], as_json: bool) -> None:
    if problem:
        print(f"fastres: skipped {printable(path)}: {printable(problem)}", file=sys.stderr)
    if as_json:
        print(json.dumps({"path": path, "error": problem} if problem else {"path": path, "predictions": predictions}))
    elif not problem:
        print(printable(path))
        for best in predictions:
            print(f"  {best['probability']:6.1%}  {printable(best['label'])}")


def _labels(names: list[str] | None, classes: int, source: Weights, path: str | None) -> list[str]:
    if names is not None:
        if len(names) != classes:
            raise UsageError(f"argument --labels: {path!r} has {len(names)} lines, expected one for {classes} classes")
        return names
    categories = source.preset().meta["categories"]
    return categories if len(categories) == classes else [f"class {index}" for index in range(classes)]


def _read_labels(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [line.strip() for line in file.read().rstrip().split("\n")]
    except OSError as error:
        raise UsageError(f"argument --labels: cannot read {path!r}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"argument --labels: {path!r} is not UTF-8 text: {error}") from error
