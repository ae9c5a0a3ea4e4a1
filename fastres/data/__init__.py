"""Data shipped with the package: a photograph to classify and to measure with. README.md has its source and licence."""

from importlib.resources import files

from PIL import Image


def photo() -> Image.Image:
    """A public-domain photograph of a cat: an RGB image, 451 pixels wide and 300 high."""
    with (files(__name__) / "chelsea.jpg").open("rb") as file:
        return Image.open(file).convert("RGB")
