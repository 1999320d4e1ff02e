import random

import numpy as np
import pytest
import torch

from recon.noise import Noise


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
def test_unit_variance_per_real_component(dtype):
    x = torch.zeros(4, 200, 250, dtype=dtype)
    noise = Noise(0, range(4)).randn_like(x)
    assert noise.shape == x.shape
    assert noise.dtype == dtype
    components = torch.view_as_real(noise) if dtype.is_complex else noise.unsqueeze(-1)
    variance = components.flatten(0, -2).var(0)
    # 2e5 draws per component: standard error sqrt(2 / 2e5) = 0.003, so five of them.
    assert torch.allclose(variance, torch.ones_like(variance), atol=0.016)
    if dtype.is_complex:
        correlation = (components[..., 0] * components[..., 1]).mean()
        assert abs(correlation) < 0.012  # five times 1 / sqrt(2e5)


def test_sample_does_not_depend_on_its_batch():
    x = torch.zeros(3, 5, 7, dtype=torch.complex64)
    together = Noise(3, [4, 7, 9])
    alone = Noise(3, [7])
    for _ in range(3):
        # The same numbers, not merely close ones.
        assert torch.equal(together.randn_like(x)[1], alone.randn_like(x[:1])[0])


def test_draws_samples_and_seeds_differ():
    x = torch.zeros(2, 1000, dtype=torch.float64)
    rng = Noise(0, [0, 1])
    first, second = rng.randn_like(x), rng.randn_like(x)
    streams = torch.cat([first, second, Noise(1, [0, 1]).randn_like(x), Noise((0, 0), [0, 1]).randn_like(x)])
    correlation = torch.corrcoef(streams) - torch.eye(len(streams), dtype=torch.float64)
    assert correlation.abs().max() < 5 / 1000**0.5  # independent streams: standard error 1 / sqrt(1000)


def test_resumes_where_it_stood():
    x = torch.zeros(2, 6)
    rng = Noise(5, [0, 1])
    rng.randn_like(x)
    resumed = Noise(5, [0, 1], draws=rng.draws)
    assert torch.equal(rng.randn_like(x), resumed.randn_like(x))


def test_global_random_state_is_left_alone():
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    rng = Noise(0, [0, 1])
    first = rng.randn_like(torch.zeros(2, 6))
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    assert torch.equal(Noise(0, [0, 1]).randn_like(torch.zeros(2, 6)), first)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_same_noise_on_the_gpu():
    x = torch.zeros(2, 6, dtype=torch.complex64)
    on_gpu = Noise(0, [0, 1]).randn_like(x.cuda())
    assert on_gpu.is_cuda
    assert torch.equal(on_gpu.cpu(), Noise(0, [0, 1]).randn_like(x))


@pytest.mark.parametrize(("seed", "ids", "draws"), [(-1, [0], 0), (0, [], 0), (0, [-2], 0), (0, [0], -1)])
def test_refuses_what_names_no_stream(seed, ids, draws):
    with pytest.raises(ValueError, match="none negative"):
        Noise(seed, ids, draws=draws)


def test_refuses_a_tensor_without_the_samples_first():
    with pytest.raises(ValueError, match=r"expected shape \(2 samples, ...\), got \(3, 2\)"):
        Noise(0, [0, 1]).randn_like(torch.zeros(3, 2))
