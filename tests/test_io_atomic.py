"""Results are there whole or not at all: existing ones, full disks, interrupts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from recon.errors import ResultExistsError, WriteError
from recon.io import cfl
from recon.io.atomic import atomic, result_folder
from recon.io.panel import write_panel
from recon.io.writers import RESULT_NAMES, write_nifti, write_run, write_submission


def image(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def contents(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_atomic_keeps_what_stood_there_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(error: type[BaseException]) -> None:
        with atomic(path, overwrite=True) as temporary:
            temporary.write_text("half")
            raise error

    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error):
            fail(error)
        assert contents(tmp_path) == ["a.txt"]
        assert path.read_text() == "old"
    with atomic(path, overwrite=True) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert contents(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("name", ["reconstruction.h5", "reconstruction.nii.gz", "panel.png", "run.json", "scan.cfl"])
def test_existing_results_are_refused(tmp_path: Path, name: str) -> None:
    def write(overwrite: bool) -> None:
        path, volume = tmp_path / name, image(1, 16, 16)
        if name.endswith(".h5"):
            write_submission(path, volume, overwrite=overwrite)
        elif name.endswith(".gz"):
            write_nifti(path, volume, overwrite=overwrite)
        elif name.endswith(".png"):
            write_panel(path, volume[0], overwrite=overwrite)
        elif name.endswith(".json"):
            write_run(path, {}, overwrite=overwrite)
        else:
            cfl.write(path, volume[None] + 0j, readout_axis=-2, overwrite=overwrite)

    (tmp_path / name).write_text("old")
    with pytest.raises(ResultExistsError, match=f"{name}.*overwrite"):
        write(overwrite=False)
    assert (tmp_path / name).read_text() == "old"
    write(overwrite=True)
    assert (tmp_path / name).read_bytes() != b"old"


def test_result_folder_takes_all_or_nothing(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"

    def fail(overwrite: bool) -> None:
        with result_folder(out, names=RESULT_NAMES, overwrite=overwrite) as staging:
            write_run(staging / "run.json", {"half": 1})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail(overwrite=False)
    assert contents(tmp_path) == []
    with result_folder(out, names=RESULT_NAMES) as staging:
        write_run(staging / "run.json", {})
        write_nifti(staging / "reconstruction.nii.gz", image(1, 4, 4))
        assert not (out / "run.json").exists()
    assert contents(out) == ["reconstruction.nii.gz", "run.json"]
    (out / "mine.txt").write_text("kept")
    with (
        pytest.raises(ResultExistsError, match=r"reconstruction.nii.gz, run.json"),
        result_folder(out, names=RESULT_NAMES),
    ):
        raise AssertionError("refused before anything is done")
    with pytest.raises(KeyboardInterrupt):
        fail(overwrite=True)
    assert json.loads((out / "run.json").read_text()) == {}
    with result_folder(out, names=RESULT_NAMES, overwrite=True) as staging:
        write_run(staging / "run.json", {"new": 1})
    assert json.loads((out / "run.json").read_text()) == {"new": 1}
    assert contents(out) == ["mine.txt", "run.json"]  # no image of another run stays beside it


def test_folders_among_the_results_are_replaced_whole(tmp_path: Path) -> None:
    names = ("a", "b")
    for made, numbers in (("a", (0, 1, 2)), ("a", (0, 1)), ("b", (5,))):
        with result_folder(tmp_path, names=names, overwrite=True) as staging:
            (staging / made).mkdir()
            for number in numbers:
                (staging / made / f"{number}").write_text("")
        assert contents(tmp_path) == [made]
        assert contents(tmp_path / made) == [f"{number}" for number in numbers]
    with pytest.raises(ResultExistsError, match="came b"), result_folder(tmp_path, names=names):
        raise AssertionError("refused before anything is done")


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "sub"):
        with pytest.raises(WriteError, match="a file where a folder should be"), result_folder(out, names=RESULT_NAMES):
            raise AssertionError("refused before anything is done")
    with pytest.raises(WriteError, match="a file where a folder should be"):
        write_run(tmp_path / "file" / "run.json", {})


CHILD = """
import os, resource, sys, time
from pathlib import Path
import torch
from recon.errors import ReconError
from recon.io import cfl
from recon.io.atomic import result_folder
from recon.io.panel import write_panel
from recon.io.writers import Disk, submission, write_nifti, write_run, write_submission

out, volume = Path(sys.argv[2]), torch.rand(4, 128, 128)

def streamed():
    with submission(out / "streamed.h5") as file:
        for i in range(4):
            file.append(volume[i : i + 1])

def header_only():   # nothing is written before the file is closed
    with submission(out / "header.h5", header={"text": "x" * 30000}):
        pass

def folder():
    with result_folder(out / "sub", names=["run.json"]) as staging:
        write_run(staging / "run.json", {})

WRITERS = [
    lambda: write_submission(out / "a.h5", volume),
    streamed,
    header_only,
    lambda: write_nifti(out / "a.nii", volume),
    lambda: write_nifti(out / "a.nii.gz", volume),
    lambda: write_panel(out / "a.png", volume[0]),
    lambda: write_run(out / "a.json", {"notes": ["x" * 40000]}),
    lambda: cfl.write(out / "a", volume[:, None] + 0j, readout_axis=-2),
    folder,
]

def each(writers):
    for write in writers:
        try:
            write()
        except ReconError as error:
            print(error)
        else:
            print("written")

if sys.argv[1] == "full":
    for limit in (0, 1000, 3000, 20000):   # bytes a file may have: HDF5 fails at its header, its index, its data
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        each(WRITERS[:-1])
        with Disk(out / "disk", "w+b") as disk:   # one byte too many: the system writes the others and reports no error
            disk.write(bytes(limit + 1))
            print(disk.error)
        (out / "disk").unlink()
elif sys.argv[1] == "unwritable":
    for write in WRITERS:   # imports are lazy: all of them before the change of user
        write()
    for file in out.rglob("*"):
        if file.is_file():
            file.unlink()
    (out / "sub").rmdir()
    os.chmod(out, 0o555)
    if os.geteuid() == 0:
        os.setuid(65534)   # permissions do not bind root
    each(WRITERS)
else:
    with result_folder(out / "new", names=["run.json"]) as staging, submission(staging / "a.h5") as file:
        file.append(volume)
        print("writing", flush=True)
        time.sleep(60)
"""


def child(case: str, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, case, str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files fails writes as a full disk does: in the middle, by error number."""
    process = child("full", tmp_path)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    lines = stdout.splitlines()
    assert len(lines) == 4 * 9
    assert lines[8::9] == ["[Errno 27] File too large"] * 4
    del lines[8::9]
    small = [line for line in lines if "file larger than allowed" not in line]
    assert small in ([], ["written"])  # 16 KiB of noise may fit a small picture
    assert stderr == ""
    assert contents(tmp_path) in ([], ["a.png"])


def test_unwritable_folder_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:  # the other user must come this far; pytest makes its folders private
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)
    out = tmp_path / "out"
    out.mkdir()
    process = child("unwritable", out)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    lines = stdout.splitlines()
    out.chmod(0o755)
    assert len(lines) == 9
    assert all("no permission to write" in line and "expected to write here" in line for line in lines)
    assert contents(out) == []


def test_interrupt_in_mid_write_leaves_nothing(tmp_path: Path) -> None:
    process = child("interrupted", tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert time.monotonic() - start < 30  # it did not sleep to its end
    assert contents(tmp_path) == []


def test_result_folder_clears_what_a_killed_run_left(tmp_path: Path) -> None:
    (tmp_path / ".partial-old").mkdir()
    (tmp_path / ".partial-old" / "reconstruction.h5").touch()
    with result_folder(tmp_path, names=["run.json"]) as folder:
        (folder / "run.json").write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
