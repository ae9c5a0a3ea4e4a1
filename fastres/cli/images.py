"""Image files from outside: found, decoded in threads, and never trusted."""

from __future__ import annotations

import os
import stat
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

SUFFIXES = (".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Raster formats that Pillow decodes itself: not EPS, which it hands to Ghostscript.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
# Longest side over shortest: resizing the shortest to 256 pixels makes one of 1 x 60000 into 4 gigapixels.
_MAX_ASPECT = 100


class Unreadable(Exception):
    """Why an input is skipped, in a few words."""


class Input(NamedTuple):
    """A path as given or found, and why it cannot be read, or ""."""

    path: str
    problem: str = ""


def find(paths: Iterable[str]) -> Iterator[Input]:
    """The files named, and in sorted order the images under the folders named; hidden files there are left out."""
    for path in paths:
        if os.path.isdir(path):
            yield from _walk(path)
        elif os.path.lexists(path):
            yield Input(path)
        else:
            yield Input(path, "no such file")


def _walk(folder: str) -> Iterator[Input]:
    problems: list[OSError] = []
    found = 0
    for parent, folders, names in os.walk(folder, onerror=problems.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                found += 1
                yield Input(os.path.join(parent, name))
    for problem in problems:
        yield Input(str(problem.filename), problem.strerror or str(problem))
    if not found and not problems:
        yield Input(folder, f"no image in this folder (looked for {' '.join(SUFFIXES)})")


def decode(path: str) -> Image.Image:
    """The image in a file, upright and as 8-bit RGB: transparency over white, 16-bit grey scaled, first frame.

    Raises Unreadable for whatever is not such a file, is damaged, or has more pixels than Pillow's
    `Image.MAX_IMAGE_PIXELS`; call it within `strict_pillow()`.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise Unreadable("not a regular file")
        Image.init()
        with Image.open(path, formats=[name for name in _FORMATS if name in Image.OPEN]) as image:
            short, long = sorted(image.size)
            if long > _MAX_ASPECT * short:
                size = f"{image.width} x {image.height} pixels"
                raise Unreadable(f"too elongated: {size}, expected sides within a factor of {_MAX_ASPECT}")
            return _rgb(ImageOps.exif_transpose(image))
    except Unreadable:
        raise
    except UnidentifiedImageError:
        raise Unreadable(f"not an image in a known format ({', '.join(_FORMATS)})") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise Unreadable(f"too large: more than {Image.MAX_IMAGE_PIXELS} pixels") from None
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error
    except Exception as error:  # damaged files make Pillow's parsers raise nearly anything
        raise Unreadable(f"damaged: {type(error).__name__}: {error}") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise Unreadable("floating-point pixels: expected integers of 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey, or 32-bit with 16-bit values, as Pillow reads a PGM
        grey = np.asarray(image).astype(np.int64).clip(0, 65535) / 257
        image = Image.fromarray(grey.round().astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


@contextmanager
def strict_pillow() -> Iterator[None]:
    """Within it, Pillow's warning of a decompression bomb is an error, and its other warnings are not shown."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")
        warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
        yield


def preprocessed(
    inputs: Iterable[Input], transform: Callable[[Image.Image], Tensor], workers: int, ahead: int
) -> Generator[tuple[str, Tensor | Unreadable], None, None]:
    """(path, transform(image) or why not) for each input, in order, decoded by `workers` threads at most `ahead` early.

    What is held in memory is `ahead` transformed images and one decoded image a thread.
    """

    def load(item: Input) -> Tensor | Unreadable:
        try:
            if item.problem:
                raise Unreadable(item.problem)
            return transform(decode(item.path))
        except Unreadable as problem:
            return problem

    pending: deque[tuple[str, Future[Tensor | Unreadable]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for item in inputs:
            pending.append((item.path, pool.submit(load, item)))
            if len(pending) > ahead:
                path, future = pending.popleft()
                yield path, future.result()
        for path, future in pending:
            yield path, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
