"""A results folder as it stood at a commit, read through `git archive`: the working tree is not touched."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tpbench.errors import UsageError


@contextmanager
def folder_at(folder: Path, commit: str) -> Iterator[Path]:
    """A temporary copy of a folder's committed files. The folder itself may be gone from the working tree.

    commit: anything that git takes for one, such as a hash, a branch or HEAD~1. UsageError where git is not installed,
    the folder is in no repository, the commit is unknown or does not hold the folder.
    """
    absolute = folder.absolute()
    there = next(path for path in (absolute, *absolute.parents) if path.is_dir())
    top = Path(_git(there, "rev-parse", "--show-toplevel", why=f"{folder} is in no git repository").decode().strip())
    named = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}")
    found = _git(top, *named, why=f"unknown commit {commit!r}").decode().strip()
    inside = absolute.resolve().relative_to(top.resolve()).as_posix()
    missing = f"commit {commit} does not hold {inside}"
    archive = _git(top, "archive", "--format=tar", found, "--", inside, why=missing)
    with TemporaryDirectory() as scratch:
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(scratch, filter="data")
        yield Path(scratch) / inside


def _git(where: Path, *words: str, why: str) -> bytes:
    """What a git command prints. UsageError with the reason where it fails."""
    try:
        done = subprocess.run(["git", "-C", str(where), *words], capture_output=True, check=False)
    except OSError as error:
        raise UsageError(f"{why}: git is not installed") from error
    if done.returncode:
        raise UsageError(why)
    return done.stdout
