"""Messages on records that cannot be read or carry no checksum, shared by the verbs that read records."""

from __future__ import annotations

from pathlib import Path

from tpbench.cli.exit_codes import DONE, FAILED, say


def report_unreadable(folder: Path) -> int:
    """Name every record of a results folder that cannot be read; return FAILED if there is one, otherwise DONE.

    Raises UsageError if no record can be read. One more line says how many records carry no checksum.
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
