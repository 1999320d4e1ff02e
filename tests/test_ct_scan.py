"""A scan of CT and its preparation: noise, scale, axis, rings, views, likelihood."""

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ct_scans import ELLIPSES, FAN, GRID, PARALLEL, PHOTONS, angles, fan_scan, noisy, off_centre, sinogram

from operators.ct import XRay
from operators.geometry import FanBeam, Geometry, Grid, ParallelBeam
from recon.ct import CTScan, PreparedCT, likelihood, logarithm, mean_attenuation, noise_of, prepare
from recon.ct_simulation import simulate_series
from recon.ct_undersampling import Part, choose_views, undersample
from recon.errors import InputError
from recon.pipeline import reconstruct
from recon.rotation_centre import centred


@pytest.mark.parametrize("geometry", [PARALLEL, FAN])
def test_likelihood_is_whitened(geometry: Geometry) -> None:
    y = sinogram(geometry)[None].repeat(2, 1, 1)
    weights = torch.rand(y.shape, generator=torch.Generator().manual_seed(0))
    found = likelihood(PreparedCT(y, weights, geometry, GRID, scale=0.02))
    assert found.A.domain.shape == (2, 48, 40)
    assert found.A.domain.ndim == 2
    x = torch.rand(2, 48, 40, generator=torch.Generator().manual_seed(1))
    expected = 0.5 * (weights * (0.02 * XRay(geometry, GRID)(x) - y) ** 2).sum()
    torch.testing.assert_close(found.nll(x), expected, rtol=1e-4, atol=0.0)  # float32 sums
    v = torch.rand(found.A.codomain.shape)
    torch.testing.assert_close(
        found.A.codomain.inner(found.A(x), v), found.A.domain.inner(x, found.A.H(v)), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(found.A.gram(x), found.A.H(found.A(x)), rtol=1e-4, atol=1e-6)  # float32


def test_views_of_a_geometry() -> None:
    chosen = torch.tensor([3, 10, 50])
    torch.testing.assert_close(FAN.select(chosen).angles, FAN.angles[chosen])
    wrapped = torch.remainder(FAN.view_angles() - FAN.angles + 1, 2 * math.pi) - 1
    assert float(wrapped.abs().max()) < 1e-12


def test_slices_are_read_lazily() -> None:
    scan = CTScan(torch.rand(5, 60, 56), PARALLEL, GRID, flats=torch.ones(3, 5, 56))
    part = scan[1:3]
    assert len(part) == 2
    assert part.flats is not None
    assert part.flats.shape == (3, 2, 56)
    assert part.shape == (48, 40)
    assert part.voxel_size == (1.0, 1.0, 1.0)


# The noise and the scale


@pytest.mark.parametrize("geometry", [PARALLEL, FAN])
def test_photons_are_found_in_line_integrals(geometry: Geometry) -> None:
    found = noise_of(CTScan(noisy(geometry), geometry, GRID))
    # Signal is left in differences between coarse neighbours: fewer photons by up to a third, here 0.7 to 1.0.
    assert 0.6 * PHOTONS < found.photons < 1.1 * PHOTONS
    assert "neighbouring" in found.source


def test_weights_are_the_inverse_variance() -> None:
    """Over many realisations of one sinogram; 40 of them know a variance to 1 / sqrt(20), their mean much better."""
    draws = torch.cat([noisy(PARALLEL, seed=seed) for seed in range(40)])
    prepared = prepare(CTScan(draws[:1], PARALLEL, GRID, photons=PHOTONS))
    assert float((draws.var(0) * prepared.weights[0]).mean()) == pytest.approx(1, abs=0.05)
    assert prepared.counts is not None
    assert prepared.blank is not None
    expected = PHOTONS * torch.exp(-draws[0])
    torch.testing.assert_close(prepared.counts[0], expected)
    assert bool((prepared.blank == PHOTONS).all())


@pytest.mark.filterwarnings("ignore:.*of the counts were below")
def test_photons_are_found_where_many_counts_are_too_low() -> None:
    """A fifth is; those say nothing of the noise. A detector that is dark all over says nothing at all."""
    expected = 60 * torch.exp(-8 * sinogram(PARALLEL))
    counts = torch.poisson(expected, generator=torch.Generator().manual_seed(0))[None]
    flats = torch.full((1, 1, PARALLEL.bins), 60.0)
    scan = CTScan(counts, PARALLEL, GRID, is_counts=True, flats=flats)
    assert 0.15 < float(logarithm(scan).replaced.float().mean()) < 0.3
    assert noise_of(scan).photons == pytest.approx(1, rel=0.3)
    with pytest.raises(InputError, match="got none in slice 0"):
        noise_of(replace(scan, projections=torch.zeros_like(counts)))


@pytest.mark.filterwarnings("ignore:.*of the counts were below")
def test_transmission_is_given_the_counts_as_measured() -> None:
    """Zeros as zeros, though no logarithm takes them."""
    counts = torch.poisson(20 * torch.exp(-6 * sinogram(PARALLEL)), generator=torch.Generator().manual_seed(0))[None]
    scan = CTScan(counts, PARALLEL, GRID, is_counts=True, flats=torch.full((1, 1, PARALLEL.bins), 20.0), gain=1.0)
    prepared = prepare(scan)
    assert prepared.counts is not None
    assert torch.equal(prepared.counts, counts)
    assert int((counts == 0).sum()) > 10
    shifted = prepare(replace(scan, electronic=3.0))
    assert shifted.counts is not None
    assert shifted.background is not None
    assert torch.equal(shifted.counts, counts + 9)
    assert bool((shifted.background == 9).all())


def test_counts_become_line_integrals() -> None:
    """Dark current, a dead bin and a bin that saw nothing."""
    p = sinogram(PARALLEL)
    counts = 1000 * torch.exp(-p) + 20
    flats, darks = torch.full((2, 1, 56), 1020.0), torch.full((2, 1, 56), 20.0)
    flats[:, :, 7] = 20.0
    counts[3, 20] = 5.0
    prepared = prepare(CTScan(counts[None], PARALLEL, GRID, is_counts=True, flats=flats, darks=darks, gain=2.0))
    assert not prepared.weights[..., 7].any()
    assert float(prepared.weights[0, 3, 20]) < 1
    seen = torch.ones_like(p, dtype=torch.bool)
    seen[:, 7], seen[3, 20] = False, False
    torch.testing.assert_close(prepared.line_integrals[0][seen], p[seen], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(prepared.weights[0][seen], (500 * torch.exp(-p))[seen], rtol=1e-4, atol=0.0)
    assert any("dead" in note for note in prepared.notes)


def test_the_scale_does_not_depend_on_the_views() -> None:
    scale = mean_attenuation(noisy(FAN), FAN)
    # The big ellipse alone has 0.02; one inside it is denser, one less dense, and the fan is not parallel: 2 % here.
    inside = sum(value * b * a for _, _, b, a, value in ELLIPSES) / (17.0 * 14.0)
    assert scale == pytest.approx(inside, rel=0.06)
    for asked in ({"views": 15}, {"angular_range": (0.0, 120.0)}, {"angular_range": (40.0, 100.0)}):
        chosen = choose_views(FAN, **asked)
        assert mean_attenuation(noisy(FAN)[:, chosen], FAN.select(chosen)) == pytest.approx(scale, rel=0.05)
    assert prepare(fan_scan(water=0.019)).scale == 0.019


# The rotation axis and rings


def test_the_rotation_axis_is_found_or_told(tmp_path: Path) -> None:
    scan = off_centre(42.3)
    wrong = reconstruct(scan, method="fbp")
    told = reconstruct(scan, method="fbp", rotation_centre=42.3, out=tmp_path)
    found = reconstruct(scan, method="fbp", rotation_centre="find")
    (note,) = (note for note in found.run["notes"] if "rotation axis" in note)
    assert float(note.split("bin ")[1].split(",")[0]) == pytest.approx(42.3, abs=0.1)
    assert "as the views of slice 0 tell" in note
    assert told.mean.shape == (1, 74, 74)  # the circle about bin 42.3 that bins 0 to 79 see: 36.7 mm to one side
    # What lies beside the object is empty about the right axis, and streaks about another: a fifth is left.
    beside = {name: float(r.mean[0, :6].abs().mean()) for name, r in {"w": wrong, "t": told, "f": found}.items()}
    assert beside["t"] < 0.3 * beside["w"]
    assert beside["f"] < 0.3 * beside["w"]
    assert json.loads((tmp_path / "run.json").read_text())["arguments"]["rotation_centre"] == 42.3


def test_an_image_of_its_own_size_does_not_follow_the_axis() -> None:
    scan = off_centre(42.3)
    moved = centred(CTScan(scan.projections, scan.geometry, GRID), 42.3)
    assert moved.grid == GRID
    assert centred(scan, 42.3).grid == Grid((74, 74), 1.0)


@pytest.mark.parametrize(
    ("scan", "arguments", "message"),
    [
        (fan_scan(), {"rotation_centre": "find"}, "expected a parallel beam, .* got FanBeam; give rotation_offset"),
        (off_centre(40.0), {"rotation_centre": "middle"}, "expected a bin, such as 245.1, or find, got 'middle'"),
        (off_centre(40.0), {"rotation_centre": 90.0}, r"expected a bin from 0 to 79, got 90 \(as given\)"),
        (off_centre(40.0), {"rotation_centre": math.nan}, "expected a bin from 0 to 79, got nan"),
        (off_centre(40.0), {"rings": 10}, "rings: expected an odd number of bins, at least 3, got 10"),
        (off_centre(40.0), {"rings": 101}, "at most the 80 bins of the detector, got 101"),
    ],
)
def test_axes_and_rings_that_cannot_be(scan: CTScan, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        reconstruct(scan, method="fbp", **arguments)


def test_half_a_turn_is_needed_to_find_the_axis() -> None:
    scan = off_centre(40.0)
    part = undersample(scan, Part(torch.arange(40)), stream=(0,))
    with pytest.raises(InputError, match="expected views half a turn apart"):
        centred(part)


def test_rings_are_taken_out() -> None:
    """Bins that count too much or too little, in the image (0.4 is left) and for statistics that keep the counts."""
    scan = off_centre(39.5)
    gain = torch.ones(80)
    gain[[30, 37, 44, 52]] = torch.tensor([1.16, 0.88, 1.13, 0.86])
    bad = replace(scan, projections=torch.as_tensor(scan.projections) - gain.log())
    images = {
        name: reconstruct(given, method="fbp", rings=rings).mean
        for name, given, rings in (("good", scan, None), ("bad", bad, None), ("mended", bad, 5))
    }
    error = {name: float((images[name] - images["good"]).norm()) for name in ("bad", "mended")}
    assert error["mended"] < 0.5 * error["bad"]
    plain, mended = prepare(bad), prepare(bad, rings=5)
    assert torch.equal(plain.counts, mended.counts)
    torch.testing.assert_close(mended.blank * torch.exp(-mended.line_integrals), mended.counts, rtol=1e-4, atol=0)
    assert any("Stripes of up to 2 bins" in note for note in mended.notes)


def test_rings_of_the_reference_too() -> None:
    bad = off_centre(39.5)
    stripes = torch.zeros(80)
    stripes[45] = 0.1
    bad = replace(bad, projections=torch.as_tensor(bad.projections) + stripes)
    result = reconstruct(bad, method="fbp", views=45, rings=5)
    full = reconstruct(bad, method="fbp", rings=5)
    assert result.reference is not None
    torch.testing.assert_close(result.reference, full.mean)


# Less of a scan


def test_views_and_ranges() -> None:
    assert choose_views(FAN, views=30).tolist() == list(range(0, 90, 3))
    assert choose_views(FAN, angular_range=(0.0, 120.0)).tolist() == list(range(31))  # 4 degrees from view to view
    assert choose_views(FAN, angular_range=(0.0, 120.0), views=4).tolist() == [0, 7, 15, 23]
    backwards = FanBeam(3.0 - FAN.angles, 72, 1.5, 100.0, 150.0)
    assert choose_views(backwards, angular_range=(0.0, 120.0)).tolist() == list(range(31))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"views": 61}, "expected 1 to 60, as the scan has, got 61"),
        ({"views": 21, "angular_range": (0.0, 57.0)}, "expected 1 to 20, as the scan has in that range, got 21"),
        ({"angular_range": (0.0, 200.0)}, "within 0 to 177, .* got 0 to 200"),
        ({"angular_range": (-20.0, 60.0)}, "got -20 to 60"),
        ({"angular_range": (4.0, 5.0)}, "a view in it, got 4 to 5 degrees, and views are about 3 apart"),
    ],
)
def test_what_the_scan_does_not_have_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_views(PARALLEL, **asked)


def test_a_lower_dose_has_its_noise() -> None:
    """Line integrals of a known number of photons, thinned to a quarter: the variance is that of a quarter."""
    scan = CTScan(noisy(PARALLEL), PARALLEL, GRID, photons=PHOTONS)
    part = Part(torch.arange(60), 0.25)
    low = undersample(scan, part, stream=(0, 0))
    prepared = prepare(low)
    error = prepared.line_integrals[0] - sinogram(PARALLEL)
    assert float((error.square() * prepared.weights[0]).mean()) == pytest.approx(1, abs=0.1)  # 3360 rays: 0.024 each
    again = undersample(scan, part, stream=(0, 0))
    assert torch.equal(torch.as_tensor(low.projections[:]), torch.as_tensor(again.projections[:]))
    other = undersample(scan, part, stream=(0, 1))
    assert not torch.equal(torch.as_tensor(low.projections[:]), torch.as_tensor(other.projections[:]))


# Bad input


def test_sinogram_and_geometry_that_disagree() -> None:
    with pytest.raises(
        InputError, match=r"axis -2 has 90 views, the geometry 60.*axis -1 has 72 bins, the geometry 56"
    ):
        prepare(CTScan(noisy(FAN), PARALLEL, GRID))
    with pytest.raises(InputError, match="transpose it"):
        prepare(CTScan(noisy(FAN).mT, FAN, GRID))


def test_degrees_taken_for_radians_are_a_warning() -> None:
    with pytest.warns(UserWarning, match="more than two turns in radians; convert degrees"):
        ParallelBeam(torch.arange(0.0, 180.0, 3.0), bins=56)


def test_a_short_detector_is_a_warning() -> None:
    short = ParallelBeam(angles(60), bins=24)
    with pytest.warns(UserWarning, match="the detector ends before the object does in 60 of 60 views"):
        prepared = prepare(CTScan(noisy(short), short, GRID))
    assert any(note.startswith("WARNING") for note in prepared.notes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare(fan_scan())


def test_projections_without_noise_or_object_are_refused() -> None:
    with pytest.raises(InputError, match="expected noise, whose level is needed"):
        noise_of(CTScan(torch.ones(1, 60, 56), PARALLEL, GRID))
    with pytest.raises(InputError, match="expected an object in every view"):
        prepare(CTScan(torch.zeros(1, 60, 56), PARALLEL, GRID, photons=1e4))
    with pytest.raises(InputError, match="expected flats with counts"):
        prepare(CTScan(torch.ones(1, 60, 56), PARALLEL, GRID, is_counts=True))
    with pytest.raises(InputError, match="finite"):
        prepare(CTScan(torch.full((1, 60, 56), torch.nan), PARALLEL, GRID, photons=1e4))


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        (Grid((64, 64), 40.0), "geometry: in view 0 the source is inside the image grid"),
        (Grid((64, 64), 0.1, (5000.0, 5000.0)), "geometry: no ray meets the image grid"),
    ],
)
def test_rays_and_grid_that_do_not_fit_are_told(grid: Grid, said: str) -> None:
    scan = replace(fan_scan(), grid=grid)
    with pytest.raises(InputError, match=said):
        reconstruct(scan, method="fbp")


@pytest.mark.parametrize(("index", "views", "found"), [(17, None, 1.68e5), (17, 30, 1.06e5), (6, 30, 5.4e4)], ids=str)
def test_photons_of_a_head_are_found_as_the_docstring_says(
    data_dir: Path, index: int, views: int | None, found: float
) -> None:
    """2e5 of them: nearly all from views near to each other, fewer where the object's edges are taken for noise."""
    path = data_dir / "ct" / "dcm_qa_ct_GE_head_28.tar.xz"
    scan = simulate_series(
        path, shape=(256, 256), slices=(index, index + 1), views=240, photons=2e5, electronic=0.0, seed=17
    )
    part = Part(choose_views(scan.geometry, views=views))
    given = undersample(replace(scan, photons=None), part, stream=(0,))
    assert noise_of(given).photons == pytest.approx(found, rel=0.1)
