"""The operators `torch.ops.fastres.*`: functional, no output aliases an input, outputs dense in channels_last.

Importing this package registers them. Each takes raw tensors; which backend runs it, and BatchNorm's folding, is
decided inside, below torch.compile, torch.export and DataParallel.
"""

from . import conv, head, stage, statistics, train

__all__ = ["conv", "head", "stage", "statistics", "train"]
