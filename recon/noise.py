"""The random streams: one per sample, so that a sample does not depend on its batch, the device or an interruption."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .errors import InputError


class Noise:
    """White noise of unit variance per real component, from one stream for each sample.

    Draw k of sample i is a function of (seed, i, k) alone (and of the shape and dtype asked for). It is computed on the
    CPU and moved, hence the same on every device; no global random state is read or written.

    Parameters
    ----------
    seed : a number, or several such as (seed, slice), which name streams of their own.
    sample_ids : the samples of this batch.
    draws : how many draws were made before; `Noise(seed, ids, draws=rng.draws)` continues where `rng` stands.

    References
    ----------
    Philox: Salmon et al., Proc SC11 (2011).
    """

    def __init__(self, seed: int | Sequence[int], sample_ids: Sequence[int], *, draws: int = 0) -> None:
        self.seed = tuple(seed) if isinstance(seed, Sequence) else (seed,)
        self.sample_ids = tuple(sample_ids)
        self.draws = draws
        if not self.sample_ids or min(*self.sample_ids, *self.seed, draws) < 0:
            raise InputError(
                f"Noise: expected seed, draws and at least one sample id, none negative; got seed={seed}, "
                f"sample_ids={self.sample_ids}, draws={draws}"
            )

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.sample_ids)

    def randn_like(self, x: Tensor) -> Tensor:
        """Noise of the shape, dtype and device of x, shape (n_samples, *any); E|n|^2 = 2 where x is complex.

        Raises
        ------
        ValueError
            If the first axis of x is not the samples.
        """
        if x.ndim == 0 or x.shape[0] != len(self):
            raise InputError(
                f"randn_like: expected shape ({len(self)} samples, ...), got {tuple(x.shape)}; put the samples first"
            )
        shape = tuple(x.shape[1:]) + (2,) * x.is_complex()
        dtype = np.float64 if x.real.dtype == torch.float64 else np.float32
        noise = torch.from_numpy(np.stack([self._draw(sample_id, shape, dtype) for sample_id in self.sample_ids]))
        self.draws += 1
        return (torch.view_as_complex(noise) if x.is_complex() else noise).to(x)

    def _draw(self, sample_id: int, shape: tuple[int, ...], dtype: type[np.float32] | type[np.float64]) -> np.ndarray:
        # The length goes first, because SeedSequence pads with zeros: seed 0 and seed (0, 0) would be the same.
        sequence = np.random.SeedSequence((len(self.seed), *self.seed), spawn_key=(sample_id, self.draws))
        return np.random.Generator(np.random.Philox(sequence)).standard_normal(shape, dtype=dtype)
