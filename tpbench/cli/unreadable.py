"""What the verbs that read records say of those that they could not read, or not check."""

from __future__ import annotations

from pathlib import Path

from tpbench.cli.exit_codes import DONE, FAILED, say


def report_unreadable(folder: Path) -> int:
    """Name every record of a results folder that cannot be read; the exit code: FAILED if there is one.

    The others are reported; where there are none, UsageError is raised. One more line says how many carry no checksum.
    """
    from tpbench.record import Store

    store = Store.of(folder)
    if not len(store):
        store.refuse_bad()
    for bad in store.bad:
        say(bad.reason, FAILED)
    if store.unsealed:
        say(
            f"{store.unsealed} of {len(store)} records in {folder} carry no checksum (an earlier version wrote them)"
            f" and are read as they are; `tpbench pack {folder}` adds it",
            DONE,
        )
    return FAILED if store.bad else DONE
