"""`recon train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .display import console
from .options import Device, parse_numbers, parse_whole


def train(
    folder: Annotated[
        Path | None, typer.Argument(help="Of fastMRI files, NIfTI, DICOM or label maps; none for discs-ct.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint and the prior.")] = Path("prior"),
    task: Annotated[
        str, typer.Option(help="denoiser; or, for the method of that name: unet, varnet, fbp-unet, fbp-gan.")
    ] = "denoiser",
    images: Annotated[
        str, typer.Option(help="mri; head-ct, renderings of label maps; or discs-ct, synthetic discs with holes.")
    ] = "mri",
    mask: Annotated[str | None, typer.Option(help="For unet and varnet: the pattern of lines [random].")] = None,
    accelerations: Annotated[str | None, typer.Option(help="For unet and varnet: which [4,8].")] = None,
    minutes: Annotated[float, typer.Option(help="Training time, over all calls together.")] = 60.0,
    steps: Annotated[int | None, typer.Option(help="Stop after so many steps, if that is sooner.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Patterns of file names to leave out.")] = None,
    validation: Annotated[list[str] | None, typer.Option(help="Patterns of file names to validate on.")] = None,
    name: Annotated[str, typer.Option(help="Of the prior.")] = "prior",
    widths: Annotated[str | None, typer.Option(help="Channels at each resolution, such as 32,64,96.")] = None,
    start: Annotated[str | None, typer.Option(help="Prior to start from (fine-tuning): name or path.")] = None,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW at its highest.")] = 8e-4,
    device: Device = "cpu",
    seed: Annotated[int, typer.Option(help="Of the weights, the images and the noise.")] = 0,
) -> None:
    """Train a prior, or a network that reconstructs, on a folder's images or synthetic ones; again to continue."""
    from ..train import train as run

    card = run(
        folder,
        out=out,
        task=task,
        images=images,
        mask=mask,
        accelerations=None if accelerations is None else parse_numbers("--accelerations", accelerations),
        widths=None if widths is None else parse_whole("--widths", widths),
        minutes=minutes,
        steps=steps,
        exclude=exclude or (),
        validation=validation or (),
        name=name,
        start=start,
        learning_rate=learning_rate,
        device=device,
        seed=seed,
    )
    console.print(f"prior in {card}; use it with --prior {card}", soft_wrap=True)
