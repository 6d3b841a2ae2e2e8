"""Files in or beside a results folder that the page shows or links: pictures, traces, sessions, claims."""

from __future__ import annotations

import json
import os
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from tpbench.errors import UsageError
from tpbench.report.layout import significant

MOST_BYTES = 2_000_000  # of pictures inside the page; further pictures are linked
QUALITY = 85  # of WebP
TRACES = "*.pt.trace.json"


class Picture(NamedTuple):
    """A picture of `tpbench show`. link: the address of its file; source: its data as a URL, "" if only linked."""

    name: str
    link: str
    source: str


class Claim(NamedTuple):
    """One of the paper's claims with its readings. verdicts: the number of counting readings by verdict."""

    number: int
    statement: str
    verdicts: str
    readings: list[dict[str, str]]


def link(path: Path, page: Path) -> str:
    """The address of a file, relative to the page."""
    return quote(os.path.relpath(path.resolve(), page.resolve().parent).replace(os.sep, "/"))


# ------------------------------------------------------------------------------------------ pictures


def pictures(folders: Sequence[Path], page: Path) -> list[Picture]:
    """The pictures of all folders; the first ones, up to MOST_BYTES, with their data as WebP."""
    found = []
    left = MOST_BYTES
    for folder in folders:
        for path in sorted((folder / "pictures").glob("*.png")):
            data = compressed(path)
            inside = len(data) <= left
            if inside:
                left -= len(data)
            source = f"data:image/webp;base64,{b64encode(data).decode()}" if inside else ""
            found.append(Picture(path.stem, link=link(path, page), source=source))
    return found


def compressed(path: Path) -> bytes:
    """A picture as WebP. Raises UsageError with the path of a picture that cannot be read."""
    from PIL import Image

    packed = BytesIO()
    try:
        Image.open(path).convert("RGB").save(packed, format="webp", quality=QUALITY)
    except (OSError, ValueError, SyntaxError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"picture {path} cannot be read ({reason}); delete it or draw it again") from error
    return packed.getvalue()


# ------------------------------------------------------------------------------------------ links


def profiles(folders: Iterable[Path], page: Path) -> list[tuple[str, str]]:
    """(description, address) of the timing sessions' tables and of the traces of `tpbench profile --trace`."""
    found = []
    for folder in folders:
        for path in sorted((folder / "timing").glob("*.json")):
            best = path.with_suffix(".md") if path.with_suffix(".md").exists() else path
            found.append((f"timing session of {path.stem}", link(best, page)))
        for path in sorted(folder.rglob(TRACES)):
            name = path.relative_to(folder).as_posix().removesuffix(TRACES.removeprefix("*"))
            found.append((f"trace {name}", link(path, page)))
    return found


# ------------------------------------------------------------------------------------------ claims


def claims(folders: Iterable[Path], page: Path) -> tuple[list[Claim], list[tuple[str, str]]]:
    """The claims in claims.json in or beside each folder, and (text, address) of the pages that explain them."""
    paths = [path for folder in folders for path in (folder / "claims.json", folder.resolve().parent / "claims.json")]
    paths = list(dict.fromkeys(path.resolve() for path in paths if path.exists()))
    found = [claim for path in paths for claim in _claims(path)]
    pages = [path.with_suffix(".md") for path in paths]
    return found, [(short_name(path), link(path, page)) for path in pages if path.exists()]


def short_name(path: Path) -> str:
    """The name of a file with its folder, as the page shows it."""
    return f"{path.parent.name}/{path.name}"


def _claims(path: Path) -> list[Claim]:
    try:
        readings = json.loads(path.read_text(encoding="utf-8"))
        numbers = dict.fromkeys(reading["claim"] for reading in readings)
        return [_claim([reading for reading in readings if reading["claim"] == number]) for number in numbers]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"claims {path} cannot be read ({type(error).__name__}: {error}); `tpbench claims` writes them again"
        ) from error


def _claim(readings: Sequence[dict[str, Any]]) -> Claim:
    counted = Counter(reading["verdict"] for reading in readings if reading["counts"])
    verdicts = ", ".join(f"{verdict} {number}" for verdict, number in sorted(counted.items()))
    return Claim(
        number=readings[0]["claim"],
        statement=readings[0]["statement"],
        verdicts=verdicts or "no reading that counts",
        readings=[_reading(reading) for reading in readings],
    )


def _reading(reading: dict[str, Any]) -> dict[str, str]:
    low = reading["low"]
    high = reading["high"]
    bounds = "" if low is None or high is None else f" [{significant(low, 3)}, {significant(high, 3)}]"
    value = "" if reading["value"] is None else f"{significant(reading['value'], 3)}{bounds}"
    return {
        "test": reading["test"],
        "study": ", ".join(filter(None, (reading["study"], reading["schedule"]))),
        "paper": reading["paper"] or "not given",
        "measured": f"{value} {reading['unit']}" if value else "not measured",
        "verdict": reading["verdict"],
        "remark": reading["remark"],
    }
