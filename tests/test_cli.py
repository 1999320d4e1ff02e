"""The command: what it prints, and one clear line with a non-zero exit for whatever a user gets wrong."""

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from recon.cli import main
from recon.cli.options import parse_options, parse_slices
from recon.errors import InputError
from recon.io.writers import RESULT_NAMES
from recon.methods import METHODS, options_of
from recon.phantom import head


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def recon(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process."""
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["recon", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setenv("GOMP_SPINCOUNT", "0")  # what main sets is undone
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            signal.signal(signal.SIGTERM, before)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def kspace(slices: int = 2, shape: tuple[int, int] = (48, 40), coils: int = 3) -> Tensor:
    return torch.cat([head(shape, coils=coils, seed=seed).kspace for seed in range(slices)])


def write(path: Path, **datasets: Tensor | np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = np.asarray(values)
    return path


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("scan") / "head.h5", kspace=kspace())


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.exists() else set()


def refused(outcome: Outcome, *words: str) -> None:
    """Exit 2 and one line that holds the words."""
    lines = [line for line in outcome.err.splitlines() if line.strip()]
    assert outcome.code == 2, outcome
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]
    assert "Traceback" not in outcome.err + outcome.out


# What works


def test_reconstruct_leaves_its_results_and_says_where(recon: Run, scan: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    outcome = recon(
        *("reconstruct", scan, "--method", "tv", "--set", "iterations=20", "--set", "regularization=0.2"),
        *("--mask", "random", "--acceleration", 2, "--slices", "1:2", "--coils", 2, "--seed", 3, "--out", out),
    )
    assert outcome.code == 0, outcome.err
    assert visible(out) == set(RESULT_NAMES)
    assert "true acceleration 2.00" in outcome.out
    assert "PSNR (dB)" in outcome.out
    assert "PSNR scaled, in object" in outcome.out
    assert f"results in {out}/" in outcome.out
    with h5py.File(out / "reconstruction.h5") as file:
        assert file["reconstruction"].shape == (1, 48, 40)
        assert "reconstruction_complex" not in file


def test_info_says_what_a_file_holds(recon: Run, scan: Path, tmp_path: Path) -> None:
    outcome = recon("info", scan)
    assert outcome.code == 0
    for words in ("head", "2 slices, 3 coils, 48 x 40", "1.00-fold", "48 x 40", "noise from", "none"):
        assert words in outcome.out
    mask = np.zeros(40)
    mask[::2] = mask[12:28] = 1
    outcome = recon("info", write(tmp_path / "less.h5", kspace=kspace() * torch.as_tensor(mask), mask=mask))
    assert "1.43-fold accelerated, mask of the file" in outcome.out
    assert "48 x 17" in outcome.out  # the calibration: 12 to 27, and 28 of the comb


def test_methods_lists_all_with_their_options(recon: Run) -> None:
    outcome = recon("methods")
    assert outcome.code == 0
    words = outcome.out.replace("\n", " ").split()
    for name, method in METHODS.items():
        assert name in words
        assert all(f"{key}={value}" in outcome.out for key, value in options_of(method).items())


def test_the_demonstration_takes_a_file_of_the_users_own(recon: Run, scan: Path, tmp_path: Path) -> None:
    from recon.demo import METHODS as SHOWN

    out = tmp_path / "demo"
    outcome = recon("demo", scan, "--out", out)
    assert outcome.code == 0, outcome.err
    assert visible(out) == {"panel.png", "run.json"}
    assert all(name in outcome.out for name in SHOWN)
    refused(recon("demo", scan, "--out", out), "panel.png, run.json", "overwrite")
    assert recon("demo", scan, "--out", out, "--overwrite").code == 0


def test_the_demonstration_needs_full_data(recon: Run, tmp_path: Path) -> None:
    mask = np.ones(40)
    mask[:9:2] = 0
    less = write(tmp_path / "less.h5", kspace=kspace() * torch.as_tensor(mask), mask=mask)
    refused(recon("demo", less, "--out", tmp_path / "out"), "undersampled already", "recon reconstruct")
    assert visible(tmp_path) == {"less.h5"}


def test_help_is_instant() -> None:
    """Nothing that takes time is imported for it."""
    code = (
        "import sys; sys.argv = ['recon', '--help']\n"
        "from recon.cli import main\n"
        "try: main()\n"
        "except SystemExit: print([name for name in ('torch', 'numpy', 'h5py', 'scipy') if name in sys.modules])\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "reconstruct" in process.stdout
    assert process.stdout.splitlines()[-1] == "[]"


def test_the_command_is_installed() -> None:
    process = subprocess.run([Path(sys.executable).with_name("recon"), "--help"], capture_output=True, text=True)
    assert process.returncode == 0
    assert all(command in process.stdout for command in ("reconstruct", "info", "methods", "demo", "train"))


# Files


def test_a_file_that_is_not_there(recon: Run, tmp_path: Path) -> None:
    for command in ("info", "reconstruct"):
        refused(recon(command, tmp_path / "none.h5"), "none.h5", "check its spelling")


def bad_file(name: str, folder: Path) -> Path:
    """A file that has something wrong with it."""
    path, data = folder / "scan.h5", kspace()
    if name == "not HDF5":
        path.write_text("k-space of a head, in words")
    elif name == "no kspace":
        write(path, image=data)
    elif name == "NaNs":
        data[1, 0, 5, 6] = torch.nan
        write(path, kspace=data)
    elif name == "mask of the wrong width":
        write(path, kspace=data, mask=np.ones(41))
    elif name == "all zero":
        write(path, kspace=0 * data)
    elif name == "truncated":
        write(path, kspace=data)
        path.write_bytes(path.read_bytes()[:-5000])
    elif name == "a silent coil":
        data[:, 1] = 0
        write(path, kspace=data)
    elif name == "no calibration":
        mask = np.arange(40) % 2 == 1
        write(path, kspace=data * torch.as_tensor(mask), mask=mask)
    return path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("not HDF5", "none of these"),
        ("no kspace", "expected a dataset 'kspace'"),
        ("NaNs", "NaN"),
        ("mask of the wrong width", "(41,)"),
        ("all zero", "zeros only"),
        ("truncated", "truncated"),
        ("a silent coil", "coils [1] hold zeros only"),
        ("no calibration", "calibration"),
    ],
)
def test_bad_files(recon: Run, tmp_path: Path, name: str, words: str) -> None:
    file, out = bad_file(name, tmp_path), tmp_path / "out"
    refused(recon("reconstruct", file, "--out", out), words)
    assert visible(out) == set()
    if name != "no calibration":  # which is worth knowing
        refused(recon("info", file), words)


# Arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mask", "random", "--acceleration", "0.5"], ["acceleration", "0.5"]),
        (["--mask", "random", "--acceleration", "0"], ["acceleration", "0"]),
        (["--mask", "random", "--acceleration", "nan"], ["acceleration", "nan"]),
        (["--mask", "equispaced", "--acceleration", "1000"], ["1000"]),
        (["--mask", "fastmri-random", "--acceleration", "1000"], []),
        (["--mask", "chequers"], ["chequers", "random, equispaced"]),
        (["--coils", "4"], ["coils: expected 1 to 3, as the scan has, got 4"]),
        (["--coils", "0"], ["coils: expected at least 1"]),
        (["--sets", "4"], ["sets"]),
        (["--method", "magic"], ["unknown method 'magic'", "zero-filled, rss, cg-sense, l1-wavelet, tv"]),
        (["--set", "sparkle=1"], ["unknown option 'sparkle'", "regularization="]),
        (["--set", "iterations"], ["--set: expected NAME=VALUE, got 'iterations'"]),
        (["--set", "=3"], ["--set: expected NAME=VALUE, got '=3'"]),
        (["--set", "iterations=many"], ["option iterations expects int, got 'many'"]),
        (["--set", "iterations=-3"], ["0 or more, got -3"]),
        (["--set", "regularization=nan"], ["regularization"]),
        (["--set", "wavelet=sym4"], ["haar, db2, db4", "sym4"]),
        (["--slices", "1"], ["--slices: expected FIRST:LAST such as 0:3, got '1'"]),
        (["--slices", "a:b"], ["--slices: expected FIRST:LAST"]),
        (["--slices", "0:9"], ["slices: expected a range within 0:2, got 0:9"]),
        (["--seed", "-1"], ["seed"]),
        (["--samples", "0"], ["samples"]),
        (["--device", "toaster"], ["device", "toaster"]),
        (["--method", "dds", "--prior", "nobody"], ["nobody"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_bad_arguments(recon: Run, scan: Path, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    out = tmp_path / "out"
    refused(recon("reconstruct", scan, "--out", out, *arguments), *words)
    assert not out.exists()


@pytest.mark.parametrize("arguments", [["--sparkle"], ["--coils", "many"], ["--acceleration", "fast"]])
def test_arguments_that_the_command_does_not_know(recon: Run, scan: Path, arguments: list[str]) -> None:
    outcome = recon("reconstruct", scan, *arguments)
    assert outcome.code == 2
    assert arguments[0] in outcome.err
    assert "Traceback" not in outcome.err


def test_values_of_options_are_numbers_switches_or_names() -> None:
    parsed = parse_options(["a=1", "b=0.5", "c=true", "d=false", "e=db4", "f=1e-3", "g=x=y", "h=-2"])
    assert parsed == {"a": 1, "b": 0.5, "c": True, "d": False, "e": "db4", "f": 1e-3, "g": "x=y", "h": -2}
    assert [type(parsed[name]) for name in "abcef"] == [int, float, bool, str, float]
    assert parse_slices("2:5") == (2, 5)
    assert parse_slices(None) is None
    with pytest.raises(InputError):
        parse_slices("-1:2")


# Folders


def test_results_that_are_there_stay(recon: Run, scan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("reconstruct", scan, "--method", "zero-filled", "--out", out)
    assert recon(*arguments).code == 0
    before = {name: (out / name).read_bytes() for name in RESULT_NAMES}
    refused(recon(*arguments), "expected no results yet", "reconstruction.h5", "overwrite")
    assert {name: (out / name).read_bytes() for name in RESULT_NAMES} == before
    assert recon(*arguments, "--overwrite").code == 0


def test_a_folder_that_cannot_be_one(recon: Run, scan: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    refused(recon("reconstruct", scan, "--out", tmp_path / "file" / "out"), "a file where a folder should be")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a place where even root may not write")
def test_a_place_where_nobody_may_write(recon: Run, scan: Path) -> None:
    refused(recon("reconstruct", scan, "--out", "/proc/out"), "/proc/out: expected to write here")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(recon: Run, scan: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    refused(recon("reconstruct", scan, "--out", tmp_path / "out"), "no permission to write")
    tmp_path.chmod(0o700)


def test_a_full_disk(scan: Path, tmp_path: Path) -> None:
    """A limit on the size of files ends writes as a full disk does, here at the first slice that is kept."""
    code = (
        "import resource, sys; from recon.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10000, resource.RLIM_INFINITY))\n"
        "sys.argv = ['recon', 'reconstruct', *sys.argv[1:]]\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, str(scan), "--method", "zero-filled", "--out", str(tmp_path / "out")]
    process = subprocess.run(command, capture_output=True, text=True)
    refused(Outcome(process.returncode, process.stdout, process.stderr), "larger than allowed")
    assert visible(tmp_path / "out") == set()
