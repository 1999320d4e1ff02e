"""What a mask says of itself: its acceleration, its readout, its calibration region."""

import pytest
import torch
from test_masks import centre_lines

from operators.masks import MASKS, full, gaussian2d, poisson, random
from operators.sampling import acceleration, calibration_region, readout_axes


def test_acceleration_counts_samples():
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[:, 2] = True
    assert acceleration(mask) == 6
    with pytest.raises(ValueError, match="at least one sample"):
        acceleration(torch.zeros(4, 6, dtype=torch.bool))


def test_readout_axes():
    assert readout_axes(random((8, 16), 2)) == (-2,)
    assert readout_axes(random((8, 16), 2, axis=0)) == (-1,)
    assert readout_axes(gaussian2d((8, 16), 2)) == ()
    assert readout_axes(full((8, 16))) == (-2, -1)


def test_calibration_region():
    assert calibration_region(full((5, 6, 7))) == (slice(0, 5), slice(0, 6), slice(0, 7))
    mask = torch.zeros(20, 21, dtype=torch.bool)
    assert calibration_region(mask) == (slice(10, 10), slice(10, 10))  # the origin is not sampled: empty
    mask[10, 10] = True
    assert calibration_region(mask) == (slice(10, 11), slice(10, 11))
    mask[6:14, 7:13] = True
    assert calibration_region(mask) == (slice(6, 14), slice(7, 13))
    mask[:, 10] = True  # a long thin spoke through the block is not taken for it
    assert calibration_region(mask) == (slice(6, 14), slice(7, 13))
    mask[6, 7] = False
    region = calibration_region(mask)
    assert mask[region].all()
    assert mask[region].numel() == 42  # 7 x 6: one row less
    # an even width on an odd grid may lie on either side of the origin
    assert calibration_region(MASKS["fastmri-equispaced"]((1, 61), 8, calibration=6, offset=0))[1] == slice(28, 34)


def test_calibration_region_of_limited_sides():
    mask = poisson((640, 368), 8)  # dense in an ellipse about the block: 74 x 16 samples, more than 24 x 24
    assert calibration_region(mask, longest=24) == (centre_lines(640, 24), centre_lines(368, 24))
    assert calibration_region(random((640, 368), 4), longest=24) == (centre_lines(640, 24), centre_lines(368, 24))
    assert calibration_region(full((5, 6)), longest=24) == (slice(0, 5), slice(0, 6))


def test_calibration_region_equals_exhaustive_search():
    for seed in range(20):
        mask = torch.rand(9, 8, generator=torch.Generator().manual_seed(seed)) < 0.85
        mask[4, 4] = True
        volumes = [
            (b - a) * (d - c)
            for a in range(5)
            for b in range(5, 10)
            for c in range(5)
            for d in range(5, 9)
            if mask[a:b, c:d].all() and abs((4 - a) - (b - 5)) <= 1 and abs((4 - c) - (d - 5)) <= 1
        ]
        region = calibration_region(mask)
        assert mask[region].all()
        assert mask[region].numel() == max(volumes)
