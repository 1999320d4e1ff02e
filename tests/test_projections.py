"""From counts to line integrals: zero counts, dead bins, air, the rotation centre, rings, HU."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from operators.ct import Grid, ParallelBeam, XRay
from recon.errors import InputError
from recon.projections import (
    air_offset,
    centre_from_consistency,
    centre_from_opposite_views,
    from_hu,
    interpolate_bins,
    line_integrals,
    remove_rings,
    to_hu,
    truncated_views,
)


def ellipse(angles: torch.Tensor, bins: int, *, axis: float, scale: int = 1) -> torch.Tensor:
    """(view, bin); ellipses off the centre, seen about an axis that projects onto a bin; sampled within each bin."""
    s = torch.arange(bins)[:, None] - axis + (torch.arange(8) - 3.5) / 8
    total = torch.zeros(len(angles), bins, dtype=torch.float64)
    for mu, y0, x0, a, b, turn in ((0.02, 2, -3, 20, 14, 0.3), (0.05, 6, 4, 5, 3, 1.0), (-0.02, -5, -8, 4, 4, 0.0)):
        y0, x0, a, b, mu = (*(scale * length for length in (y0, x0, a, b)), mu / scale)
        across = s - (y0 * torch.sin(angles) + x0 * torch.cos(angles))[:, None, None]
        square = ((a * torch.cos(angles - turn)) ** 2 + (b * torch.sin(angles - turn)) ** 2)[:, None, None]
        total += (2 * mu * a * b * (square - across**2).clamp(min=0).sqrt() / square).mean(-1)
    return total


HALF = torch.arange(90, dtype=torch.float64) * math.pi / 90


# -- Counts -----------------------------------------------------------------------------------------------------------


def test_counts_become_line_integrals() -> None:
    truth = torch.rand(2, 5, 6, dtype=torch.float64)
    blank, dark = 1000 * (1 + torch.rand(2, 6, dtype=torch.float64)), 100 * torch.rand(2, 6, dtype=torch.float64)
    counts = blank[:, None] * torch.exp(-truth) + dark[:, None]
    flats = torch.stack((blank + dark + 7, blank + dark - 7))
    found = line_integrals(counts, flats, torch.stack((dark + 1, dark - 1)))
    assert torch.allclose(found.values, truth, atol=1e-12)
    assert torch.allclose(found.blank, blank)
    assert torch.allclose(found.signal, counts - dark[:, None])
    assert not found.replaced.any()
    assert found.notes == ()


def test_zero_and_negative_counts_are_bounded_and_counted() -> None:
    counts = torch.tensor([[[1000.0, 100.0, 50.0, 100.5, 200.0]]])  # dark 100
    with pytest.warns(UserWarning, match="60 % of the counts were below 1 above the darks"):
        found = line_integrals(counts, torch.full((1, 1, 5), 1100.0), torch.full((1, 1, 5), 100.0))
    assert found.replaced.tolist() == [[[False, True, True, True, False]]]
    assert torch.allclose(found.values[0, 0, 1:4], torch.tensor(math.log(1000)))  # one count of 1000
    assert "3 of 5 counts" in found.notes[0]
    assert "2 of them zero or negative" in found.notes[0]
    assert found.values.isfinite().all()


@pytest.mark.filterwarnings("error")
def test_transmissions_below_1_are_bounded_too() -> None:
    transmissions = torch.ones(1, 8, 3)  # one of 24 is too low: not yet worth a warning
    transmissions[0, 0, :2] = torch.tensor([0.5, 0.0])
    found = line_integrals(transmissions, torch.ones(1, 1, 3))
    assert found.values[0, 0].tolist() == pytest.approx([math.log(2), math.log(1e4), 0])


@pytest.mark.parametrize("count", [0.0, -5.0, 1.0])
def test_counts_that_say_nothing_of_a_slice_are_refused(count: float) -> None:
    counts = torch.full((2, 3, 4), 500.0)
    counts[1] = count
    with pytest.raises(InputError, match="more than 1 above the darks, got none in slice 1"):
        line_integrals(counts, torch.full((1, 2, 4), 1000.0))


def test_dead_bins_are_interpolated_and_counted() -> None:
    counts = torch.exp(-torch.arange(6.0)).expand(1, 3, 6) * 1000
    flats = torch.full((1, 1, 6), 1000.0)
    flats[..., [0, 3]] = 0
    found = line_integrals(counts, flats)
    assert found.values[0, 0].tolist() == pytest.approx([1, 1, 2, 3, 4, 5], rel=1e-5)  # float32
    assert found.replaced[0, 1].tolist() == [True, False, False, True, False, False]
    assert (found.signal[..., [0, 3]] == 0).all()
    assert "2 bins are dead" in found.notes[0]


def test_counts_that_cannot_be_used() -> None:
    ones = torch.ones(1, 3, 4)
    with pytest.raises(InputError, match="flats: expected"):
        line_integrals(ones, torch.ones(1, 1, 5))
    with pytest.raises(InputError, match="darks: expected"):
        line_integrals(ones, torch.ones(1, 1, 4), torch.ones(1, 4))
    with pytest.raises(InputError, match="swapped"):
        line_integrals(ones, torch.ones(1, 1, 4), torch.full((1, 1, 4), 2.0))
    with pytest.raises(InputError, match="finite"):
        line_integrals(ones * math.nan, torch.ones(1, 1, 4))
    with pytest.raises(InputError, match="least"):
        line_integrals(ones, torch.ones(1, 1, 4), least=0)
    with pytest.raises(InputError, match="live bin"):
        interpolate_bins(ones, torch.ones(1, 4, dtype=torch.bool))


# -- Air and truncation -----------------------------------------------------------------------------------------------


def test_air_is_found_beside_the_object() -> None:
    sinogram = ellipse(HALF, 80, axis=40.0)[None] + 0.0155
    noise = 0.01 * np.random.default_rng(0).standard_normal(sinogram.shape)
    # the median of 90 x 16 values of noise 0.01 is known to 0.0003
    assert float(air_offset(sinogram + torch.from_numpy(noise))[0]) == pytest.approx(0.0155, abs=0.001)
    with pytest.raises(InputError, match="bins"):
        air_offset(sinogram, bins=41)


def test_a_detector_that_is_too_short_is_noticed() -> None:
    sinogram = ellipse(HALF, 80, axis=40.0)[None]
    assert not truncated_views(sinogram).any()
    cut = truncated_views(sinogram[..., 26:], bins=2)
    assert cut.shape == (1, 90)
    assert 10 < int(cut.sum()) < 90


# -- Rotation centre --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [36.0, 39.5, 41.3, 44.75])
def test_rotation_centre(axis: float) -> None:
    full = torch.arange(180, dtype=torch.float64) * math.pi / 90
    sinogram = ellipse(full, 80, axis=axis)
    # found on a raster of a twentieth of a bin
    assert centre_from_consistency(sinogram[:90], HALF) == pytest.approx(axis, abs=0.1)
    assert centre_from_consistency(sinogram, full) == pytest.approx(axis, abs=0.1)
    assert centre_from_opposite_views(sinogram, full) == pytest.approx(axis, abs=0.1)
    # one pair, a step of 2 degrees from opposite: 8 bins from the axis that is up to 0.15 of a bin, twice
    assert centre_from_opposite_views(sinogram[:90], HALF) == pytest.approx(axis, abs=0.3)


def test_rotation_centre_through_noise() -> None:
    rng, found = np.random.default_rng(0), []
    for _ in range(5):
        noise = torch.from_numpy(0.05 * rng.standard_normal((90, 80)))  # 5 % of the largest value
        found.append(centre_from_consistency(ellipse(HALF, 80, axis=41.3) + noise, HALF))
    assert max(abs(c - 41.3) for c in found) < 0.4


def test_rotation_centre_needs_half_a_turn() -> None:
    sinogram = ellipse(HALF, 80, axis=40.0)
    with pytest.raises(InputError, match="over 118"):
        centre_from_consistency(sinogram[:60], HALF[:60])
    with pytest.raises(InputError, match="even steps"):
        centre_from_consistency(sinogram, HALF**1.1)
    with pytest.raises(InputError, match="centre_from_consistency"):
        centre_from_opposite_views(sinogram[:60], HALF[:60])
    with pytest.raises(InputError, match="one slice"):
        centre_from_consistency(sinogram[None], HALF)


def test_rotation_centre_of_the_tooth(data_dir: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(data_dir / "ct" / "tomopy_tooth.h5") as file:
        data, flats, darks = (
            torch.from_numpy(file[f"exchange/{name}"][:]) for name in ("data", "data_white", "data_dark")
        )
        angles = torch.deg2rad(torch.from_numpy(file["exchange/theta"][:]))
    sinogram = line_integrals(data.movedim(1, 0), flats, darks).values[0]
    centre = centre_from_consistency(sinogram, angles)
    assert centre == pytest.approx(296, abs=0.25)  # published, to whole bins
    assert centre_from_opposite_views(sinogram, angles) == pytest.approx(centre, abs=0.75)  # one pair, 1 degree off
    # An independent judge: attenuation is not negative, so back-projection is least negative about the right axis.
    filtered = torch.fft.irfft(torch.fft.rfft(sinogram, 2048) * torch.fft.rfftfreq(2048))[:, :640].contiguous()
    negative = [
        float(XRay(ParallelBeam(angles, 640, 1.0, 319.5 - c), Grid((320, 320))).H(filtered).clamp(max=0).square().sum())
        for c in (centre - 1.5, centre, centre + 1.5)
    ]
    assert min(negative) == negative[1]


# -- Rings ------------------------------------------------------------------------------------------------------------


def test_stripes_go_and_the_object_stays() -> None:
    sinogram = ellipse(HALF, 320, axis=160.0, scale=4)
    stripes = torch.zeros(320, dtype=torch.float64)
    stripes[[80, 81, 132, 160, 188, 240]] = torch.tensor([0.05, 0.05, -0.06, 0.04, 0.08, -0.05], dtype=torch.float64)
    # What makes a ring is what stays through the views; measured: a fifth of it is left.
    left = (remove_rings(sinogram + stripes, size=5) - sinogram).mean(0).square().mean().sqrt()
    assert float(left) < 0.25 * float(stripes.square().mean().sqrt())
    # The object itself: 0.12 % of the largest value where there are no stripes.
    assert float((remove_rings(sinogram, size=5) - sinogram).square().mean().sqrt()) < 0.002 * float(sinogram.max())


def test_rings_in_batches_and_bad_sizes() -> None:
    sinogram = torch.rand(2, 10, 16)
    both = remove_rings(sinogram, size=5)
    assert torch.equal(both[1], remove_rings(sinogram[1], size=5))
    for size in (4, 17, -1):
        with pytest.raises(InputError, match="odd"):
            remove_rings(sinogram, size=size)


def test_rings_of_a_neutron_scan(data_dir: Path) -> None:
    pytest.importorskip("PIL")
    from recon.io.tiff_array import read_array

    counts = torch.from_numpy(read_array(data_dir / "ct" / "sarepy_sinogram_360_neutron.tif").astype(np.float32))[None]
    air = counts[..., :8].median().expand(1, 1, counts.shape[-1])
    found = line_integrals(counts, air)
    assert "214 of 230877 counts" in found.notes[0]
    sinogram = found.values[0]
    angles = torch.linspace(0, 2 * math.pi, len(sinogram), dtype=torch.float64)  # the last view is the first again
    centre = centre_from_consistency(sinogram, angles)
    assert centre == pytest.approx(centre_from_opposite_views(sinogram, angles), abs=0.5)

    def stripes(image: torch.Tensor) -> float:
        """What the mean over the views has between next bins, in second differences."""
        return float(image.mean(0).diff(n=2).square().mean().sqrt())

    cleaned = remove_rings(sinogram)
    assert stripes(cleaned) < 0.2 * stripes(sinogram)
    assert float((cleaned - sinogram).abs().median()) < 0.02  # of values up to 3: most of it is left alone


# -- Hounsfield units -------------------------------------------------------------------------------------------------


def test_hu() -> None:
    mu = torch.tensor([0.0, 0.02, 0.04])
    assert to_hu(mu, 0.02).tolist() == pytest.approx([-1000, 0, 1000])
    assert torch.allclose(from_hu(to_hu(mu, 0.02), 0.02), mu)
    for water in (0.2, 20.0, -0.02, 0.0002):
        with pytest.raises(InputError, match="1/mm"):
            to_hu(mu, water)
