"""`recon tune` and `recon calibrate`: what is chosen and measured on simulated scans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from .display import console, plain, progress_bar
from .options import Device, Options, Prior, parse_grid, parse_levels, parse_numbers, parse_options, parse_shape

Folder = Annotated[Path, typer.Argument(help="Of NIfTI files: FreeSurfer labels, or magnitude images.")]
On = Annotated[list[str] | None, typer.Option(help="Patterns of file names to take; all by default.")]
Shape = Annotated[str, typer.Option(help="Y,X of the simulated scans.")]
Coils = Annotated[int, typer.Option(help="Of the simulated scans.")]
Levels = Annotated[str, typer.Option(help="LOW,HIGH of the simulated noise, over the 99th percentile of the image.")]


def calibrate(
    folder: Folder,
    on: On = None,
    test: Annotated[list[str] | None, typer.Option(help="Patterns of the files to test on: other subjects.")] = None,
    method: Annotated[str, typer.Option(help="A method that draws samples.")] = "dds",
    option: Options = None,
    mask: Annotated[str, typer.Option(help="Kind of mask; every image has its own.")] = "random",
    acceleration: Annotated[float, typer.Option(help="Of the mask.")] = 4.0,
    mask_option: Annotated[list[str] | None, typer.Option("--mask-set", help="An option of the mask.")] = None,
    samples: Annotated[int | None, typer.Option(help="For each image; 8.")] = None,
    prior: Prior = None,
    steps: Annotated[int | None, typer.Option(help="Noise levels of a sampler.")] = None,
    alpha: Annotated[float, typer.Option(help="Part of the object's pixels that may lie outside.")] = 0.1,
    images: Annotated[int, typer.Option(help="To calibrate on.")] = 45,
    test_images: Annotated[int | None, typer.Option(help="To test on; as many by default.")] = None,
    shape: Shape = "230,180",
    coils: Coils = 8,
    noise: Levels = "0.005,0.02",
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    device: Device = "cpu",
    precision: Annotated[str, typer.Option(help="Of the prior's network: float32 or bf16.")] = "float32",
    out: Annotated[Path | None, typer.Option(help="The record (JSON); by default beside the prior.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a record that is there.")] = False,
) -> None:
    """Find the factor that makes a sampler's intervals hold what they promise, on simulated scans."""
    from ..calibrate import calibrate as run
    from ..simulation import Distribution

    with progress_bar() as progress:
        path, record = run(
            folder,
            on=on or ("*",),
            test=test or (),
            method=method,
            options=parse_options(option or []),
            mask=mask,
            acceleration=acceleration,
            mask_options=parse_options(mask_option or []),
            samples=samples,
            prior=prior,
            steps=steps,
            alpha=alpha,
            images=images,
            test_images=test_images,
            distribution=Distribution(shape=parse_shape(shape), coils=coils, noise=parse_levels(noise)),
            seed=seed,
            device=device,
            precision=precision,
            out=out,
            overwrite=overwrite,
            progress=progress,
        )
    table = Table("", "images", "outside before", "after", "width before", "after", box=None, header_style="bold")
    for name in ("calibration", "test"):
        if found := record[name]:
            cells = (*(f"{100 * found['risk'][when]:.1f} %" for when in ("before", "after")),)
            cells += (*(f"{found['width'][when]:.3f}" for when in ("before", "after")),)
            table.add_row(name, str(found["images"]), *cells)
    console.print(table)
    console.print(plain(record["notes"][0]), style="dim", soft_wrap=True)
    cost = f"{record['timings_s']['all']:.0f} s, {record['timings_s']['image']:.1f} s an image"
    console.print(f"factor {record['factor']:.3f} ({cost}) in {plain(str(path))}", soft_wrap=True)


def tune(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="The settings (JSON), for `recon reconstruct --tuned`.")],
    grid: Annotated[list[str], typer.Option("--set-grid", help="Values of an option to try: NAME=A,B,C.")],
    on: On = None,
    method: Annotated[str, typer.Option(help="See `recon methods`.")] = "dds",
    option: Options = None,
    masks: Annotated[str, typer.Option(help="Kinds of masks, KIND,KIND.")] = "random",
    accelerations: Annotated[str, typer.Option(help="Of each of them, NUMBER,NUMBER.")] = "4",
    samples: Annotated[int | None, typer.Option(help="For each image, for methods that draw them; 8.")] = None,
    prior: Prior = None,
    steps: Annotated[int | None, typer.Option(help="Noise levels of a sampler.")] = None,
    images: Annotated[int, typer.Option(help="Simulated scans.")] = 4,
    shape: Shape = "230,180",
    coils: Coils = 8,
    noise: Levels = "0.005,0.02",
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    device: Device = "cpu",
    precision: Annotated[str, typer.Option(help="Of the prior's network: float32 or bf16.")] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a record that is there.")] = False,
) -> None:
    """Choose a method's options on simulated scans, whose truth is known."""
    from ..simulation import Distribution
    from ..tune import tune as run

    with progress_bar() as progress:
        record = run(
            folder,
            out=out,
            grid=parse_grid(grid),
            on=on or ("*",),
            method=method,
            options=parse_options(option or []),
            masks=masks.split(","),
            accelerations=parse_numbers("--accelerations", accelerations),
            samples=samples,
            prior=prior,
            steps=steps,
            images=images,
            distribution=Distribution(shape=parse_shape(shape), coils=coils, noise=parse_levels(noise)),
            seed=seed,
            device=device,
            precision=precision,
            overwrite=overwrite,
            progress=progress,
        )
    table = Table("options", "PSNR scaled, in object", "SSIM", "seconds", box=None, header_style="bold")
    for row in record["table"]:
        values = ", ".join(f"{name}={value}" for name, value in row["options"].items())
        chosen = all(record["options"][name] == value for name, value in row["options"].items())
        figures = f"{row['psnr_scaled']:.2f}", f"{row['ssim_scaled']:.4f}", f"{row['seconds']:.1f}"
        table.add_row(values, *figures, style="bold" if chosen else "")
    console.print(table)
    for note in record["notes"]:
        console.print(plain(note), style="dim", soft_wrap=True)
    console.print(f"settings in {plain(str(out))}; use them with --tuned {plain(str(out))}", soft_wrap=True)
