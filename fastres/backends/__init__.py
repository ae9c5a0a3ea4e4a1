"""What can run a fused operator: one file per backend, and the resolver in `registry`."""

from .cuda import Cuda
from .cudnn import CuDNN
from .emulator import Emulator
from .onednn import OneDNN
from .plans import HOPPER
from .reference import Reference
from .registry import Backend, BackendError, backends, register, use_backend
from .triton import Triton

register(Reference())
register(OneDNN())
register(CuDNN())
register(Triton())
register(Cuda())
register(Emulator())
register(Emulator("emulator_sm90", HOPPER))

__all__ = ["Backend", "BackendError", "backends", "use_backend"]
