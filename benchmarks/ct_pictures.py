"""A picture of `benchmarks.ct`: rows are settings, columns methods, each image above its error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from recon.io.atomic import atomic
from recon.io.panel import BACKGROUND, FAINT, TEXT
from recon.result import Reconstruction

INCHES, DPI = 1.6, 100  # of a tile
ERRORS = 0.5  # their window over that of the images


class Pictures:
    """Images of one study, kept in a folder until they are drawn.

    Parameters
    ----------
    folder : one file for each setting and method.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, setting: str, method: str) -> Path:
        name = "".join(letter if letter.isalnum() else "-" for letter in f"{setting} {method}")
        return self.folder / f"{name}.npz"

    def has(self, setting: str, method: str) -> bool:
        return self._path(setting, method).exists()

    def keep(self, setting: str, method: str, result: Reconstruction, truth: Tensor) -> None:
        """Remember an image and what it is compared with, (y, x)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        std = {} if result.std is None else {"std": result.std[0].numpy()}
        np.savez_compressed(self._path(setting, method), image=result.mean[0].numpy(), truth=truth.numpy(), **std)

    def draw(self, path: Path, settings: Sequence[str], methods: Sequence[str], *, gray: tuple[float, float]) -> None:
        """Write a PNG, if there is an image of each; below the reference the spread of the last method's samples.

        Parameters
        ----------
        gray : black and white; errors are shown in a window half as wide.
        """
        if not all(self.has(setting, method) for setting in settings for method in methods):
            return
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        shape = 2 * len(settings), 1 + len(methods)
        figure = Figure(figsize=(INCHES * shape[1] + 0.3, INCHES * shape[0] + 0.3), facecolor=BACKGROUND, dpi=DPI)
        FigureCanvasAgg(figure)
        axes = figure.subplots(*shape, squeeze=False)
        for ax in axes.flat:
            ax.axis("off")
        errors = {"cmap": "inferno", "vmin": 0, "vmax": ERRORS * (gray[1] - gray[0])}
        for row, setting in enumerate(settings):
            for column, method in enumerate(methods, start=1):
                with np.load(self._path(setting, method)) as kept:
                    image, truth, std = kept["image"], kept["truth"], kept.get("std")
                axes[2 * row, column].imshow(image, cmap="gray", vmin=gray[0], vmax=gray[1])
                axes[2 * row + 1, column].imshow(np.abs(image - truth), **errors)
                axes[0, column].set_title(method, color=TEXT, size=10)
            axes[2 * row, 0].imshow(truth, cmap="gray", vmin=gray[0], vmax=gray[1])
            if std is not None:
                axes[2 * row + 1, 0].imshow(std, **errors)
                note = {"color": FAINT, "size": 8, "ha": "center", "va": "top"}
                axes[2 * row + 1, 0].text(
                    0.5, 0.06, f"std of {method}", transform=axes[2 * row + 1, 0].transAxes, **note
                )
            place = 1 - (2 * row + 1) / shape[0]
            figure.text(0.006, place, setting, color=TEXT, size=10, rotation=90, va="center")
        axes[0, 0].set_title("reference", color=TEXT, size=10)
        figure.subplots_adjust(left=0.03, right=0.998, bottom=0.002, top=0.96, wspace=0.02, hspace=0.02)
        with atomic(path, overwrite=True) as temporary:
            figure.savefig(temporary, facecolor=BACKGROUND, metadata={"Software": None})
