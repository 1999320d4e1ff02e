"""TIFF as an array: one page, or pages of one size along the first axis. What they mean, a geometry file says."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recon.errors import InputError

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def matches(path: Path) -> bool:
    """Whether the file starts as a TIFF does."""
    with path.open("rb") as file:
        return file.read(4) in SIGNATURES


def read_array(path: Path) -> np.ndarray:
    """(y, x), or (page, y, x) of several pages; 8, 16 or 32 bits, whole numbers or floats.

    Raises
    ------
    InputError
        If it is in colour, its pages differ in size, or it cannot be read.
    """
    from PIL import Image, ImageSequence, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            pages = [np.array(page) for page in ImageSequence.Iterator(image)]
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise InputError(
            f"{path}: expected a whole TIFF, came one that cannot be read ({' '.join(str(error).split())}); copy it "
            "again, or save it without compression"
        ) from error
    shapes = {page.shape for page in pages}
    if len(shapes) != 1 or pages[0].ndim != 2:
        raise InputError(
            f"{path.name}: expected grey pages of one size, came {', '.join(map(str, sorted(shapes)))}; split the file"
        )
    return pages[0] if len(pages) == 1 else np.stack(pages)
