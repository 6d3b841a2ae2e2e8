"""One record, budget or other measured value as text: JSON with a checksum, and back."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tpbench.errors import UsageError
from tpbench.record.files import replace_bytes
from tpbench.record.measured import Learned, Spectrum
from tpbench.record.schema import READABLE, SCHEMA, Budget, Record, checked
from tpbench.record.seal import read_content, seal, unseal


def parse_record(text: bytes, where: str) -> tuple[Record, bool]:
    """A record from its text, and whether it carries a checksum.

    Raises UsageError that names the place for a record that was changed since it was written, that is incomplete,
    or whose schema this version does not know.
    """
    try:
        content, sealed = unseal(text)
        record = checked(Record, content)
    except (ValueError, RecursionError) as error:
        schema = _schema(text)
        if not isinstance(schema, int) or schema in READABLE:
            raise UsageError(
                f"record {where} is corrupt ({type(error).__name__}: {error}); delete it to measure its cell again"
            ) from error
    else:
        schema = record.schema
        if schema in READABLE:
            return record, sealed
    raise UsageError(f"record {where} has schema {schema}, this version reads up to {SCHEMA}")


def _schema(text: bytes) -> Any:
    """The schema that a text names, if it is JSON at all: a later version's record is not corrupt."""
    try:
        return json.loads(text)["schema"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def sealed_line(text: bytes) -> bytes:
    """A record's text as one line with a checksum. A text that already is one stays the same, byte for byte."""
    content, sealed = unseal(text)
    stripped = text.strip()
    if sealed and b"\n" not in stripped:
        return stripped + b"\n"
    return seal(json.dumps(json.loads(content))) + b"\n"


def read(path: Path) -> Record:
    """A record from a file of its own. Raises UsageError that names a corrupt file or one of another schema."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UsageError(f"record {path} cannot be read ({error.strerror})") from error
    return parse_record(text, str(path))[0]


def read_budget(path: Path) -> Budget:
    """A budget from its file. Raises UsageError that names a file that cannot be read."""
    try:
        return checked(Budget, unseal(path.read_bytes())[0])
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"budget {path} is corrupt ({type(error).__name__}: {error}); delete it to solve it again"
        ) from error


def read_spectrum(path: Path) -> Spectrum:
    """A base's spectrum from its file. Raises UsageError that names a file that cannot be read."""
    try:
        return checked(Spectrum, read_content(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"spectrum {path} is corrupt ({type(error).__name__}: {error}); delete it") from error


def read_learned(path: Path) -> Learned:
    """What a search has learned, from its file. Raises UsageError that names a file that cannot be read."""
    try:
        return checked(Learned, read_content(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"learned schedule {path} cannot be read ({type(error).__name__}: {error})") from error


def write(path: Path, content: Record | Budget | Spectrum | Learned, indent: int | None = None) -> None:
    """Write a typed value as JSON with a checksum, in one step, so that no reader ever sees half of it.

    Lone surrogates, which file names in an error message may contain, become question marks: no JSON reader takes them.
    """
    replace_bytes(path, seal(json.dumps(asdict(content), ensure_ascii=False, indent=indent)) + b"\n")
