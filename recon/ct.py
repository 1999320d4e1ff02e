"""X-ray CT: the scan as measured, its preparation, and its likelihood."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from operators.ct import XRay
from operators.geometry import Geometry, Grid
from operators.linop import Weighted

from .errors import InputError
from .likelihood import Gaussian
from .mri import SliceArray
from .projections import LineIntegrals, line_integrals, remove_rings, truncated_views


@dataclass(frozen=True)
class CTScan:
    """Projections as measured, made by any reader.

    Parameters
    ----------
    projections : (slice, view, bin) float32; counts, or line integrals. Read lazily: `scan[2:5]` holds those slices as
        a tensor.
    geometry : where the rays run.
    grid : pixels of the image.
    is_counts : whether projections are counts.
    flats, darks : (frame, slice, bin) counts without object, and without beam; for counts.
    gain : counts for each photon, where projections are counts (1 for a photon counter); estimated if None.
    photons : that a bin counts without object, where projections are line integrals; estimated if None.
    electronic : standard deviation of the detector's own noise, in photons.
    water : attenuation of water in 1/mm, for HU.
    reference : (slice, y, x) image in 1/mm of the file's own reconstruction, if any.
    slice_spacing : mm from one slice to the next.
    name : what to call the scan in outputs.
    header : what else the file says, to be written back.
    notes : what was assumed while reading, in sentences for the user.
    """

    projections: SliceArray
    geometry: Geometry
    grid: Grid
    is_counts: bool = False
    flats: Tensor | None = None
    darks: Tensor | None = None
    gain: float | None = None
    photons: float | None = None
    electronic: float = 0.0
    water: float | None = None
    reference: SliceArray | None = None
    slice_spacing: float = 1.0
    name: str = "scan"
    header: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of slices."""
        return self.projections.shape[0]

    def __getitem__(self, index: slice) -> CTScan:
        """The scan of some slices, read into memory."""
        reference = None if self.reference is None else torch.as_tensor(self.reference[index])
        flats, darks = (None if frames is None else frames[:, index] for frames in (self.flats, self.darks))
        projections = torch.as_tensor(self.projections[index])
        return replace(self, projections=projections, flats=flats, darks=darks, reference=reference)

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape of the image."""
        return tuple(self.grid.shape)

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """mm along (z, y, x)."""
        return (self.slice_spacing, *self.grid.pixel_sizes)


@dataclass(frozen=True)
class PreparedCT:
    """A scan ready for reconstruction: line integrals = scale * XRay x + n, in images x whose material is about 1.

    Parameters
    ----------
    line_integrals : (slice, view, bin) float32.
    weights : of the same shape; inverse variance of a line integral, 0 for dead or saturated bins.
    geometry, grid : where the rays run, and the pixels of the image.
    scale : image in 1/mm = scale * x; water, where the scan knows it, else `mean_attenuation`: not by the views chosen.
    counts, blank, background : of the same shape, in photons, for transmission statistics: counts are about Poisson of
        mean blank * exp(-line integrals) + background. The variance of electronic noise is added to counts and
        background, which gives both moments (Yavuz and Fessler, Med Image Anal 2, 337 (1998)).
    notes : what was estimated and how, in sentences for the user.
    """

    line_integrals: Tensor
    weights: Tensor
    geometry: Geometry
    grid: Grid
    scale: float
    counts: Tensor | None = None
    blank: Tensor | None = None
    background: Tensor | None = None
    notes: tuple[str, ...] = ()

    def image(self, x: Tensor) -> Tensor:
        """From x (..., y, x) to 1/mm."""
        return self.scale * x


def likelihood(prepared: PreparedCT) -> Gaussian:
    """Gaussian likelihood of the images (slice, y, x): whitened, by the square root of the weights.

    Rays that miss the object weigh many times as much as those through its middle, and A is badly conditioned. The
    curvature A^T A 1 of separable quadratics above the data term evens it out, and few iterations go further.

    Raises
    ------
    InputError
        If the source is inside the image grid, or no ray meets it.
    """
    root = prepared.weights.sqrt()
    try:
        projector = XRay(prepared.geometry, prepared.grid, dtype=root.dtype, device=root.device)
    except ValueError as error:  # rays and grid that do not fit each other
        raise InputError(f"geometry: {error}") from error
    A = Weighted(prepared.scale * root, projector)
    return Gaussian(
        A, root * prepared.line_integrals, curvature=A.gram(torch.ones_like(A.domain.zeros())), iterations=20
    )


class NoiseLevel(NamedTuple):
    """The noise of a line integral: its variance is (n + electronic^2) / n^2, n = photons * signal.

    photons : in one unit of signal, which is counts without background, or exp(-line integral), so that it is the
        number in a bin without object.
    source : how it was found, a sentence for the user.
    electronic : standard deviation of the detector's own noise, in photons.
    """

    photons: float
    source: str
    electronic: float = 0.0

    def weights(self, signal: Tensor) -> Tensor:
        """Inverse variance of line integrals."""
        n = self.photons * signal
        return n if self.electronic == 0 else n**2 / (n + self.electronic**2)


def noise_of(scan: CTScan) -> NoiseLevel:
    """Photons of a scan, as it says, or else from its middle slice.

    Fourth differences between neighbours leave noise and some of the object: along the views, and along every second
    bin, since next ones share light. The one of less noise is taken; medians pass over edges. Counts that were too low
    for a logarithm are left out. Where views are few and the object is full of edges, photons are found too low, hence
    noise too high: of a simulated head with 2e5 in 240 views 1.7e5, in 30 of them 1.1e5, and 5.4e4 at the base of
    its skull. What stays in a bin through the views, and would be rings, counts as noise there.

    Raises
    ------
    InputError
        If the projections do not fit the geometry, or hold no noise.
    """
    known = None if scan.gain is None else 1 / scan.gain
    if (photons := known if scan.is_counts else scan.photons) is not None:
        source = f"noise: {photons:g} photons {'a count' if scan.is_counts else 'a bin'}, as given"
        return NoiseLevel(photons, source, scan.electronic)
    middle = len(scan) // 2
    found = logarithm(scan[middle : middle + 1])
    signal = found.signal.where(~found.replaced, 0.0)
    levels = {
        "views": _difference_noise(found.values.mT, signal.mT, lag=1),
        "bins": _difference_noise(found.values, signal, lag=2),
    }
    along = min(levels, key=lambda name: levels[name])
    if not 0 < levels[along] < math.inf:
        raise InputError(
            f"projections: expected noise, whose level is needed, got {levels[along]:g}; give photons (line integrals) "
            "or gain (counts) with the scan, or say that they are counts"
        )
    what = "a count" if scan.is_counts else "a bin without object"
    photons = 1 / levels[along]
    source = f"noise from differences between neighbouring {along}: {photons:.3g} photons {what}"
    return NoiseLevel(photons, source, scan.electronic)


_DIFFERENCE = (1.0, -4.0, 6.0, -4.0, 1.0)


def _difference_noise(line_integrals: Tensor, signal: Tensor, *, lag: int) -> float:
    """Variance of a line integral of signal 1, from differences along the last axis; infinite where it is too short."""
    length = line_integrals.shape[-1] - (len(_DIFFERENCE) - 1) * lag
    if length < 1:
        return math.inf
    parts = [(c, i * lag) for i, c in enumerate(_DIFFERENCE)]
    difference = torch.stack([c * line_integrals.narrow(-1, i, length) for c, i in parts]).sum(0)
    # var(sum c_i p_i) = sum c_i^2 / signal_i, in units of the variance that is asked for.
    spread = torch.stack([c**2 / signal.narrow(-1, i, length) for c, i in parts]).sum(0).sqrt()
    normal = (difference / spread).abs()[spread.isfinite()]
    return float(normal.median() / 0.6745) ** 2 if len(normal) else math.inf  # median of |n|, n standard normal


def prepare(scan: CTScan, *, noise: NoiseLevel | None = None, rings: int | None = None) -> PreparedCT:
    """Line integrals with the inverse of their variance, and the intensity scale.

    Parameters
    ----------
    scan : its slices are read into memory.
    noise : of its line integrals; found from these slices by default, see `noise_of`.
    rings : odd number of bins; takes out stripes of up to half as many, see `remove_rings`. Counts stay as they were
        measured: what differs from bin to bin is their blank.

    Raises
    ------
    InputError
        If the projections do not fit the geometry, are not finite, or hold no object; if rings is even, or larger than
        the detector.

    Warns
    -----
    UserWarning
        If the detector ends before the object does.
    """
    noise = noise_of(scan) if noise is None else noise
    found = logarithm(scan)
    weights = noise.weights(found.signal)
    values, blank = found.values, (noise.photons * found.blank)[:, None].expand_as(weights)
    notes = [noise.source, *scan.notes, *found.notes]
    if rings is not None:
        values = remove_rings(found.values, size=rings)
        blank = blank * torch.exp(values - found.values)
        notes.append(f"Stripes of up to {rings // 2} bins, which make rings, were taken out of the line integrals.")
    scale = mean_attenuation(values, scan.geometry) if scan.water is None else scan.water
    if cut := _truncation(values):
        warnings.warn(cut, stacklevel=2)
        notes.append(f"WARNING: {cut}")
    electronic = noise.electronic**2
    background = (noise.photons * found.background + electronic)[:, None].expand_as(weights)
    measured = torch.as_tensor(scan.projections[:]).to(weights) if scan.is_counts else found.signal
    counts = (noise.photons * measured + electronic).clamp(min=0).where(weights > 0, background)
    return PreparedCT(
        line_integrals=values,
        weights=weights,
        geometry=scan.geometry,
        grid=scan.grid,
        scale=scale,
        counts=counts,
        blank=blank,
        background=background,
        notes=tuple(notes),
    )


def logarithm(scan: CTScan) -> LineIntegrals:
    """Line integrals with their signal, blank and background.

    Raises
    ------
    InputError
        If the projections do not fit the geometry, or are not finite.
    """
    projections = torch.as_tensor(scan.projections[:]).to(torch.float32)
    try:
        scan.geometry.check(projections)
    except ValueError as error:
        raise InputError(str(error)) from error
    if not bool(projections.isfinite().all()):
        raise InputError("projections: expected finite values, got NaN or infinity; repair or mask them out")
    if scan.is_counts:
        if scan.flats is None:
            raise InputError("projections: expected flats with counts, got none; give flats, or line integrals")
        return line_integrals(projections, scan.flats, scan.darks)
    blank = torch.ones_like(projections[:, 0])
    none = torch.zeros_like(projections, dtype=torch.bool)
    return LineIntegrals(projections, torch.exp(-projections), blank, torch.zeros_like(blank), none)


# Below this part of the largest line integral a ray is taken to have missed the object.
_AIR = 0.05


def mean_attenuation(line_integrals: Tensor, geometry: Geometry) -> float:
    """Of the uniform ellipse with the mass and the moments of the object, in 1/mm: 1 in the scale of prepared images.

    The variance of a view's profile is that of the object across it, c0 + c1 cos 2 angle + c2 sin 2 angle, so that any
    few angles tell it (Ludwig's and Helgason's conditions), exactly for parallel rays: 30 views or a range of 30
    degrees give what all give within 1.2 % on measured discs. With the covariance C the area is 4 pi sqrt(det C).

    Parameters
    ----------
    line_integrals : (slice, view, bin).

    Raises
    ------
    InputError
        If there is no object.

    References
    ----------
    Natterer, The Mathematics of Computerized Tomography, Wiley (1986), section II.4.
    """
    points, directions = (part.to(line_integrals.device) for part in geometry.rays())
    y, x = (directions / directions.norm(dim=-1, keepdim=True)).unbind(-1)
    s = points[..., 1] * y - points[..., 0] * x  # signed distance of a ray from the origin, mm
    spacing = torch.gradient(s, dim=1)[0].abs()
    profiles = line_integrals.double().mean(0)
    profiles = profiles * (profiles > _AIR * profiles.max()) * spacing
    mass = profiles.sum(1)
    if not bool((mass > 0).all()):
        raise InputError(
            f"projections: expected an object in every view, got line integrals of at most {float(profiles.max()):g} "
            f"in view {int(mass.argmin())}; are they counts?"
        )
    middle = (profiles * s).sum(1) / mass
    variance = (profiles * (s - middle[:, None]).square()).sum(1) / mass
    twice = 2 * geometry.view_angles().to(s.device)
    model = torch.stack((torch.ones_like(twice), twice.cos(), twice.sin()), 1)
    isotropic = 0.01 * len(twice) * torch.diag(model.new_tensor([0.0, 1.0, 1.0]))  # where the angles are too few
    c0, c1, c2 = torch.linalg.solve(model.mT @ model + isotropic, model.mT @ variance).tolist()
    area = 4 * math.pi * math.sqrt(max(c0**2 - c1**2 - c2**2, 0.01 * c0**2))
    return float(mass.mean()) / area


def _truncation(line_integrals: Tensor) -> str:
    """A warning if the object goes on beyond the detector, or nothing."""
    bins = line_integrals.shape[-1]
    cut = truncated_views(line_integrals, bins=max(1, min(8, bins // 8)), threshold=2 * _AIR).any(0)
    if not bool(cut.any()):
        return ""
    return (
        f"the detector ends before the object does in {int(cut.sum())} of {len(cut)} views: the image is wrong near "
        "its rim, and its values are shifted; use a wider detector"
    )
