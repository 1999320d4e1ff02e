"""Results that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from recon.errors import ReconError, ResultExistsError, WriteError

PREFIX = ".partial-"


@contextmanager
def atomic(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary name in the same folder: write there, and the file gets its own name when the block ends.

    If the block fails, or is interrupted, nothing is left behind and what stood at `path` still stands.

    Parameters
    ----------
    path : where the result goes; its folder is made if missing.
    overwrite : whether it may replace a file.

    Raises
    ------
    ResultExistsError
        If there is such a file and `overwrite` is not set.
    WriteError
        If the folder cannot be written or the disk is full.
    """
    path = Path(path)
    refuse_existing(path, overwrite=overwrite)
    temporary = path.with_name(f"{PREFIX}{os.getpid()}-{path.name}")  # the ending stays: some libraries look at it
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            synchronize(temporary)
            os.replace(temporary, path)
            synchronize(path.parent)
    finally:
        with suppress(OSError):  # most often it has its own name by now, or was never made
            temporary.unlink()


def refuse_existing(path: str | Path, *, overwrite: bool = False) -> None:
    """Raise ResultExistsError if a file is there and not to be overwritten, WriteError if its folder cannot be seen."""
    with writing(Path(path)):
        exists = Path(path).exists()
    if exists and not overwrite:
        raise ResultExistsError(
            f"{path}: expected no such file yet, came an existing one; overwrite it or choose another name"
        )


@contextmanager
def result_folder(folder: str | Path, *, names: Sequence[str], overwrite: bool = False) -> Iterator[Path]:
    """An empty folder to write results into; they replace those in `folder` when the block ends, and are dropped if it
    fails.

    Enter it before a long run: what would refuse the results at its end refuses them now.

    Parameters
    ----------
    folder : where the results go; made if missing. Other files in it are left alone.
    names : the results, files or folders, that must not be there yet.
    overwrite : whether they may be replaced. Those that are not made again go, so that all are of one run.

    Raises
    ------
    ResultExistsError
        If one of `names` is there and `overwrite` is not set.
    WriteError
        If the folder cannot be written or the disk is full.
    """
    folder = Path(folder)
    with writing(folder):
        there = [name for name in names if (folder / name).exists()]
        made, staging = missing_folders(folder), None
    if there and not overwrite:
        raise ResultExistsError(
            f"{folder}: expected no results yet, came {', '.join(there)}; overwrite them or choose another folder"
        )
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for killed in folder.glob(f"{PREFIX}*/"):  # what a run left that could not clean up
                shutil.rmtree(killed, ignore_errors=True)
            staging = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))
        yield staging
        with writing(folder):
            results, retired = sorted(staging.iterdir()), staging / "retired"
            retired.mkdir()
            for name in there:
                new, old = staging / name, folder / name
                if old.is_dir() or not new.exists():  # a folder takes no other's place
                    os.replace(old, retired / name)
            for result in results:
                os.replace(result, folder / result.name)
            synchronize(folder)
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        for empty in made:  # none is empty after success
            with suppress(OSError):
                empty.rmdir()


def missing_folders(folder: Path) -> list[Path]:
    """The folder and those above it that are not there yet, innermost first."""
    missing = [] if folder.exists() else [folder]
    while missing and not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    return missing


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Say in one line why `target` cannot be written."""
    try:
        yield
    except ReconError:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        reason, mend = REASONS.get(error.errno, (os.strerror(error.errno), "choose another place"))
        raise WriteError(f"{target}: expected to write here, came '{reason}'; {mend}") from error


REASONS = {
    errno.EACCES: ("no permission to write", "change the folder's permissions or choose another one"),
    errno.EPERM: ("no permission to write", "change the folder's permissions or choose another one"),
    errno.EROFS: ("a read-only disk", "choose a folder on another one"),
    errno.ENOSPC: ("no space left on the disk", "free some or choose another disk"),
    errno.EDQUOT: ("disk quota exceeded", "free some space or choose another disk"),
    errno.EFBIG: ("file larger than allowed", "raise the limit (ulimit -f) or choose another disk"),
    errno.ENOTDIR: ("a file where a folder should be", "choose another folder"),
    errno.EEXIST: ("a file where a folder should be", "choose another folder"),
}


def synchronize(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    if os.name != "posix" and path.is_dir():
        return  # only POSIX opens folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
