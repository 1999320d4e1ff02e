"""The picture of a result: reference, zero-filled, result, error and standard deviation side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from recon.errors import InputError
from recon.io.atomic import atomic
from recon.io.writers import as_array

BACKGROUND, TEXT, FAINT = "#0b0d10", "#f2f4f7", "#9aa4b2"
HEIGHT = 3.6  # inches of an image
FACTORS = (1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class Tile:
    """One image of the panel: what it shows, how it is called, and a line below its title."""

    image: np.ndarray
    title: str
    caption: str
    factor: int = 0  # 0: gray image; else a map, shown this many times brighter


def write_panel(
    path: str | Path,
    result: Tensor | np.ndarray,
    *,
    reference: Tensor | np.ndarray | None = None,
    zero_filled: Tensor | np.ndarray | None = None,
    std: Tensor | np.ndarray | None = None,
    name: str = "reconstruction",
    caption: str = "",
    zero_filled_caption: str = "",
    zero_filled_name: str = "zero-filled",
    gray: tuple[float, float] | None = None,
    title: str = "",
    voxel_size: tuple[float, float, float] = (1.0, 1.0, 1.0),
    overwrite: bool = False,
) -> None:
    """Write a PNG of one slice: all images in one gray window, errors and standard deviation in one colour window.

    Parameters
    ----------
    result, reference, zero_filled : (y, x) magnitude, in the same units.
    std : (y, x) standard deviation of the result's magnitude.
    name : the method, title of the result.
    caption, zero_filled_caption : below their titles, such as metrics.
    zero_filled_name : what the image is that the data show without a model.
    gray : values shown black and white; 0 and `window` by default.
    title : above all.
    voxel_size : mm along (z, y, x); sets the shape of a pixel.

    Raises
    ------
    InputError
        If the images are complex, or differ in shape.
    ResultExistsError, WriteError
        If the file is there and `overwrite` is not set; if it cannot be written.
    """
    image = as_array(result)
    given = {"reference": reference, "zero_filled": zero_filled, "std": std}
    others = {key: as_array(values) for key, values in given.items() if values is not None}
    for key, values in {"result": image, **others}.items():
        if values.ndim != 2 or values.shape != image.shape or np.iscomplexobj(values):
            raise InputError(
                f"expected {key} as a magnitude (y, x) of shape {image.shape}, came {values.dtype} {values.shape}"
            )
    black, white = gray or (0.0, window(others.get("reference", image)))
    maps = {}
    if "reference" in others:
        maps["absolute error"] = np.abs(image - others["reference"])
    if "std" in others:
        maps["standard deviation"] = others["std"]
    factor = brightening(list(maps.values()), white - black)

    tiles = []
    if "reference" in others:
        tiles.append(Tile(others["reference"], "reference", ""))
    if "zero_filled" in others:
        tiles.append(Tile(others["zero_filled"], zero_filled_name, zero_filled_caption))
    tiles.append(Tile(image, name, caption))
    tiles += [Tile(values, key, f"shown × {factor}", factor) for key, values in maps.items()]
    draw(
        path, [tiles], white, black=black, title=title, pixel_aspect=voxel_size[1] / voxel_size[2], overwrite=overwrite
    )


def write_comparison(
    path: str | Path,
    images: Mapping[str, Tensor | np.ndarray],
    *,
    reference: Tensor | np.ndarray,
    captions: Mapping[str, str],
    std: Tensor | np.ndarray | None = None,
    title: str = "",
    voxel_size: tuple[float, float, float] = (1.0, 1.0, 1.0),
    overwrite: bool = False,
) -> None:
    """Write a PNG of one slice by several methods, each above its error; parameters as `write_panel`.

    Parameters
    ----------
    images, captions : method -> (y, x) magnitude, and the line below its title.
    std : of the last method, shown below the reference.
    """
    truth = as_array(reference)
    results = {name: as_array(image) for name, image in images.items()}
    errors = {name: np.abs(image - truth) for name, image in results.items()}
    maps = [*errors.values(), *([] if std is None else [as_array(std)])]
    white, factor = window(truth), brightening(maps[1:], window(truth))  # the first, the worst, may saturate
    shown = f"shown × {factor}"
    first = None if std is None else Tile(as_array(std), "standard deviation", f"{list(images)[-1]}, {shown}", factor)
    draw(
        path,
        [
            [Tile(truth, "reference", ""), *(Tile(image, name, captions[name]) for name, image in results.items())],
            [first, *(Tile(error, "absolute error", shown, factor) for error in errors.values())],
        ],
        white,
        title=title,
        pixel_aspect=voxel_size[1] / voxel_size[2],
        overwrite=overwrite,
    )


def window(image: np.ndarray) -> float:
    """What is shown white: the 97th percentile inside the object (above a tenth of the maximum): fat is clipped."""
    inside = image[image > 0.1 * image.max()]
    return float(np.percentile(inside, 97)) if inside.size else 1.0


def brightening(maps: Sequence[np.ndarray], white: float) -> int:
    """The largest factor at which 99.5 % of every map's pixels stay below white."""
    largest = max((float(np.percentile(values, 99.5)) for values in maps), default=0.0)
    return max((f for f in FACTORS if f * largest <= white), default=FACTORS[0])


def draw(
    path: str | Path,
    rows: Sequence[Sequence[Tile | None]],
    white: float,
    *,
    black: float = 0.0,
    title: str,
    pixel_aspect: float,
    overwrite: bool,
) -> None:
    """Lay the tiles out in rows of equal length and save them. No pyplot: it would leave global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tiles = [tile for row in rows for tile in row if tile is not None]
    height, width = tiles[0].image.shape
    width = HEIGHT * width / (height * pixel_aspect)
    top, above, gap = (0.3 if title else 0.0), 0.6, 0.06  # inches: for the title, for those of the tiles, between tiles
    scale = 0.65 if any(tile.factor for tile in tiles) else 0.0  # room for the colour bar
    size = len(rows[0]) * (width + gap) + gap + scale, top + len(rows) * (HEIGHT + above) + gap
    figure = Figure(figsize=size, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    for r, row in enumerate(rows):
        bottom = size[1] - top - (r + 1) * (HEIGHT + above)
        for c, tile in enumerate(row):
            if tile is None:
                continue
            left = gap + c * (width + gap)
            axes = figure.add_axes((left / size[0], bottom / size[1], width / size[0], HEIGHT / size[1]))
            axes.axis("off")
            shown = axes.imshow(
                tile.image,
                cmap="inferno" if tile.factor else "gray",
                vmin=0 if tile.factor else black,
                vmax=(white - black) / tile.factor if tile.factor else white,
                aspect=pixel_aspect,
                interpolation="nearest" if height >= 256 else "bilinear",
            )
            middle, text = (left + width / 2) / size[0], bottom + HEIGHT
            figure.text(middle, (text + 0.26) / size[1], tile.title, color=TEXT, size=12, ha="center", va="bottom")
            figure.text(middle, (text + 0.08) / size[1], tile.caption, color=FAINT, size=9, ha="center", va="bottom")
            if tile.factor and c == len(row) - 1:
                place = ((size[0] - scale) / size[0], bottom / size[1] + 0.02, 0.1 / size[0], 0.9 * HEIGHT / size[1])
                bar = figure.add_axes(place)
                figure.colorbar(shown, cax=bar).ax.tick_params(colors=FAINT, labelsize=7, length=2)
    if title:
        figure.text(gap / size[0], 1 - 0.12 / size[1], title, color=FAINT, size=10, ha="left", va="top")
    with atomic(path, overwrite=overwrite) as temporary:
        figure.savefig(temporary, dpi=150, facecolor=BACKGROUND, metadata={"Software": None})
