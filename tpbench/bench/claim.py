"""Claims: how workers, on one machine or on several with a shared file system, divide a folder's jobs among them.

(The paper's claims are in `tpbench.claims`.)

OUT/work/claims/JOB.1.json says which process works on a job. Its modification time is its heartbeat. Creating the file
decides who gets the job; this is atomic on NFS too, where locks may not be. A claim is dead when its process is
gone from this host, or when a process has watched it for EXPIRY seconds without a heartbeat. Clocks of different hosts
are never compared. Creating JOB.2.json takes over a dead JOB.1.json: the highest number is valid.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from tpbench.bench.host import host, pid_scope, start_time
from tpbench.errors import OutOfTime
from tpbench.record import checked, slug

BEAT = 5.0  # seconds between two heartbeats
EXPIRY = 60.0  # seconds of watching without a heartbeat; more than a file server's pause or a client's cache of it
BETWEEN_LOOKS = 5.0  # longer gaps between two looks count as this much: the watcher or the server may have stood still
FOLDER = "folder"  # the job of a process that holds the folder
NAME = re.compile(r"(.+)\.(\d+)\.json")


class ClaimLost(OutOfTime):
    """Another worker took over this worker's job, because its heartbeat had stopped."""


@dataclass(frozen=True)
class Holder:
    """The holder of a claim, as read from its file."""

    job: str
    host: str
    pid: int
    start: str  # when the process started; a later process with the same pid is another one
    place: str  # where pids can be compared: one boot of one host, one namespace of pids
    command: int = 0  # pid of the command whose workers these are
    recipe: str = ""  # the digest
    alone: bool = False  # whether nothing else may run on the host meanwhile
    claimed: str = ""  # for readers only
    token: str = ""  # makes every claim unique

    def __str__(self) -> str:
        return f"{self.host}, process {self.pid}"

    @property
    def on_this_host(self) -> bool:
        """Whether this process can see the holder's process."""
        return self.place == pid_scope()


UNKNOWN = Holder("", host="an unknown host", pid=0, start="", place="")


class Claim:
    """A claim that this process holds, with a thread for its heartbeat."""

    def __init__(self, path: Path, content: bytes):
        """Create the file. Raises FileExistsError if another process was faster."""
        self.path = path
        self.content = content
        self.lost = False
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "xb") as file:
            try:
                file.write(content)
                file.flush()
            except BaseException:  # a full disk, or a signal
                path.unlink()
                raise
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    def release(self) -> None:
        """Stop the heartbeat and delete the file, if it still belongs to this claim, even if a signal interrupts."""
        try:
            self._end()
        except (KeyboardInterrupt, SystemExit):
            self._end()
            raise

    def _end(self) -> None:
        self._ended.set()
        self._heart.join()
        with contextlib.suppress(OSError):  # a claim that cannot be deleted dies with this process
            if self.path.read_bytes() == self.content:
                self.path.unlink()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                if self.path.read_bytes() != self.content:
                    raise FileNotFoundError
                os.utime(self.path)
            except FileNotFoundError:
                self.lost = True
                return
            except OSError:  # the file server is unreachable, also for everybody who could take the job over
                continue


@dataclass
class Watched:
    """What this process has observed of another host's claim."""

    beat: int  # the file's time of change, in nanoseconds
    looked: float  # when, by this process's monotonic clock
    still: float = 0.0  # seconds of watching without a heartbeat
    beaten: bool = False  # whether a heartbeat was seen


class Claims:
    """The claims of a results folder, as one process sees them."""

    def __init__(self, out: Path, recipe: str = ""):
        self.folder = out / "work" / "claims"
        self.recipe = recipe
        self.command = os.getpid()
        self._watched: dict[str, Watched] = {}

    def holders(self) -> dict[str, Holder]:
        """The holder of every living claim, by the key of its job."""
        newest: dict[str, int] = {}
        for key, number in self._files():
            newest[key] = max(number, newest.get(key, 0))
        found = {key: self._holder(self._path(key, number)) for key, number in newest.items()}
        return {key: holder for key, holder in found.items() if holder is not None}

    def others(self) -> list[Holder]:
        """The holders of living claims in other processes."""
        return [holder for holder in self.holders().values() if not (holder.on_this_host and holder.pid == os.getpid())]

    def take(self, job: str, alone: bool = False) -> Claim | None:
        """Claim a job; None if a living process holds it or was faster."""
        key = key_of(job)
        before = {number: self._read(self._path(key, number))[0] for number in self._numbers(key)}
        newest = max(before, default=0)
        if newest and self._holder(self._path(key, newest)) is not None:
            return None
        try:
            claim = Claim(self._path(key, newest + 1), self._content(job, alone))
        except FileExistsError:
            return None
        try:
            # First write, then read: of two processes that created different numbers, at least one sees the other's.
            for number in self._numbers(key):
                if number == newest + 1:  # the claim just made
                    continue
                if number > newest or self._read(self._path(key, number))[0] != before.get(number):
                    claim.release()
                    return None
            for number in before:
                self._path(key, number).unlink(missing_ok=True)
        except BaseException:
            claim.release()
            raise
        return claim

    def delete_dead(self) -> None:
        """Delete the claims of dead processes."""
        living = self.holders()
        for key in {key for key, _ in self._files()} - living.keys():
            for number in sorted(self._numbers(key)):
                holder = self._parsed(self._read(self._path(key, number))[0])
                claim = self.take(holder.job) if key_of(holder.job) == key else None
                if claim is not None:
                    claim.release()

    def is_certain(self, holder: Holder) -> bool:
        """Whether the holder of a living claim is certainly alive; on another host, only after a heartbeat was seen."""
        watched = self._watched.get(holder.token)
        return holder.on_this_host or (watched is not None and watched.beaten)

    def _content(self, job: str, alone: bool) -> bytes:
        holder = Holder(
            job=job,
            host=host(),
            pid=os.getpid(),
            start=start_time(os.getpid()) or "",
            place=pid_scope(),
            command=self.command,
            recipe=self.recipe,
            alone=alone,
            claimed=datetime.now(UTC).isoformat(timespec="seconds"),
            token=secrets.token_hex(8),
        )
        return json.dumps(asdict(holder)).encode() + b"\n"

    def _files(self) -> Iterator[tuple[str, int]]:
        """The keys and numbers of all claims."""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return
        for match in (NAME.fullmatch(name) for name in names):
            if match is not None:
                yield match[1], int(match[2])

    def _numbers(self, key: str) -> list[int]:
        """The numbers of all claims of one job, living or dead."""
        return [number for found, number in self._files() if found == key]

    def _path(self, key: str, number: int) -> Path:
        return self.folder / f"{key}.{number}.json"

    def _holder(self, path: Path) -> Holder | None:
        """The holder of a claim; None where it is dead or gone."""
        text, beat = self._read(path)
        if text is None:
            return None
        holder = self._parsed(text)
        if holder.on_this_host:
            return holder if start_time(holder.pid) == holder.start else None
        return holder if self._fresh(holder.token or path.name, beat) else None

    @staticmethod
    def _read(path: Path) -> tuple[bytes | None, int]:
        """The text of a claim and its heartbeat. Opening the file makes an NFS client ask the server."""
        try:
            with path.open("rb") as file:
                return file.read(), os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return None, 0

    @staticmethod
    def _parsed(text: bytes | None) -> Holder:
        try:
            return checked(Holder, text or b"")
        except ValueError:  # being written, or incomplete because a machine went down
            return UNKNOWN

    def _fresh(self, name: str, beat: int) -> bool:
        """Whether another host's claim has a heartbeat, as far as this process has observed."""
        now = time.monotonic()
        known = self._watched.get(name)
        if known is None or known.beat != beat:
            self._watched[name] = Watched(beat, looked=now, beaten=known is not None)
            return True
        known.still += min(now - known.looked, BETWEEN_LOOKS)
        known.looked = now
        return known.still < EXPIRY


def key_of(job: str) -> str:
    """A job's name as part of a file name, different for every job."""
    return f"{slug(job)[:100]}-{hashlib.sha256(job.encode()).hexdigest()[:8]}"
