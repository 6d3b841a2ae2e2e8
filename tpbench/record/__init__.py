"""Records: one line of JSON for every cell (method, schedule, seed) on one machine. No torch, no pandas.

OUT/records/MACHINE/METHOD_SCHEDULE_seedS.json   what was measured, one file a cell while a run is unfinished
OUT/records/MACHINE.jsonl                        the same of a finished run, one line a record; committed
OUT/spectra/MACHINE/seedS.json                   what attention does to frequencies on a seed's base; committed
OUT/starts/MACHINE/seedS.json                    what starts and iterations do to its clustering objective; committed
OUT/budgets/MACHINE/METHOD_SCHEDULE.json         counts found by measuring latency, with every sample; committed
OUT/learned/SEARCH.json                          counts that a search has learned; committed
OUT/tables, OUT/figures                          made from records alone, one set per machine
OUT/work/                                        base weights, checkpoints, claims, the host id; never committed

All of these but tables and figures end with a checksum of their own text; see `tpbench.record.seal`.
"""

from tpbench.record.files import host_id, replace_bytes, replace_text, sweep
from tpbench.record.lines import read, read_budget, read_learned, read_spectrum, write
from tpbench.record.measured import Gains, Learned, Profile, Spectrum
from tpbench.record.schema import (
    READABLE,
    SCHEMA,
    Budget,
    Code,
    PackedOutcomes,
    Record,
    Samples,
    Seeds,
    checked,
    row_name,
    slug,
)
from tpbench.record.seal import read_json, seal, seal_file, unseal, write_json
from tpbench.record.store import Store, read_all, without_garbage_collection

__all__ = [
    "READABLE",
    "SCHEMA",
    "Budget",
    "Code",
    "Gains",
    "Learned",
    "PackedOutcomes",
    "Profile",
    "Record",
    "Samples",
    "Seeds",
    "Spectrum",
    "Store",
    "checked",
    "host_id",
    "read",
    "read_all",
    "read_budget",
    "read_json",
    "read_learned",
    "read_spectrum",
    "replace_bytes",
    "replace_text",
    "row_name",
    "seal",
    "seal_file",
    "slug",
    "sweep",
    "unseal",
    "without_garbage_collection",
    "write",
    "write_json",
]
