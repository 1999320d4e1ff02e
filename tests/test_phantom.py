"""The analytic head: what it promises as a scan."""

import math

import pytest
import torch
from torch import Tensor

from operators.fourier import ifftc
from recon.phantom import dipoles, head, rasterise


def image(kspace: Tensor) -> Tensor:
    """Root sum of squares."""
    return torch.linalg.vector_norm(ifftc(kspace[0], (-2, -1)), dim=0)


def grid(shape: tuple[int, int]) -> list[Tensor]:
    return list(torch.meshgrid(*(2 * (torch.arange(n) - n // 2) / n for n in shape), indexing="ij"))


@pytest.mark.parametrize(("shape", "coils"), [((48, 64), 3), ((33, 40), 1)])
def test_it_is_a_fully_sampled_scan(shape: tuple[int, int], coils: int) -> None:
    scan = head(shape, coils=coils)
    assert scan.kspace.shape == (1, coils, *shape)
    assert scan.kspace.dtype == torch.complex64
    assert scan.shape == shape
    assert scan.coils == coils
    assert scan.fully_sampled
    assert scan.mask.all()
    assert len(scan) == 1


def test_the_seed_makes_the_noise_and_nothing_else() -> None:
    state = torch.get_rng_state()
    first, again, other = (head((48, 48), coils=2, seed=seed).kspace for seed in (0, 0, 1))
    silent = head((48, 48), coils=2, noise=0, seed=1).kspace
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    assert torch.equal(first, again)
    noise = torch.view_as_real(first - silent), torch.view_as_real(other - silent)
    for part in noise:  # 9216 real numbers: 6 standard errors of 1 / sqrt(2 * 9216)
        assert part.std() == pytest.approx(0.01, rel=0.045)
    assert abs(float((noise[0] * noise[1]).mean())) < 6 * 0.01**2 / math.sqrt(noise[0].numel())


def test_its_image_is_the_head_as_the_coils_see_it() -> None:
    shape = (64, 64)
    y, x = grid(shape)
    sensitivity = torch.linalg.vector_norm(dipoles(y, x, 4), dim=0)
    expected = rasterise(y, x) * sensitivity
    shown = image(head(shape, coils=4, noise=0).kspace)
    # Pixels average over borders that the expected image samples at their centres, and edges ring: 0.21. Were it 0,
    # the scan would be made by the model that is inverted afterwards.
    error = (shown - expected).norm()
    assert 0.1 * expected.norm() < error < 0.25 * expected.norm()
    for axis in (0, 1):  # and it lies where it should
        assert (shown.roll(1, axis) - expected).norm() > 1.3 * error
        assert (shown.roll(-1, axis) - expected).norm() > 1.3 * error


def test_values_do_not_depend_on_the_size() -> None:
    small, large = (image(head((n, n), coils=4, noise=0).kspace) for n in (48, 96))
    assert float(small.mean()) == pytest.approx(float(large.mean()), rel=0.05)  # ringing of the magnitude adds 2 %


def test_air_surrounds_the_head() -> None:
    """Noise is estimated there."""
    shown = image(head((96, 96), coils=4, noise=0).kspace)
    border = torch.cat((shown[:3].flatten(), shown[-3:].flatten(), shown[:, :9].flatten(), shown[:, -9:].flatten()))
    assert border.max() < 0.05 * shown.max()  # side lobes of the edges


def test_coils_differ_and_add_up_to_1_at_the_centre() -> None:
    y, x = grid((32, 32))
    fields = dipoles(y, x, 6)
    assert torch.linalg.vector_norm(fields[:, 16, 16]) == pytest.approx(1, abs=1e-6)
    vectors = fields.flatten(1) / fields.flatten(1).norm(dim=1, keepdim=True)
    overlap = (vectors @ vectors.mH).abs() - torch.eye(6)
    assert overlap.max() < 0.98
