"""Coils: whitening, compression, and the size of the readout."""

from __future__ import annotations

import torch
from torch import Tensor

from operators.fourier import fftc, ifftc

from .errors import InputError

# Below this ratio of eigenvalues (after scaling every coil to variance 1) coils are copies of each other.
_DEPENDENT = 1e-5


def noise_factor(covariance: Tensor) -> Tensor:
    """Cholesky factor L of the noise of the coils, covariance = L L^H: coils as measured = L @ white coils.

    Parameters
    ----------
    covariance : (coil, coil) complex Hermitian, for each real component (`recon.noise_level.noise_covariance`).

    Returns
    -------
    Tensor
        (coil, coil) lower triangular.

    Raises
    ------
    InputError
        If it is not Hermitian or not positive definite: silent coils, or some that are linear combinations of others.
    """
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise InputError(f"covariance: expected (coil, coil), got shape {tuple(covariance.shape)}")
    exact = covariance.to(torch.complex128)
    variance = exact.diagonal().real
    if not torch.isfinite(torch.view_as_real(exact)).all() or (variance <= 0).any():
        raise InputError(
            f"covariance: expected finite values and a positive diagonal, got {variance.tolist()}; "
            "leave silent coils out"
        )
    scale = variance.sqrt()
    correlation = exact / torch.outer(scale, scale)
    if (correlation - correlation.mH).abs().max() > 1e-4:
        raise InputError("covariance: expected a Hermitian matrix, got one that differs from its conjugate transpose")
    eigenvalues = torch.linalg.eigvalsh(correlation)
    dependent = int((eigenvalues < _DEPENDENT * eigenvalues[-1]).sum())
    if dependent:
        raise InputError(
            f"covariance: {dependent} of {len(variance)} coils are linear combinations of the others "
            f"(eigenvalues down to {float(eigenvalues[0]):.1e}); leave them out, or use a longer noise scan"
        )
    return torch.linalg.cholesky(exact).to(covariance.dtype)


def whitener(covariance: Tensor) -> Tensor:
    """Matrix W = L^-1 (`noise_factor`) after which noise has standard deviation 1 per real component in every coil.

    W covariance W^H = 1, that is E[n n^H] = 2 for complex noise n. Apply it with `apply_coil_matrix`.

    Parameters
    ----------
    covariance : (coil, coil) complex Hermitian, for each real component.

    Returns
    -------
    Tensor
        (coil, coil) lower triangular.

    Raises
    ------
    InputError
        As `noise_factor`.

    References
    ----------
    Pruessmann et al., Magn Reson Med 46, 638 (2001), appendix: virtual coils of unit, uncorrelated noise.
    """
    factor = noise_factor(covariance).to(torch.complex128)
    identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    return torch.linalg.solve_triangular(factor, identity, upper=False).to(covariance.dtype)


def apply_coil_matrix(matrix: Tensor, data: Tensor, *, coil_axis: int = -3, axis: int | None = None) -> Tensor:
    """Linear combinations of coils.

    Parameters
    ----------
    matrix : (new coil, coil), or (n, new coil, coil): one for each position along `axis`.
    data : (..., coil, y, x), k-space or images or maps; with other axes behind the coils give `coil_axis`.
    coil_axis : axis of the coils (negative).
    axis : axis of the positions (negative), with a matrix for each.

    Returns
    -------
    Tensor
        As data, with new coil in place of coil.

    Raises
    ------
    InputError
        If matrix and data do not fit.
    """
    positions = () if axis is None else (data.shape[axis],)
    if matrix.shape[:-2] != positions or matrix.ndim < 2 or matrix.shape[-1] != data.shape[coil_axis]:
        raise InputError(
            f"expected a matrix ({', '.join(map(str, (*positions, 'new coil', data.shape[coil_axis])))}) for data "
            f"{tuple(data.shape)} with coils on axis {coil_axis}, got {tuple(matrix.shape)}"
        )
    matrix = matrix.to(data.dtype)
    if axis is None:
        return torch.einsum("kc,...c->...k", matrix, data.movedim(coil_axis, -1)).movedim(-1, coil_axis)
    along = data.movedim((coil_axis, axis), (-1, -2))
    return torch.einsum("nkc,...nc->...nk", matrix, along).movedim((-1, -2), (coil_axis, axis))


def virtual_coils(kspace: Tensor, mask: Tensor, *, energy: float = 0.9999, readout_axis: int | None = None) -> int:
    """Number of virtual coils that keep a part of the signal's energy.

    Parameters
    ----------
    kspace : (..., coil, *mask.shape) complex, whitened; zero where not sampled. Leading axes (slices) are pooled.
    mask : (ky, kx) or (kz, ky, kx) bool; True where sampled.
    energy : part of the signal's energy to keep, at least; the noise's (2 per sample and coil) does not count.
    readout_axis : None counts for `svd_compression`, the frequency-encoding axis for `geometric_compression`.

    Raises
    ------
    InputError
        If energy is not in (0, 1), or k-space is zero.
    """
    if not 0 < energy < 1:
        raise InputError(f"energy: expected a part between 0 and 1, got {energy}")
    coil_axis = -mask.ndim - 1
    gram = _gram(kspace, coil_axis) if readout_axis is None else _position_gram(kspace, coil_axis, readout_axis)
    values = torch.linalg.eigvalsh(gram).flip(-1).reshape(-1, len(gram[-1])).sum(0)
    if not values[0] > 0:
        raise InputError("k-space: expected data, got zeros only; check that the file was exported completely")
    samples = kspace.numel() // (kspace.shape[coil_axis] * mask.numel()) * int(mask.sum())
    kept = (values - 2 * samples).clamp(min=0).cumsum(0)
    return 1 + int((kept < energy * kept[-1]).sum())


def svd_compression(kspace: Tensor, coils: int, *, coil_axis: int = -3) -> Tensor:
    """Virtual coils of most energy, the same everywhere.

    Parameters
    ----------
    kspace : (..., coil, ky, kx) complex, whitened; zero where not sampled. Leading axes (slices) are pooled.
    coils : number of virtual coils.
    coil_axis : axis of the coils (negative).

    Returns
    -------
    Tensor
        (virtual coil, coil) with orthonormal rows: white noise stays white. For `apply_coil_matrix`.

    Raises
    ------
    InputError
        If more coils are asked than there are, or fewer than one.

    References
    ----------
    Huang et al., Magn Reson Imaging 26, 133 (2008).
    """
    _check_virtual(coils, kspace.shape[coil_axis])
    vectors = torch.linalg.eigh(_gram(kspace, coil_axis))[1]
    return vectors[:, -coils:].flip(1).mH.to(kspace.dtype)


def geometric_compression(kspace: Tensor, mask: Tensor, coils: int, *, readout_axis: int, window: int = 5) -> Tensor:
    """Virtual coils of most energy for each position along a whole-line readout, aligned from one to the next.

    Coils see less of the object at one position than in all of it: fewer virtual coils hold as much. Each position's
    compression is rotated onto that of its neighbour (polar factor of their product), outwards from the
    position of most energy, so that sensitivities stay smooth.

    Parameters
    ----------
    kspace : (..., coil, *mask.shape) complex, whitened; zero where not sampled. Leading axes (slices) are pooled.
    mask : (ky, kx) or (kz, ky, kx) bool; True where sampled, the same all along the readout.
    coils : number of virtual coils.
    readout_axis : the frequency-encoding axis (negative).
    window : positions taken together for each compression, an odd number.

    Returns
    -------
    Tensor
        (readout, virtual coil, coil), each with orthonormal rows: white noise stays white. For images, maps, and
        k-space after an inverse FFT along the readout: `apply_coil_matrix(..., axis=readout_axis)`.

    Raises
    ------
    InputError
        If more coils are asked than there are, or fewer than one, or if readout lines are not whole.

    References
    ----------
    Zhang et al., Magn Reson Med 69, 571 (2013).
    """
    coil_axis = -mask.ndim - 1
    _check_virtual(coils, kspace.shape[coil_axis])
    if window < 1 or window % 2 == 0:
        raise InputError(f"window: expected an odd number of positions, got {window}")
    if not bool((mask == mask.narrow(readout_axis, 0, 1)).all()):
        raise InputError(
            f"geometric compression needs whole readout lines, got a mask that varies along axis {readout_axis}; "
            "give the readout axis of these data, or use svd_compression"
        )
    lines = (
        ifftc(kspace, (readout_axis,)).movedim((readout_axis, coil_axis), (0, 1)).flatten(2)
    )  # (readout, coil, line)
    gram = lines @ lines.mH
    # Positions in air would have directions at random: a thousandth of the mean of all breaks the tie.
    position = torch.arange(len(gram), device=gram.device)
    near = ((position - position[:, None]).abs() <= window // 2).to(gram.dtype)
    gram = torch.einsum("nm,mcd->ncd", near, gram) + 1e-3 * gram.mean(0)
    bases = torch.linalg.eigh(gram)[1][..., -coils:].flip(-1)  # (readout, coil, virtual coil)

    start = int(gram.diagonal(dim1=1, dim2=2).real.sum(1).argmax())
    for positions in (range(start + 1, len(bases)), range(start - 1, -1, -1)):
        previous = bases[start]
        for i in positions:
            u, _, vh = torch.linalg.svd(bases[i].mH @ previous)
            previous = bases[i] = bases[i] @ (u @ vh)
    return bases.mH.to(kspace.dtype)


def as_measured(
    maps: Tensor, factor: Tensor, calibration: Tensor, *, coil_axis: int = -3, axis: int | None = None
) -> Tensor:
    """Maps of prepared coils in the magnitude and phase that they have in the coils as measured.

    Sensitivities S of the measured coils are W S in the whitened ones, W = L^-1. Maps estimated there are S_w = a W S
    with an unknown factor a(r) for each pixel. |L S_w| = |S| = 1 fixes its magnitude. Its phase is fixed as
    `operators.espirit` does with the coils as measured: their combination of most energy is real and not negative.
    Then data y = S x + n and W y = S_w x + W n have the same image x: whitening weights the noise and nothing else.

    Parameters
    ----------
    maps : (..., set, coil, y, x) complex, estimated on whitened (and compressed) data; 0 where cropped.
    factor : (measured coil, coil): L of `noise_factor`; after a compression V, L V^H. Or one for each position along
        `axis`, (n, measured coil, coil).
    calibration : (..., measured coil, ky, kx) complex k-space, before whitening; one phase reference for all slices.
    coil_axis : axis of the coils (negative).
    axis : axis of the positions (negative), with a factor for each.

    Returns
    -------
    Tensor
        As maps.

    Raises
    ------
    InputError
        If maps, factor and calibration do not fit.
    """
    measured = apply_coil_matrix(factor, maps, coil_axis=coil_axis, axis=axis)
    norm = torch.linalg.vector_norm(measured, dim=coil_axis, keepdim=True)
    weights = svd_compression(calibration, 1, coil_axis=coil_axis)
    weights = weights * torch.sgn(weights[:, weights.abs().argmax()]).conj()
    phase = torch.sgn(apply_coil_matrix(weights, measured, coil_axis=coil_axis))
    scale = torch.where(phase == 0, 1, phase).conj() / norm.where(norm > 0, 1)
    return maps * scale


def remove_readout_oversampling(kspace: Tensor, *, readout_axis: int, size: int) -> Tensor:
    """K-space of the central part of the field of view along the readout.

    Inverse FFT, crop, FFT, all orthonormal: white noise stays white and of the same level, and so do image values.

    Parameters
    ----------
    kspace : (..., ky, kx) complex, whole readout lines.
    readout_axis : the frequency-encoding axis (negative).
    size : samples to keep along it.

    Raises
    ------
    InputError
        If size is not between 1 and what there is.
    """
    n = kspace.shape[readout_axis]
    if not 1 <= size <= n:
        raise InputError(f"readout size: expected 1 to {n} (samples along axis {readout_axis}), got {size}")
    if size == n:
        return kspace
    return fftc(ifftc(kspace, (readout_axis,)).narrow(readout_axis, n // 2 - size // 2, size), (readout_axis,))


def _gram(kspace: Tensor, coil_axis: int) -> Tensor:
    """Sum over samples of y y^H, (coil, coil) in double precision."""
    samples = kspace.movedim(coil_axis, 0).flatten(1)
    return (samples @ samples.mH).to(torch.complex128)


def _position_gram(kspace: Tensor, coil_axis: int, readout_axis: int) -> Tensor:
    """The same for each position along the readout, (readout, coil, coil)."""
    lines = ifftc(kspace, (readout_axis,)).movedim((readout_axis, coil_axis), (0, 1)).flatten(2)
    return (lines @ lines.mH).to(torch.complex128)


def _check_virtual(virtual: int, coils: int) -> None:
    if not 1 <= virtual <= coils:
        raise InputError(f"coil compression: expected 1 to {coils} virtual coils (as there are coils), got {virtual}")
