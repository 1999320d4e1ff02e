"""The record of a calibration, and what it does to the maps of a run that it belongs to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .errors import InputError
from .io.writers import checksums
from .methods import method_named, options_of
from .posterior import Posterior
from .records import CALIBRATION, read_record
from .settings import Settings

_OF_CT = ("views", "angular_range", "dose", "rings")  # records that have none are older, and of MRI
# Another sampler or prior has another spread: its factor would mean nothing. The rest changes the factor by a little,
# and ends the guarantee.
_DECISIVE = ("method", "options", "steps")
_RELEVANT = ("mask", "mask_options", "acceleration", "samples", "coils", "sets", "precision", *_OF_CT)


@dataclass(frozen=True)
class Calibration:
    """What `recon calibrate` found.

    Parameters
    ----------
    path : of the file.
    factor : that intervals and standard deviations are multiplied by.
    alpha : risk that is guaranteed, the part of an object's pixels outside.
    images : number that it was calibrated on.
    arguments : the settings (recon.settings.Settings) of those runs, every option of the method among them.
    prior : name and SHA-256 of the weights.
    """

    path: str
    factor: float
    alpha: float
    images: int
    arguments: Mapping[str, Any]
    prior: Mapping[str, Any]

    @property
    def statement(self) -> str:
        """For the user, with the maps."""
        return (
            f"Calibrated ({Path(self.path).name}): intervals and std are {self.factor:.3g} times those of the samples, "
            f"so that at most {100 * self.alpha:g} % of the object's pixels lie outside, on average over images like "
            f"the {self.images} simulated ones of the calibration; for others that is no guarantee."
        )

    def check(self, settings: Settings, card: Mapping[str, Any] | None) -> str:
        """What differs between the calibration and a run so that its guarantee ends, "" if nothing does.

        Raises
        ------
        InputError
            If the method, its options or steps, or the prior is another.
        """
        asked = full_arguments(settings)
        other = [name for name in _DECISIVE if asked[name] != self.arguments[name]]
        if other:
            raise InputError(f"{self.path}: {self._differences(asked, other)}; calibrate these settings")
        if (card or {}).get("sha256") != self.prior["sha256"]:
            name = (card or {}).get("name", settings.prior)
            raise InputError(
                f"{self.path}: expected the prior {self.prior['name']!r} of checksum {self.prior['sha256'][:12]}... as "
                f"in the calibration, got {name!r} of another; calibrate this prior"
            )
        other = [name for name in _RELEVANT if asked[name] != self.arguments[name]]
        return f"{self.path}: {self._differences(asked, other)}: the guarantee does not hold here" if other else ""

    def _differences(self, asked: Mapping[str, Any], names: list[str]) -> str:
        return ", ".join(
            f"expected {name} {self.arguments[name]!r} as in the calibration, got {asked[name]!r}" for name in names
        )

    def record(self) -> dict[str, Any]:
        """For run.json."""
        return {"file": checksums(self.path), "factor": self.factor, "alpha": self.alpha, "images": self.images}

    def apply(self, posterior: Posterior) -> Posterior:
        """The posterior with its std and its interval mean +- factor * half-width; samples stay as they were drawn."""
        if posterior.std is None or posterior.lower is None or posterior.upper is None:
            return posterior
        half = self.factor * (posterior.upper - posterior.lower) / 2
        return replace(
            posterior,
            std=self.factor * posterior.std,
            lower=posterior.mean - half,
            upper=posterior.mean + half,
            statement=f"{posterior.statement} {self.statement}",
        )


def full_arguments(settings: Settings) -> dict[str, Any]:
    """The settings with every option of the method, those that were not given at their defaults."""
    arguments = asdict(settings) | {"options": options_of(method_named(settings.method)) | settings.options}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()}  # as in JSON


def load_calibration(path: str | Path) -> Calibration:
    """Read the file that `recon calibrate` wrote.

    Raises
    ------
    MissingFileError, InputError
        If it is not there; if it is no calibration.
    """
    record = read_record(path, kind=CALIBRATION)
    try:
        found = Calibration(
            path=str(path),
            factor=float(record["factor"]),
            alpha=float(record["alpha"]),
            images=int(record["calibration"]["images"]),
            arguments={n: (dict.fromkeys(_OF_CT) | record["arguments"])[n] for n in (*_DECISIVE, *_RELEVANT)},
            prior={name: record["prior"][name] for name in ("name", "sha256")},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: expected a calibration, got one without {error}; calibrate again") from error
    if not 0 <= found.factor < math.inf:
        raise InputError(f"{path}: expected a factor of 0 or more, got {found.factor}; calibrate again")
    return found
