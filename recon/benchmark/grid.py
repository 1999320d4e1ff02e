"""What a benchmark asks: files x slices x methods x masks x accelerations x seeds, checked before any work."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from .. import io
from ..errors import InputError
from ..io.writers import checksums
from ..methods import inputs_of, method_named, takes_prior
from ..methods.peers import check_installed
from ..modalities import Modality, Scan, check_settings, modality_of
from ..pipeline import load_prior
from ..records import TUNED, read_record, tuned_options
from ..settings import Settings


@dataclass(frozen=True)
class Source:
    """One fully sampled scan.

    Parameters
    ----------
    name : in tables: the file's, without ending and with as many folders as tell it from the others.
    sha256 : of its content; a copy elsewhere is the same scan.
    slices : first and last (exclusive) of those that take part.
    path : where it lies here.
    """

    name: str
    sha256: str
    slices: tuple[int, int]
    path: str = field(compare=False)


@dataclass(frozen=True)
class Contestant:
    """A method with its settings.

    Parameters
    ----------
    options : its keywords, where they are not its defaults.
    samples, steps : for methods that draw samples; None for others, and for a sampler's own number of steps.
    precision : of the prior's network.
    prior, prior_sha256 : name or path, and checksum of the weights; None for methods without.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    samples: int | None = None
    steps: int | None = None
    precision: str = "float32"
    prior: str | None = field(default=None, compare=False)
    prior_sha256: str | None = None


def file_name(source: str) -> str:
    """The name of a source as part of a file's, another for every other one."""
    return source.replace("%", "%25").replace("/", "%2F")


@dataclass(frozen=True)
class Cell:
    """One reconstruction; `seed` is that of the mask and of the samples."""

    file: str
    slice: int
    method: str
    mask: str
    acceleration: float
    seed: int

    @property
    def name(self) -> str:
        """Of its file."""
        where = f"{file_name(self.file)}_{self.slice:04d}"
        return f"{where}_{self.mask}_x{self.acceleration:g}_{self.seed:03d}_{self.method}"


@dataclass(frozen=True)
class Task:
    """A cell with all that a worker needs to compute it.

    Parameters
    ----------
    path, sha256 : of the scan.
    arguments : of `recon.reconstruct`, the prior left out.
    prior, prior_sha256 : None for methods without.
    picture : whether the image is kept for the report.
    version : of this package; a worker of another is refused.
    """

    cell: Cell
    path: str
    sha256: str
    arguments: Mapping[str, Any] = field(hash=False)
    prior: str | None
    prior_sha256: str | None
    picture: bool
    version: str


@dataclass(frozen=True)
class Grid:
    """All cells of a benchmark; made by `make_grid`.

    Parameters
    ----------
    seeds : how many, from 0 on.
    mask_options : keywords of every mask.
    """

    files: tuple[Source, ...]
    methods: tuple[Contestant, ...]
    masks: tuple[str, ...]
    accelerations: tuple[float, ...]
    seeds: int
    mask_options: dict[str, Any] = field(default_factory=dict, hash=False)
    device: str = "cpu"
    version: str = field(default_factory=lambda: version("tweedie-recon"))

    def tasks(self) -> list[Task]:
        """One for each cell, scan by scan and slice by slice."""
        return [
            self._task(source, index, method, mask, acceleration, seed)
            for source in self.files
            for index in range(*source.slices)
            for seed, mask, acceleration, method in product(
                range(self.seeds), self.masks, self.accelerations, self.methods
            )
        ]

    def _task(self, source: Source, index: int, method: Contestant, mask: str, acceleration: float, seed: int) -> Task:
        middle = sum(source.slices) // 2
        return Task(
            cell=Cell(source.name, index, method.name, mask, acceleration, seed),
            path=source.path,
            sha256=source.sha256,
            arguments={
                "method": method.name,
                "options": method.options,
                "mask": mask,
                "acceleration": acceleration,
                "mask_options": self.mask_options,
                "slices": (index, index + 1),
                "samples": method.samples,
                "steps": method.steps,
                "seed": seed,
                "device": self.device,
                "precision": method.precision,
                "check": False,  # the reference says whether the prior suits
            },
            prior=method.prior,
            prior_sha256=method.prior_sha256,
            picture=index == middle and seed == 0,
            version=self.version,
        )


def make_grid(
    files: Sequence[str | Path],
    *,
    methods: Sequence[str] | None = None,
    masks: Sequence[str] | None = None,
    accelerations: Sequence[float],
    seeds: int = 1,
    samples: int | None = None,
    slices: tuple[int, int] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    tuned: Sequence[str | Path] = (),
    mask_options: Mapping[str, Any] | None = None,
    prior: str | None = None,
    device: str = "cpu",
    precision: str = "float32",
) -> Grid:
    """The grid, with whatever can be known to fail refused: files are opened, masks drawn, the prior is loaded.

    Parameters
    ----------
    files : fully sampled scans of one modality.
    methods, masks : those of the modality if None. For CT masks are ways to give fewer photons: fewer views, a range
        of angles from the first view on, a lower dose; an acceleration of 12 leaves a twelfth.
    samples : for methods that draw them, 8 by default.
    slices : first and last (exclusive) of every file, all by default.
    options : method -> its keywords; `samples`, `steps`, `prior` and `precision` may be among them.
    tuned : records of `recon tune`, each of one method; `options` go before them.
    prior, precision : of methods with a prior: its name or a path (a method's own by default); of its network.

    Raises
    ------
    InputError, MissingFileError
        For unknown or repeated names, a tool that is not installed, an acceleration that a mask cannot give, a scan
        that is not fully sampled, a prior that is not there, and whatever would have no effect.
    """
    _check_list("files", [str(file) for file in files])
    scans = [io.load(path) for path in files]
    modality = _modality(scans, files)
    methods = modality.METHODS if methods is None else methods
    masks = modality.PARTS if masks is None else masks
    for what, values in {"methods": methods, "masks": masks, "accelerations": accelerations}.items():
        _check_list(what, [f"{v:g}" if isinstance(v, float) else str(v) for v in values])
    if seeds < 1:
        raise InputError(f"seeds: expected at least 1, got {seeds}")
    contestants = _contestants(
        methods, _with_tuned(options or {}, tuned), samples=samples, prior=prior, precision=precision
    )
    shapes = {modality.describe(scan, None) + str(scan.shape): scan for scan in scans}
    asked = []
    for scan, c, mask, acceleration in product(shapes.values(), contestants, masks, accelerations):
        settings = Settings(
            method=c.name,
            options=c.options,
            samples=c.samples,
            steps=c.steps,
            prior=c.prior,
            device=device,
            precision=c.precision,
            **modality.undersampling(scan, mask, acceleration, dict(mask_options or {})),
        )
        check_settings(settings, scan)
        asked.append(settings.resolved(prior=modality.PRIOR))
        modality.choose_part(scan, asked[-1])  # refuses what cannot be
    return Grid(
        files=_sources(files, scans, slices),
        methods=_with_priors(contestants, asked),
        masks=tuple(masks),
        accelerations=tuple(float(acceleration) for acceleration in accelerations),
        seeds=seeds,
        mask_options=dict(mask_options or {}),
        device=device,
    )


def _check_list(what: str, values: Sequence[str]) -> None:
    if not values:
        raise InputError(f"{what}: expected at least one, got none")
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise InputError(f"{what}: expected each once, got {', '.join(repeated)} more often")


def _with_tuned(options: Mapping[str, Mapping[str, Any]], tuned: Sequence[str | Path]) -> dict[str, Mapping[str, Any]]:
    """Options by method, those that were tuned where no other was asked for."""
    found = dict(options)
    for path in tuned:
        method = str(read_record(path, kind=TUNED).get("method"))
        found[method] = tuned_options(path, method=method) | dict(options.get(method, {}))
    return found


def _contestants(
    methods: Sequence[str],
    options: Mapping[str, Mapping[str, Any]],
    *,
    samples: int | None,
    prior: str | None,
    precision: str,
) -> tuple[Contestant, ...]:
    unknown = sorted(set(options) - set(methods))
    if unknown:
        raise InputError(f"options: {', '.join(unknown)} takes no part; expected one of {', '.join(methods)}")
    found = []
    for name in methods:
        method = method_named(name)
        check_installed(name)
        common: dict[str, Any] = {"samples": 8 if samples is None else samples} if "rng" in inputs_of(method) else {}
        common |= {"prior": prior, "precision": precision} if takes_prior(method) else {}
        own = dict(options.get(name, {}))
        settings = common | {key: own.pop(key) for key in ("samples", "steps", "prior", "precision") if key in own}
        for key in ("samples", "steps"):
            count = settings.get(key)
            if count is not None and (not isinstance(count, int) or isinstance(count, bool)):
                raise InputError(f"method {name}: {key} expects a whole number, got {count!r}")
        for key in ("prior", "precision"):
            text = settings.get(key)
            if text is not None and not isinstance(text, str):
                raise InputError(f"method {name}: {key} expects a name, got {text!r}")
        found.append(Contestant(name, own, **settings))
    if samples is not None and all(c.samples is None for c in found):
        raise InputError(f"samples: none of {', '.join(methods)} draws any; leave it out, or add dds, say")
    idle = {"prior": prior is not None, "precision": precision != "float32"}
    if any(idle.values()) and not any(takes_prior(method_named(name)) for name in methods):
        what = ", ".join(name for name, given in idle.items() if given)
        raise InputError(f"{what}: none of {', '.join(methods)} has one; leave it out, or add dds, say")
    return tuple(found)


def _with_priors(contestants: Sequence[Contestant], asked: Sequence[Settings]) -> tuple[Contestant, ...]:
    """The contestants with the priors that they resolve to, which are loaded."""
    resolved = {settings.method: settings for settings in asked}
    found = []
    for c in contestants:
        card = load_prior(resolved[c.name].prior, resolved[c.name])[1]
        sha256 = None if card is None else str(card.get("sha256"))
        found.append(replace(c, prior=resolved[c.name].prior, prior_sha256=sha256))
    return tuple(found)


def _modality(scans: Sequence[Scan], files: Sequence[str | Path]) -> Modality:
    """The one modality of all scans, each of which has all its data."""
    first = modality_of(scans[0])
    for file, scan in zip(files, scans, strict=True):
        own = modality_of(scan)
        if own is not first:
            raise InputError(f"{file}: expected a scan of {first.NAME} as the first one, got one of {own.NAME}")
        if why := own.missing(scan):
            raise InputError(
                f"{file}: expected a fully sampled scan, which is undersampled and compared with; {why}; use recon "
                "reconstruct"
            )
    return first


def _sources(files: Sequence[str | Path], scans: Sequence[Scan], slices: tuple[int, int] | None) -> tuple[Source, ...]:
    paths = [Path(file).absolute() for file in files]
    found: list[Source] = []
    for name, path, scan in zip(_names(paths), paths, scans, strict=True):
        first, last = slices or (0, len(scan))
        if not 0 <= first < last <= len(scan):
            raise InputError(f"{path.name}: expected slices within 0:{len(scan)}, got {first}:{last}")
        found.append(Source(name, checksum(path), (first, last), str(path)))
    twice = [s.name for s in found if sum(s.sha256 == other.sha256 for other in found) > 1]
    if twice:
        raise InputError(f"files: expected each scan once, got the same data in {', '.join(twice)}")
    return tuple(found)


def checksum(path: str | Path) -> str:
    """SHA-256 of all files of a scan: of their content alone, whatever their names."""
    sums = list(checksums(path).values())
    return sums[0] if len(sums) == 1 else hashlib.sha256(" ".join(sums).encode()).hexdigest()


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths, without ending, that tell them apart."""
    for depth in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join((*path.parts[-depth:-1], path.stem)) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise InputError(f"files: expected names that differ before their ending, got {', '.join(map(str, paths))}")
