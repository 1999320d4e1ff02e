"""`recon simulate` and `recon simulate-ct`: scans whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .display import console, plain
from .options import parse_shape, parse_slices


def simulate(
    file: Annotated[Path, typer.Argument(help="NIfTI of a head: FreeSurfer labels, or a magnitude image.")],
    out: Annotated[Path, typer.Option(help="The scan, a fastMRI HDF5 file.")] = Path("scan.h5"),
    shape: Annotated[str, typer.Option(help="Y,X of k-space.")] = "230,180",
    slices: Annotated[int, typer.Option(help="How many, one above the other.")] = 1,
    position: Annotated[float, typer.Option(help="Of their middle, from 0 (low in the brain) to 1.")] = 0.5,
    coils: Annotated[int, typer.Option(help="Loops around the head.")] = 8,
    noise: Annotated[float, typer.Option(help="Standard deviation, over the 99th percentile of the image.")] = 0.01,
    pixel: Annotated[float | None, typer.Option(help="In mm; by default the head fills 7/8 of the image.")] = None,
    thickness: Annotated[float, typer.Option(help="Of a slice, in mm.")] = 3.0,
    seed: Annotated[int, typer.Option(help="Of contrast, phase, coils and noise.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a scan that is there.")] = False,
) -> None:
    """Simulate a fully sampled scan whose truth is known, on a finer grid and with coils of its own."""
    from ..io.atomic import refuse_existing
    from ..io.scan_writer import write_scan
    from ..simulation import simulate as run
    from ..training_volumes import read_volume

    refuse_existing(out, overwrite=overwrite)
    scan = run(
        read_volume(file),
        shape=parse_shape(shape),
        slices=slices,
        position=position,
        coils=coils,
        noise=noise,
        pixel=pixel,
        thickness=thickness,
        seed=seed,
        name=file.name,
    )
    write_scan(out, scan, overwrite=overwrite)
    count = f"{slices} slice{'s' * (slices > 1)}, {coils} coils, {scan.shape[0]} x {scan.shape[1]}"
    console.print(f"{count}, fully sampled, with its truth, in {plain(str(out))}", soft_wrap=True)


def simulate_ct(
    images: Annotated[Path, typer.Argument(help="A series of CT images in HU (DICOM): its folder or tar archive.")],
    out: Annotated[Path, typer.Option(help="The scan, a .npz with its geometry.")] = Path("scan.npz"),
    shape: Annotated[
        str, typer.Option(help="Y,X of the image to reconstruct; it divides that of the series.")
    ] = "256,256",
    slices: Annotated[str | None, typer.Option(help="FIRST:LAST (exclusive) by position, all by default.")] = None,
    series: Annotated[str | None, typer.Option(help="SeriesInstanceUID, where the folder holds several.")] = None,
    views: Annotated[int, typer.Option(help="Over a turn.")] = 720,
    photons: Annotated[float, typer.Option(help="That a bin counts without object.")] = 2e5,
    electronic: Annotated[float, typer.Option(help="Standard deviation of the detector's noise, in photons.")] = 10.0,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a scan that is there.")] = False,
) -> None:
    """Simulate a CT scan of images in HU, by a finer model than any that reconstructs."""
    from ..ct_simulation import simulate_series
    from ..io.numpy_projections import check_target, write

    check_target(out, overwrite=overwrite)
    scan = simulate_series(
        images,
        shape=parse_shape(shape),
        slices=parse_slices(slices),
        series=series,
        views=views,
        photons=photons,
        electronic=electronic,
        seed=seed,
    )
    write(out, scan, overwrite=overwrite)
    for note in scan.notes:
        console.print(plain(note), style="dim", soft_wrap=True)
    console.print(
        f"{len(scan)} slices, {views} views of {scan.geometry.bins} bins in {plain(str(out))}", soft_wrap=True
    )
