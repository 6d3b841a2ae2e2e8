"""Files that are replaced in one step, and the small file with the id of a checkout."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from tpbench.errors import UsageError


def replace_text(path: Path, text: str) -> None:
    """Replace a file's text in one step, so that a reader sees the old one or the new one."""
    replace_bytes(path, text.encode("utf-8"))


def replace_bytes(path: Path, content: bytes) -> None:
    """The same for any content."""
    replace_parts(path, [content])


def replace_parts(path: Path, parts: Iterable[bytes]) -> None:
    """The same for content that comes in parts. What a killed writer leaves behind is named .NAME.PROCESS.part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Delete what killed writers left anywhere under a folder that nobody else writes to."""
    for place, _, names in os.walk(folder):
        for name in names:
            if name.startswith(".") and name.endswith(".part"):
                Path(place, name).unlink(missing_ok=True)


def host_id(work: Path) -> str:
    """Four hexadecimal digits kept in the work folder: two checkouts on equal machines never mix their records.

    Raises UsageError where the file holds anything else, because a wrong name would measure every cell again.
    """
    path = work / "host-id"
    if not path.exists():
        replace_text(path, secrets.token_hex(2) + "\n")
    content = path.read_bytes().strip()
    if not re.fullmatch(rb"[0-9a-f]{4}", content):
        raise UsageError(
            f"{path} is damaged: it must hold the four hexadecimal digits at the end of this machine's name in"
            " records/; write them back, or delete the file to begin as a new machine"
        )
    return content.decode("ascii")
