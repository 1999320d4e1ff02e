"""`recon tune` and `recon calibrate`: what is chosen and measured on simulated scans."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from .display import console, plain, progress_bar
from .options import (
    AngularRange,
    Device,
    Dose,
    Options,
    Prior,
    Views,
    parse_grid,
    parse_levels,
    parse_numbers,
    parse_options,
    parse_range,
    parse_shape,
)

if TYPE_CHECKING:
    from ..ct_heads import HeadScans
    from ..simulation import Distribution

Folder = Annotated[Path, typer.Argument(help="Of NIfTI files: FreeSurfer labels, or magnitude images.")]
On = Annotated[list[str] | None, typer.Option(help="Patterns of file names to take; all by default.")]
Shape = Annotated[str | None, typer.Option(help="Y,X of the simulated scans; 230,180, of CT 192,192.")]
Coils = Annotated[int | None, typer.Option(help="MRI: of the simulated scans; 8.")]
Levels = Annotated[
    str | None, typer.Option(help="MRI: LOW,HIGH of the noise, over the 99th percentile of the image; 0.005,0.02.")
]
Photons = Annotated[str | None, typer.Option(help="CT: LOW,HIGH of the photons in a bin without object; 1e5,4e5.")]


def calibrate(
    folder: Folder,
    on: On = None,
    test: Annotated[list[str] | None, typer.Option(help="Patterns of the files to test on: other subjects.")] = None,
    method: Annotated[str, typer.Option(help="A method that draws samples.")] = "dds",
    option: Options = None,
    mask: Annotated[str | None, typer.Option(help="Kind of mask; random. Every image has its own.")] = None,
    acceleration: Annotated[float | None, typer.Option(help="Of the mask; 4.")] = None,
    mask_option: Annotated[list[str] | None, typer.Option("--mask-set", help="An option of the mask.")] = None,
    views: Views = None,
    angular_range: AngularRange = None,
    dose: Dose = None,
    samples: Annotated[int | None, typer.Option(help="For each image; 8.")] = None,
    prior: Prior = None,
    steps: Annotated[int | None, typer.Option(help="Noise levels of a sampler.")] = None,
    alpha: Annotated[float, typer.Option(help="Part of the object's pixels that may lie outside.")] = 0.1,
    images: Annotated[int, typer.Option(help="To calibrate on.")] = 45,
    test_images: Annotated[int | None, typer.Option(help="To test on; as many by default.")] = None,
    shape: Shape = None,
    coils: Coils = None,
    noise: Levels = None,
    photons: Photons = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    device: Device = "cpu",
    precision: Annotated[str, typer.Option(help="Of the prior's network: float32 or bf16.")] = "float32",
    out: Annotated[Path | None, typer.Option(help="The record (JSON); by default beside the prior.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a record that is there.")] = False,
) -> None:
    """Find the factor that makes a sampler's intervals hold what they promise, on simulated scans: of MRI, or of CT
    where --views, --angular-range or --dose are given."""
    from ..calibrate import calibrate as run
    from ..calibrate import is_of_ct

    is_ct = is_of_ct(views, angular_range, dose)
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
            views=views,
            angular_range=parse_range(angular_range),
            dose=dose,
            samples=samples,
            prior=prior,
            steps=steps,
            alpha=alpha,
            images=images,
            test_images=test_images,
            distribution=_distribution(is_ct, shape=shape, coils=coils, noise=noise, photons=photons),
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


def _distribution(
    is_ct: bool, *, shape: str | None, coils: int | None, noise: str | None, photons: str | None
) -> HeadScans | Distribution:
    """Of CT or of MRI scans, with what was asked for and its own defaults."""
    from ..ct_heads import HeadScans
    from ..errors import InputError
    from ..simulation import Distribution

    other = {"--coils": coils, "--noise": noise} if is_ct else {"--photons": photons}
    given = [name for name, value in other.items() if value is not None]
    if given:
        raise InputError(
            f"{', '.join(given)}: expected none with scans of {'CT' if is_ct else 'MRI'}; leave it out"
            + ("" if is_ct else ", or undersample as CT (--views, --angular-range, --dose; tune: --masks views)")
        )
    asked: dict[str, Any] = {
        "shape": None if shape is None else parse_shape(shape),
        "coils": coils,
        "noise": None if noise is None else parse_levels("--noise", noise),
        "photons": None if photons is None else parse_levels("--photons", photons),
    }
    asked = {name: value for name, value in asked.items() if value is not None}
    return HeadScans(**asked) if is_ct else Distribution(**asked)


def tune(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="The settings (JSON), for `recon reconstruct --tuned`.")],
    grid: Annotated[list[str], typer.Option("--set-grid", help="Values of an option to try: NAME=A,B,C.")],
    on: On = None,
    method: Annotated[str, typer.Option(help="See `recon methods`.")] = "dds",
    option: Options = None,
    masks: Annotated[str, typer.Option(help="Kinds of masks, KIND,KIND; of CT views, range, dose.")] = "random",
    accelerations: Annotated[str, typer.Option(help="Of each of them, NUMBER,NUMBER.")] = "4",
    samples: Annotated[int | None, typer.Option(help="For each image, for methods that draw them; 8.")] = None,
    prior: Prior = None,
    steps: Annotated[int | None, typer.Option(help="Noise levels of a sampler.")] = None,
    images: Annotated[int, typer.Option(help="Simulated scans.")] = 4,
    shape: Shape = None,
    coils: Coils = None,
    noise: Levels = None,
    photons: Photons = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    device: Device = "cpu",
    precision: Annotated[str, typer.Option(help="Of the prior's network: float32 or bf16.")] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a record that is there.")] = False,
) -> None:
    """Choose a method's options on simulated scans, whose truth is known: of MRI, or of CT."""
    from ..tune import is_of_ct
    from ..tune import tune as run

    is_ct = is_of_ct(masks.split(","))
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
            distribution=_distribution(is_ct, shape=shape, coils=coils, noise=noise, photons=photons),
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
