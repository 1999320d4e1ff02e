"""What an interruption of reconstruct() leaves, and what the same call takes up again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_pipeline import FAST, SAMPLER, Wiener, in_memory, stored, visible, volume, write
from torch import Tensor

from recon.errors import InputError, MissingFileError, ResultExistsError
from recon.io.writers import RESULT_NAMES
from recon.mri import MRIScan
from recon.partial import FOLDER, PartialResults
from recon.pipeline import reconstruct


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("scan") / "head.h5", volume(3))


class Stopped(Exception):
    """Stands for anything that ends a run."""


def stop_at(fraction: float) -> Callable[[str, float], None]:
    def report(_: str, done: float) -> None:
        if done > fraction:
            raise Stopped

    return report


def interrupt(scan: Path | MRIScan, fraction: float, **arguments: Any) -> None:
    with pytest.raises(Stopped):
        reconstruct(scan, progress=stop_at(fraction), **arguments)


def parts(folder: Path) -> list[Path]:
    return sorted((folder / FOLDER).rglob("slice-*.pt"))


def test_what_was_finished_is_not_computed_again(file: Path, tmp_path: Path) -> None:
    interrupt(file, 0.7, out=tmp_path, **FAST)
    assert visible(tmp_path) == set()
    assert [path.name[:10] for path in parts(tmp_path)] == ["slice-0000", "slice-0001"]
    part = torch.load(parts(tmp_path)[0], weights_only=True)
    part["x"] = 2 * part["x"]  # a mark that computing it again would wipe out
    torch.save(part, parts(tmp_path)[0])
    expected, resumed = reconstruct(file, **FAST).mean, reconstruct(file, out=tmp_path, **FAST).mean
    assert torch.allclose(resumed[0], 2 * expected[0], rtol=1e-6)
    assert torch.equal(resumed[1:], expected[1:])
    assert visible(tmp_path) == set(RESULT_NAMES)
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize("change", [{"seed": 1}, {"options": {"iterations": 9}}, {"acceleration": 3.0}, {"coils": 2}])
def test_another_run_does_not_take_what_this_one_finished(file: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    interrupt(file, 0.5, out=tmp_path, **FAST)
    changed = {**FAST, **change}
    assert torch.equal(reconstruct(file, out=tmp_path, **changed).mean, reconstruct(file, **changed).mean)


def test_an_edited_file_is_computed_again(tmp_path: Path) -> None:
    file, out = write(tmp_path / "a.h5", volume(2)), tmp_path / "out"
    interrupt(file, 0.6, out=out, **FAST)
    write(file, 3 * volume(2))
    assert torch.equal(reconstruct(file, out=out, **FAST).mean, reconstruct(file, **FAST).mean)


def test_an_edited_bart_pair_is_computed_again(tmp_path: Path) -> None:
    from recon.io import cfl

    base, out = tmp_path / "a", tmp_path / "out"  # named without an ending
    cfl.write(base, volume(2), readout_axis=-2)
    interrupt(base, 0.6, out=out, **FAST)
    assert len(parts(out)) == 1
    cfl.write(base, 3 * volume(2), readout_axis=-2, overwrite=True)
    assert torch.equal(reconstruct(base, out=out, **FAST).mean, reconstruct(base, **FAST).mean)


def test_scans_in_memory_are_not_taken_for_each_other(tmp_path: Path) -> None:
    """Nothing names them: their finished slices are not kept."""
    first, second = (in_memory(factor * volume(2)) for factor in (1, 3))
    interrupt(first, 0.6, out=tmp_path, **FAST)
    assert torch.equal(reconstruct(second, out=tmp_path, **FAST).mean, reconstruct(second, **FAST).mean)


def test_denoisers_in_memory_are_not_taken_for_each_other(file: Path, tmp_path: Path) -> None:
    class Other(Wiener):
        def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
            return 0.5 * super().__call__(x, sigma)

    Other.__name__ = "Wiener"
    arguments = {**SAMPLER, "slices": (0, 2), "samples": 2}
    interrupt(file, 0.6, out=tmp_path, **arguments)
    arguments["prior"] = Other()
    assert torch.equal(reconstruct(file, out=tmp_path, **arguments).samples, reconstruct(file, **arguments).samples)


def test_results_that_are_there_are_refused_before_any_work(file: Path, tmp_path: Path) -> None:
    class Untouched:
        shape = (3, 3, 48, 40)

        def __getitem__(self, index: slice, /) -> Tensor:
            raise AssertionError("data were read")

    reconstruct(file, out=tmp_path, **FAST)
    before = {name: (tmp_path / name).read_bytes() for name in RESULT_NAMES}
    scan = replace(in_memory(volume(1)), kspace=Untouched())
    with pytest.raises(ResultExistsError, match="overwrite them or choose another folder"):
        reconstruct(scan, out=tmp_path, **FAST)
    assert {name: (tmp_path / name).read_bytes() for name in RESULT_NAMES} == before
    other = reconstruct(file, out=tmp_path, overwrite=True, **{**FAST, "seed": 1})
    assert torch.equal(stored(tmp_path), other.mean)


def test_a_slice_of_nans_ends_the_run_in_one_line_and_leaves_no_result(tmp_path: Path) -> None:
    kspace = volume(3)
    kspace[2, 0, 3, 4] = torch.nan
    file = write(tmp_path / "a.h5", kspace, mask=np.ones(40))
    with pytest.raises(InputError, match="slice 2"):
        reconstruct(file, out=tmp_path / "out", **FAST)
    assert visible(tmp_path / "out") == set()


def test_bad_settings_are_refused_before_the_file_is_looked_at(tmp_path: Path) -> None:
    missing = tmp_path / "none.h5"
    for arguments, message in [
        ({"method": "magic"}, "unknown method 'magic'; expected one of zero-filled, rss, cg-sense, l1-wavelet, tv"),
        ({"mask": "chequers"}, "expected one of random, equispaced"),
        ({"samples": 0}, "samples: expected at least 1, got 0"),
        ({"coils": 0}, "coils: expected at least 1, got 0"),
        ({"sets": -1}, "sets: expected at least 1, got -1"),
        ({"seed": -1}, "seed: expected 0 to 4294967295, got -1"),
        ({"acceleration": 4.0}, "acceleration: expected a mask"),
        ({"samples": 4}, "draws no samples"),
        ({"mask": "random", "mask_options": {"power": 2}}, "mask random: unknown option power"),
        ({"device": "meta"}, "device: expected cpu"),
        ({"device": "cuda:99"}, "device"),
        ({"device": "toaster"}, "device"),
        ({"method": "dds", "precision": "half"}, "precision: expected float32 or bf16, got 'half'"),
        ({"method": "tv", "precision": "bf16"}, "precision: tv has no network"),
        ({"method": "tv", "options": {"sparkle": 1}}, "unknown option 'sparkle'; expected among: regularization="),
        ({"method": "tv", "options": {"iterations": 1.5}}, "option iterations expects int, got 1.5"),
        ({"method": "tv", "options": {"iterations": True}}, "option iterations expects int, got True"),
        (
            {"method": "tv", "options": {"iterations": -1}},
            "expects a finite number, 0 or more, got -1",
        ),
        ({"method": "tv", "options": {"regularization": float("nan")}}, "option regularization expects a finite"),
        ({"method": "zero-filled", "options": {"iterations": 1}}, "expected among: none"),
    ]:
        with pytest.raises(InputError) as caught:
            reconstruct(missing, **arguments)
        assert message in str(caught.value)
    with pytest.raises(MissingFileError):
        reconstruct(missing)


def test_what_a_method_refuses_is_one_error_of_recon(file: Path) -> None:
    with pytest.raises(InputError, match="expected one of haar, db2, db4, got 'sym4'"):
        reconstruct(file, method="l1-wavelet", options={"wavelet": "sym4"})
    with pytest.raises((InputError, MissingFileError), match="nobody"):
        reconstruct(file, method="dds", prior="nobody")


def test_finished_parts_are_written_whole_or_said_to_be_missing(tmp_path: Path) -> None:
    """A full disk, as a limit on the size of files: one error of recon, and no part."""
    code = (
        "import resource, sys, torch; from pathlib import Path; from recon.partial import PartialResults\n"
        "from recon.errors import WriteError\n"
        "parts = PartialResults(Path(sys.argv[1]), {})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))\n"
        "try: parts.save('a.pt', {'x': torch.zeros(100, 100)})\n"
        "except WriteError as error: print(error)\n"
    )
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "larger than allowed" in process.stdout
    assert PartialResults(tmp_path, {}).load("a.pt") is None
    assert not list(tmp_path.rglob("*.pt"))


# Whole processes


def start(file: Path, out: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "recon.cli", "reconstruct", str(file), "--out", str(out), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for_parts(process: subprocess.Popen[str], out: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(parts(out)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_command_continues_where_it_stopped(tmp_path: Path) -> None:
    """Interrupted in its second slice by Ctrl-C, killed in its third, then left to end."""
    file, out = write(tmp_path / "head.h5", volume(4)), tmp_path / "out"
    arguments = ("--method", "tv", "--set", "iterations=600", "--mask", "random", "--acceleration", "2")

    process = start(file, out, *arguments)
    wait_for_parts(process, out, 1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1] == "interrupted; the same command continues where it stopped"
    assert "Traceback" not in errors
    assert visible(out) == set()
    kept = {path: path.stat().st_mtime_ns for path in parts(out)}
    assert 1 <= len(kept) < 4

    process = start(file, out, *arguments)
    wait_for_parts(process, out, len(kept) + 1)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert visible(out) == set()
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in parts(out)}.items()  # not written again
    assert all(torch.load(path, weights_only=True) for path in parts(out))

    process = start(file, out, *arguments)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "results in" in output
    assert visible(out) == set(RESULT_NAMES)
    assert not (out / FOLDER).exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    options = {"iterations": 600}
    whole = reconstruct(file, method="tv", options=options, mask="random", acceleration=2.0)
    torch.set_num_threads(threads)
    assert torch.allclose(stored(out), whole.mean, rtol=1e-5, atol=1e-5 * float(whole.mean.max()))
