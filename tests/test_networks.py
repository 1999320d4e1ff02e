"""The U-Net: shapes, batches, the complex split, derivatives."""

import pytest
import torch
from torch import nn

from priors.networks import UNet


def small(**changes) -> UNet:
    torch.manual_seed(0)
    network = UNet(**{"widths": (8, 12, 16), "blocks": (1, 1, 1), "features": 8} | changes)
    for parameter in network.parameters():  # at its start the network is zero, which would hide mistakes
        nn.init.normal_(parameter, std=0.1)
    return network


def image(*shape: int, dtype: torch.dtype = torch.complex64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(32, 32), (23, 18), (8, 41), (3, 5), (1, 1)])
@pytest.mark.parametrize("is_complex", [True, False])
def test_any_size(size: tuple[int, int], is_complex: bool) -> None:
    x = image(2, *size, dtype=torch.complex64 if is_complex else torch.float32)
    out = small(is_complex=is_complex)(x, torch.tensor(0.1))
    assert out.shape == x.shape
    assert out.dtype == x.dtype


def test_leading_axes_are_batch_with_a_label_each() -> None:
    network, x = small().double(), image(2, 3, 16, 20, dtype=torch.complex128)
    label = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)
    out = network(x, label)
    for i in range(2):
        for j in range(3):  # convolutions of other batch sizes sum in another order: rounding of float64
            torch.testing.assert_close(out[i, j], network(x[i, j], label[i, j]), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(out, network(x, label + 0.5))


def test_complex_images_are_two_real_channels() -> None:
    """What the network does to (Re, Im) as channels is what it does to the complex image."""
    network, x = small(), image(1, 16, 16)
    channels = network.real(torch.stack([x.real, x.imag], dim=1), torch.zeros(1))
    out = network(x, torch.zeros(1))
    torch.testing.assert_close(torch.stack([out.real, out.imag], dim=1), channels)


def test_of_real_images_keeps_the_real_channel() -> None:
    """Its response is the real part's, where the complex network is given no imaginary part."""
    network, x = small(), image(2, 17, 16, dtype=torch.float32)
    real = network.of_real_images()
    assert not real.is_complex
    expected = network(x.to(torch.complex64), torch.zeros(2)).real
    torch.testing.assert_close(real(x, torch.zeros(2)), expected, rtol=1e-4, atol=1e-4)  # sums of other lengths
    with pytest.raises(ValueError, match="got one of real images"):
        real.of_real_images()


def test_gradients() -> None:
    network, x = small().double(), image(1, 9, 10, dtype=torch.complex128).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: network(v, torch.zeros(1, dtype=torch.float64)), x, fast_mode=True)


def test_starts_at_zero_and_within_budget() -> None:
    """A new network returns zero, so that EDM starts at c_skip x; 5 M parameters are 10 MB in half precision."""
    network = UNet()
    assert network(image(1, 16, 16), torch.zeros(1)).abs().max() == 0
    assert sum(p.numel() for p in network.parameters()) <= 5e6


def test_levels_must_agree() -> None:
    with pytest.raises(ValueError, match="same levels"):
        UNet(widths=(8, 16), blocks=(1, 1, 1))
