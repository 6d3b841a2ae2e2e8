"""Standard output for one JSON document: whatever else is printed meanwhile goes to standard error."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def stdout_to_stderr(asked: bool) -> Iterator[None]:
    """Within the block, if asked, send standard output to standard error, also that of processes started meanwhile."""
    if not asked:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def print_document(document: dict[str, Any]) -> None:
    """Print the document. Raises ValueError for NaN and infinity, which JSON does not have."""
    print(json.dumps(document, indent=1, allow_nan=False))
