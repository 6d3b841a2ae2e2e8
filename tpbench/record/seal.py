"""Checksums: a JSON object whose last member is the SHA-256 of all the text before it.

    {"recipe": "digits", ..., "schema": 2, "checksum": "0123456789abcdef"}

The text is hashed, not the values, so that checking takes microseconds; a file that an editor has reformatted counts as
changed. Files of earlier versions carry no checksum and are accepted without one.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from tpbench.errors import UsageError
from tpbench.record.files import replace_bytes

NAME = b'"checksum"'
END = re.compile(rb'"checksum":\s*"([0-9a-f]{16})"\s*\}\s*')
CHANGED = "it was changed since it was written"


def seal(text: str) -> bytes:
    """The JSON text of an object with its checksum as the last member."""
    content = text.encode("utf-8", errors="replace").rstrip().removesuffix(b"}").rstrip()
    comma = b"" if content == b"{" else b", "
    return content + comma + b'"checksum": "' + _digest(content) + b'"}'


def unseal(text: bytes) -> tuple[bytes, bool]:
    """The JSON text without its checksum, and whether there was one.

    Raises ValueError where the checksum is not that of the text.
    """
    at = text.rfind(NAME)
    end = END.fullmatch(text, at) if at >= 0 else None
    if end is None:
        return text, False
    content = text[:at].rstrip().removesuffix(b",")
    if _digest(content) != end[1]:
        raise ValueError(CHANGED)
    return content + b"}", True


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest()[:16].encode("ascii")


def write_json(path: Path, content: dict[str, Any], indent: int | None = None) -> None:
    """Write an object with its checksum, in one step."""
    replace_bytes(path, seal(json.dumps(content, indent=indent)) + b"\n")


def read_content(path: Path) -> bytes:
    """The JSON text of a file without its checksum. Raises ValueError for one that was changed since it was written."""
    return unseal(_one_newline(path.read_bytes()))[0]


def read_json(path: Path) -> dict[str, Any]:
    """An object that `write_json` has written, or one without a checksum.

    Raises ValueError for a file that is no JSON object or was changed since it was written.
    """
    found = json.loads(read_content(path))
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")
    if "checksum" in found:  # not in its place, or not a checksum
        raise ValueError(CHANGED)
    return found


def _one_newline(text: bytes) -> bytes:
    """Line ends as they were written: version control may have turned them into CRLF."""
    return text.replace(b"\r\n", b"\n")


def seal_file(path: Path) -> bool:
    """Add the checksum that a file of an earlier version lacks; whether one was added.

    Raises UsageError for a file that is no JSON object or was changed since it was written.
    """
    try:
        read_json(path)
        text = _one_newline(path.read_bytes())
        if unseal(text)[1]:
            return False
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is corrupt ({error}); delete it") from error
    replace_bytes(path, seal(text.decode("utf-8")) + b"\n")
    return True
