"""BART and SigPy as methods: they reconstruct, in the right units, and say so where they cannot."""

import shutil
from pathlib import Path

import pytest
import torch

from recon.errors import InputError
from recon.methods.peers import check_installed
from recon.mri import MRIScan
from recon.phantom import head
from recon.pipeline import reconstruct


@pytest.fixture(scope="module")
def scan() -> MRIScan:
    return head((48, 48), coils=4)


def psnr(scan: MRIScan, method: str, **options: float) -> float:
    return reconstruct(scan, method=method, mask="gaussian2d", acceleration=3.0, options=options).metrics["psnr"]


@pytest.mark.parametrize("method", ["bart-l1-wavelet", "bart-tv", "sigpy-l1-wavelet", "sigpy-tv"])
def test_a_peer_beats_the_zero_filled_image_in_the_units_of_the_data(scan: MRIScan, method: str) -> None:
    """PSNR without a fitted scale factor: an image in other units would fail."""
    try:
        check_installed(method)
    except InputError:
        pytest.skip("not installed")
    assert psnr(scan, method, iterations=20) > psnr(scan, "zero-filled") + 1


@pytest.mark.skipif(shutil.which("bart") is None, reason="needs BART")
def test_what_bart_says_is_passed_on(scan: MRIScan) -> None:
    with pytest.raises(InputError, match=r"bart ecalib .* failed: "):
        reconstruct(scan, method="bart-l1-wavelet", mask="random")  # 4 lines in the centre: its kernel has 6


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without BART and SigPy."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("method", ["bart-tv", "sigpy-tv"])
def test_a_tool_that_is_not_there_is_named(scan: MRIScan, method: str) -> None:
    with pytest.raises(InputError, match=r"expected the (program bart|package sigpy), found none"):
        reconstruct(scan, method=method, mask="random")
    check_installed("tv")


def test_volumes_are_refused() -> None:
    kspace = torch.randn(1, 2, 8, 16, 16, dtype=torch.complex64)
    volume = MRIScan(kspace, torch.ones(8, 16, 16, dtype=torch.bool), "all", readout_axis=-3, fully_sampled=True)
    with pytest.raises(InputError, match="take part for slices, got a volume"):
        reconstruct(volume, method="sigpy-tv", mask="gaussian2d", acceleration=2.0)
