"""The store: every record of a results folder, read and parsed once in a process.

An unfinished run keeps one file per cell, so that workers never write to the same file. A finished run is packed: one
file per machine and one line per record, sorted by row and seed. If a cell has both, its own file counts, because it is
newer: packing deletes the files of the cells.
"""

from __future__ import annotations

import contextlib
import gc
import marshal
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from tpbench.errors import UsageError
from tpbench.record.files import replace_parts
from tpbench.record.lines import parse_record, sealed_line
from tpbench.record.schema import Record, row_name

REPEATED = ("data", "environment", "git")  # fields whose values most records of a run have in common
FOLDERS = 16  # results folders of which a process remembers the records


class Entry(NamedTuple):
    """A record, and where its text lies: from byte `start` to byte `end` of a file under records/."""

    record: Record
    file: str
    start: int
    end: int
    sealed: bool


class Bad(NamedTuple):
    """A record that cannot be read: whose it is, and why in one line."""

    machine: str
    reason: str


@dataclass(eq=False)
class Part:
    """What one file holds, and the state of the file in which that was read."""

    state: tuple[int, int, int] = (0, 0, 0)  # time of the last change, bytes, inode
    entries: list[Entry] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)


class Store:
    """The records under a results folder, by machine. They are shared and must not be changed.

    Use `Store.of`, which reads only what has changed since this process last asked. `bad` lists the records that cannot
    be read; a caller that goes on without them reports them.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.bad: list[Bad] = []
        self._parts: dict[str, Part] = {}  # by file under records/
        self._index: dict[tuple[str, str, str, int], Entry] = {}  # by machine, method, schedule, seed
        self._common: dict[bytes, Any] = {}

    @staticmethod
    def of(folder: Path) -> Store:
        """The store of a folder as it is now; an empty one where there are no records."""
        store = _opened(folder.resolve())
        store.folder = folder  # as the user wrote it, for messages
        store.scan()
        return store

    def __iter__(self) -> Iterator[Record]:
        """Every record that can be read, by machine; those that are packed come first."""
        return (entry.record for entry in self._index.values())

    def __len__(self) -> int:
        return len(self._index)

    def find(self, machine: str, method: str, schedule: str, seed: int) -> Record | None:
        """The record of a cell, if there is one."""
        entry = self._index.get((machine, method, schedule, seed))
        return None if entry is None else entry.record

    @property
    def machines(self) -> list[str]:
        """The machines that have records."""
        return list(dict.fromkeys(record.machine for record in self))

    @property
    def unsealed(self) -> int:
        """How many records carry no checksum, because an earlier version wrote them."""
        return sum(not entry.sealed for entry in self._index.values())

    def refuse_bad(self, machine: str | None = None) -> None:
        """Raise UsageError for the first record, of a machine or of any, that cannot be read."""
        reasons = [bad.reason for bad in self.bad if machine in (None, bad.machine)]
        if reasons:
            more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
            raise UsageError(reasons[0] + more)

    # -------------------------------------------------------------------------------------- reading

    def scan(self) -> None:
        """Read the files that are new or have changed since the last time."""
        records = str(self.folder / "records")
        # List the cells' files first: a run that packs meanwhile writes the packed file before it deletes them.
        cells = [
            (f"{machine}/{name}", about, machine)
            for machine in _listed(records)
            for name, about in _files(os.path.join(records, machine), ".json")
        ]
        packed = [(name, about, name.removesuffix(".jsonl")) for name, about in _files(records, ".jsonl")]
        with without_garbage_collection():  # packed files first, as the index needs them
            parts = {file: self._part(file, about, machine) for file, about, machine in packed + cells}
        if parts != self._parts:
            self._parts = {file: part for file, part in parts.items() if part is not None}
            self._make_index()

    def _part(self, file: str, about: os.stat_result, machine: str) -> Part | None:
        """What a file holds, read only if it is not known; None where it has vanished since it was listed."""
        known = self._parts.get(file)
        if known is not None and known.state == _state(about):
            return known
        part = Part(_state(about))
        try:
            self._read(file, machine, part)
        except FileNotFoundError:
            return None
        except OSError as error:
            reason = f"record {self._path(file)} cannot be read ({error.strerror})"
            part.bad.append(Bad(machine, reason))
        return part

    def _read(self, file: str, machine: str, part: Part) -> None:
        packed = file.endswith(".jsonl")
        path = self._path(file)
        with open(path, "rb") as content:
            end = 0
            texts = content if packed else [content.read()]  # a packed file has one record per line
            for number, text in enumerate(texts, start=1):
                start = end
                end += len(text)
                where = f"{path} line {number}" if packed else path
                try:
                    record, sealed = parse_record(text, where)
                    if record.machine != machine:
                        raise UsageError(f"record {where} is of machine {record.machine}, and lies under {machine}")
                    part.entries.append(
                        Entry(record=self._shared(record), file=file, start=start, end=end, sealed=sealed)
                    )
                except UsageError as error:
                    part.bad.append(Bad(machine, str(error)))

    def _path(self, file: str) -> str:
        return os.path.join(self.folder, "records", file)

    def _shared(self, record: Record) -> Record:
        """The record, with values that other records have too stored once: that saves half of its memory."""
        for name in REPEATED:
            value = getattr(record, name)
            setattr(record, name, self._common.setdefault(_as_bytes(value), value))
        if "layers" in record.macs:
            layers = record.macs["layers"]
            record.macs["layers"] = self._common.setdefault(_as_bytes(layers), layers)
        return record

    def _make_index(self) -> None:
        """Make the index, machine by machine; a cell's own file takes the place of its packed record."""
        self._index = {}
        self.bad = [bad for part in self._parts.values() for bad in part.bad]
        entries = [entry for part in self._parts.values() for entry in part.entries]
        for entry in sorted(entries, key=lambda entry: entry.record.machine):  # stable: packed ones stay first
            record = entry.record
            key = (record.machine, record.method, record.schedule, record.seed)
            before = self._index.get(key)
            if before is None or (before.file.endswith(".jsonl") and entry.file.endswith(".json")):
                self._index[key] = entry
            else:
                cell = f"{record.method} {record.schedule} seed {record.seed}"
                reason = f"record {self._path(entry.file)} holds {cell}, as {before.file} does; delete one"
                self.bad.append(Bad(record.machine, reason))

    # -------------------------------------------------------------------------------------- packing

    def pack(self, machine: str) -> Path:
        """Put all records of a machine into one file, one line a record, sorted by row and seed; return its path.

        The content of the records stays the same; one without a checksum gets one. The caller must hold the folder.
        Raises UsageError, and packs nothing, if a record of the machine cannot be read.
        """
        self.refuse_bad(machine)
        packed = f"{machine}.jsonl"
        path = self.folder / "records" / packed
        entries = [entry for entry in self._index.values() if entry.record.machine == machine]
        entries.sort(key=lambda entry: (row_name(entry.record.method, entry.record.schedule), entry.record.seed))
        if all(entry.file == packed and entry.sealed for entry in entries):
            return path
        part = Part()
        replace_parts(path, self._packed(entries, packed, part))
        part.state = _state(path.stat())
        for cell in {entry.file for entry in entries} - {packed}:
            os.unlink(self._path(cell))
            del self._parts[cell]
        with contextlib.suppress(OSError):  # where something else lies in it
            (self.folder / "records" / machine).rmdir()
        self._parts = {packed: part} | {file: own for file, own in self._parts.items() if file != packed}
        self._make_index()
        return path

    def _packed(self, entries: list[Entry], file: str, part: Part) -> Iterator[bytes]:
        """The lines of a packed file, while noting in a part what stands where."""
        end = 0
        for entry, text in zip(entries, self._texts(entries)):
            packed = sealed_line(text)
            start = end
            end += len(packed)
            part.entries.append(Entry(record=entry.record, file=file, start=start, end=end, sealed=True))
            yield packed

    def _texts(self, entries: list[Entry]) -> Iterator[bytes]:
        """The texts of records, in their order. A packed file stays open meanwhile."""
        with contextlib.ExitStack() as stack:
            packed = {}
            for entry in entries:
                path = self._path(entry.file)
                if entry.file.endswith(".json"):
                    yield Path(path).read_bytes()
                    continue
                if path not in packed:
                    packed[path] = stack.enter_context(open(path, "rb"))
                packed[path].seek(entry.start)
                yield packed[path].read(entry.end - entry.start)


def _as_bytes(value: Any) -> bytes:
    """The same bytes for the same value out of JSON, whichever objects it is made of; faster than `repr`."""
    return marshal.dumps(value, 2)  # later versions depend on how often an object is referred to


@lru_cache(maxsize=FOLDERS)
def _opened(folder: Path) -> Store:
    return Store(folder)


def read_all(folder: Path) -> list[Record]:
    """Every record under a results folder, by machine. Raises UsageError that names one that cannot be read.

    `Store.of(folder)` has the others all the same.
    """
    if not (folder / "records").is_dir():
        raise UsageError(f"{folder} holds no records")
    store = Store.of(folder)
    store.refuse_bad()
    return list(store)


def _listed(folder: str) -> list[str]:
    """The names in a folder, sorted; none where there is no folder."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _files(folder: str, ending: str) -> Iterator[tuple[str, os.stat_result]]:
    """The files in a folder whose names end so, sorted, with their state; hidden ones are half-written."""
    for name in _listed(folder):
        if name.endswith(ending) and not name.startswith("."):
            with contextlib.suppress(FileNotFoundError):
                yield name, os.stat(os.path.join(folder, name))


def _state(about: os.stat_result) -> tuple[int, int, int]:
    return about.st_mtime_ns, about.st_size, about.st_ino


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Switch off garbage collection: parsing makes many objects and no garbage, and the search would take longer."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
