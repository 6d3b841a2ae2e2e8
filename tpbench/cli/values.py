"""Values of flags that several verbs have: batch sizes, names, durations."""

from __future__ import annotations

import re

from tpbench.errors import UsageError

MOST_IMAGES = 1_000_000_000  # no memory holds more in one batch


def batch_sizes(text: str) -> tuple[int, ...]:
    """Read batch sizes: "1,32" is (1, 32). Raises UsageError for anything else."""
    try:
        sizes = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise UsageError(f"--batch-sizes {text!r}: expected whole numbers separated by commas, as in 1,32") from None
    if not sizes or min(sizes) < 1:
        raise UsageError(f"--batch-sizes {text!r}: at least one image is needed")
    if max(sizes) > MOST_IMAGES:
        raise UsageError(f"--batch-sizes {text!r}: at most {MOST_IMAGES} images are possible")
    return sizes


def names(flag: str, text: str) -> tuple[str, ...]:
    """Read names separated by commas, each once. Raises UsageError for none."""
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise UsageError(f"{flag} {text!r} names nothing")
    return found


def seconds(text: str | None) -> float | None:
    """Read a duration: "9m" is 540.0, a number without a unit is seconds. Raises UsageError for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+\.?\d*)\s*([smh]?)", text.strip())
    if match is None or float(match[1]) == 0:
        raise UsageError(f"--time-limit {text!r}: expected a time such as 540s, 9m or 1.5h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]
