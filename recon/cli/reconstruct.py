"""`recon reconstruct`, and what is looked up before it: `recon info`, `recon methods`, `recon demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from .display import console, metrics_table, plain, progress_bar
from .options import (
    AngularRange,
    Device,
    Dose,
    Options,
    Prior,
    Views,
    parse_centre,
    parse_options,
    parse_range,
    parse_slices,
)

File = Annotated[Path, typer.Argument(help="A scan, of any format that is read (see the README).")]


def reconstruct(
    file: File,
    method: Annotated[str, typer.Option(help="See `recon methods`.")] = "l1-wavelet",
    option: Options = None,
    mask: Annotated[
        str | None,
        typer.Option(
            help="Undersample: random, equispaced, gaussian1d, gaussian2d, poisson, radial, spiral, fastmri-..."
        ),
    ] = None,
    acceleration: Annotated[
        float | None, typer.Option(help="Grid points per sample of the mask; 4 by default.")
    ] = None,
    mask_option: Annotated[
        list[str] | None, typer.Option("--mask-set", help="An option of the mask, NAME=VALUE: calibration=24, say.")
    ] = None,
    slices: Annotated[str | None, typer.Option(help="FIRST:LAST (exclusive), all by default.")] = None,
    samples: Annotated[int | None, typer.Option(help="Posterior samples, for methods that draw them; 8.")] = None,
    prior: Prior = None,
    steps: Annotated[int | None, typer.Option(help="Noise levels of a sampler; its own number by default.")] = None,
    seed: Annotated[int, typer.Option(help="Of the mask and of the samples.")] = 0,
    coils: Annotated[int | None, typer.Option(help="Compress to so many virtual coils.")] = None,
    sets: Annotated[int, typer.Option(help="ESPIRiT map sets; 2 if the object exceeds the field of view.")] = 1,
    views: Views = None,
    angular_range: AngularRange = None,
    dose: Dose = None,
    rings: Annotated[
        int | None, typer.Option(help="CT: take out rings; an odd number of bins, twice their width, such as 11.")
    ] = None,
    rotation_centre: Annotated[
        str | None, typer.Option(help="CT, parallel beam: the bin (from 0) that the axis projects onto, or find.")
    ] = None,
    device: Device = "cpu",
    precision: Annotated[
        str, typer.Option(help="Of the prior's network: float32, or bf16, faster where there are instructions for it.")
    ] = "float32",
    check: Annotated[
        bool, typer.Option(help="For samplers: look if the prior suits the data (costs 4 samples of one slice).")
    ] = True,
    tuned: Annotated[Path | None, typer.Option(help="Options of the method as `recon tune` chose them.")] = None,
    calibrated: Annotated[
        Path | None, typer.Option(help="Factor for std and intervals, as `recon calibrate` found it.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("reconstruction"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that are there.")] = False,
    complex_image: Annotated[bool, typer.Option("--complex", help="Save the complex image too.")] = False,
    dicom: Annotated[bool, typer.Option("--dicom", help="CT: save DICOM series in HU too.")] = False,
) -> None:
    """Reconstruct a scan: HDF5, NIfTI, a picture and run.json in a folder."""
    from ..pipeline import reconstruct as run

    with progress_bar() as progress:
        result = run(
            file,
            method=method,
            options=parse_options(option or []),
            mask=mask,
            acceleration=acceleration,
            mask_options=parse_options(mask_option or []),
            slices=parse_slices(slices),
            samples=samples,
            prior=prior,
            steps=steps,
            seed=seed,
            coils=coils,
            sets=sets,
            views=views,
            angular_range=parse_range(angular_range),
            dose=dose,
            rings=rings,
            rotation_centre=parse_centre(rotation_centre),
            device=device,
            precision=precision,
            check=check,
            tuned=tuned,
            calibrated=calibrated,
            out=out,
            overwrite=overwrite,
            complex_image=complex_image,
            dicom=dicom,
            progress=progress,
        )
    for note in result.run["notes"]:
        if not note.startswith("WARNING"):  # it was given when it was found
            console.print(plain(note), style="dim", soft_wrap=True)
    cost = f"{result.run['timings_s']['method']:.1f} s"
    if result.run["evaluations"]:
        cost += f" at {result.run['evaluations']} network evaluations" + " a sample" * (result.samples is not None)
    if "check" in result.run["timings_s"]:
        cost += f", and {result.run['timings_s']['check']:.1f} s for the check of the prior"
    console.print(f"{result.run['sampled']}, {cost}", soft_wrap=True)
    if result.metrics:
        console.print(metrics_table({method: result.metrics}))
    console.print(f"results in {out}/", soft_wrap=True)


def info(file: File) -> None:
    """Say what a file holds."""
    from ..io import load
    from ..modalities import modality_of

    scan = load(file)
    table = Table(show_header=False, box=None)
    for key, value in {"name": scan.name, **modality_of(scan).info(scan)}.items():
        table.add_row(f"[bold]{key}", plain(value))
    for note in scan.notes:
        table.add_row("[bold]note", plain(note))
    console.print(table)


def methods() -> None:
    """List the methods with their options."""
    from ..methods import METHODS, options_of, takes_prior

    table = Table("method", "what it is", "options for --set (default)", box=None, header_style="bold")
    for name, method in METHODS.items():
        summary = (method.__doc__ or "").strip().splitlines()[0]
        options = ", ".join(f"{key}={value}" for key, value in options_of(method).items())
        prior = " [dim](prior)" if takes_prior(method) else ""
        table.add_row(name + prior, plain(summary), options)
    console.print(table)


def demo(
    file: Annotated[
        Path | None, typer.Argument(help="A fully sampled scan of your own; else an embedded head.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("demo"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that are there.")] = False,
) -> None:
    """Undersample a scan fourfold and compare the methods on it."""
    from ..demo import run

    with progress_bar() as progress:
        results = run(file, out=out, overwrite=overwrite, progress=progress)
    console.print(metrics_table({name: result.metrics for name, result in results.items()}, results))
    console.print(f"pictures in {out}/panel.png", soft_wrap=True)
