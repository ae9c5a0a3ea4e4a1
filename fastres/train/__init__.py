"""Training as the paper does it: data, recipes, the loop, checkpoints, many processes, curves.

`fastres train` and `fastres experiment` are its command lines. Training runs PyTorch's own operators, by autograd;
evaluation after each epoch runs the fused ones.
"""

from .errors import Interrupted, SettingError, TrainingError
from .loop import Epoch, Trainer
from .recipe import Recipe, recipe

__all__ = ["Epoch", "Interrupted", "Recipe", "SettingError", "Trainer", "TrainingError", "recipe"]
