"""Files of public data sets from the Hugging Face hub: fetched once, kept in the hub's own cache, checked when read.

The hub's environment variables apply: HF_ENDPOINT (another server), HF_HOME (where the cache lies) and
HF_HUB_OFFLINE=1 (no network).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from tpbench.errors import DataError

if TYPE_CHECKING:
    from tpbench.recipe import Data

SIDES = ("train", "test")
SHA256 = 64  # hexadecimal digits


def parquet_path(data: Data, side: str) -> Path:
    """Where the images of a side ("train" or "test") lie: ROOT/SIDE.parquet, or else the file of the recipe's hub.

    Raises DataError for a file that is nowhere, cannot be fetched or was damaged.
    """
    path = Path(data.root) / f"{side}.parquet"
    if path.is_file():
        return path
    if not data.hub:
        raise DataError(f"data file {path} does not exist")
    repository, _, folder = data.hub.rpartition("/")
    name = f"{folder}/{side}-00000-of-00001.parquet"
    found = _fetched(data, repository, name)
    _check(found)
    return found


def _fetched(data: Data, repository: str, name: str) -> Path:
    """The file in the hub's cache, downloaded with a bar of progress where it is not there yet."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    where = {"repo_id": repository, "filename": name, "repo_type": "dataset"}
    try:
        return Path(hf_hub_download(**where, local_files_only=True))
    except LocalEntryNotFoundError:
        pass  # it is not in the cache
    try:
        return Path(hf_hub_download(**where))
    except Exception as error:  # whatever the hub and the network raise
        files = " and ".join(f"{side}.parquet" for side in SIDES)
        raise DataError(
            f"data set {repository} cannot be fetched from the hub ({_reason(error)}): put its {files} from folder"
            f" {name.partition('/')[0]} into {data.root or '.'}, or name their folder with --data"
        ) from error


def _reason(error: Exception) -> str:
    """The first sentence of an error of the hub, or of its cause if it has one."""
    cause = error.__cause__ or error
    return " ".join(str(cause).split()).partition(". ")[0][:160] or type(cause).__name__


def _check(path: Path) -> None:
    """Raise DataError for a file whose content does not match its name in the cache.

    The cache names large files by their SHA-256 checksum, as the hub states it.
    """
    blob = path.resolve()
    if len(blob.name) != SHA256:  # a small file, or a cache without links
        return
    with blob.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    if checksum != blob.name:
        raise DataError(f"data file {path} is damaged (checksum {checksum[:12]}, not {blob.name[:12]}); delete {blob}")
