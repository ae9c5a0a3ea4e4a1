"""What to measure, from the environment.

FASTRES_BENCH_DEVICE (default: the GPU if there is one, else cpu), FASTRES_BENCH_ROUNDS, and, comma-separated,
FASTRES_BENCH_BATCHES, FASTRES_BENCH_DTYPES, FASTRES_BENCH_MODELS and FASTRES_BENCH_AGAINST: less on a CPU than a GPU.
"""

from __future__ import annotations

import os

import torch

from fastres.measure.timing import ROUNDS as FULL

DEVICE = torch.device(os.environ.get("FASTRES_BENCH_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu"))
ROUNDS = int(os.environ.get("FASTRES_BENCH_ROUNDS", FULL))


def choice(name: str, cpu: str, gpu: str) -> list[str]:
    """The variable FASTRES_BENCH_`name`, or the default for the device."""
    return os.environ.get(f"FASTRES_BENCH_{name}", cpu if DEVICE.type == "cpu" else gpu).split(",")


BATCHES = list(map(int, choice("BATCHES", "1", "1,32,256")))
DTYPES = [getattr(torch, name) for name in choice("DTYPES", "float32", "bfloat16,float16")]
MODELS = choice("MODELS", "resnet18,resnet50", "resnet50")
AGAINST = choice(
    "AGAINST",
    "eager,eager-channels-last,compile-freezing,onnxruntime,openvino",
    "eager,eager-channels-last,compile,tensorrt,eager-graph,fastres-graph",
)
