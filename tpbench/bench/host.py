"""This host and its processes: what tells one host from another, and whether a process still runs."""

from __future__ import annotations

import contextlib
import os
import socket
from functools import cache
from pathlib import Path

PROCESSES = Path("/proc")


def host() -> str:
    """The host's name."""
    return socket.gethostname()


@cache
def pid_scope() -> str:
    """Where pids of this process's kind can be compared: the host, its boot and the namespace of pids."""
    parts = [host()]
    with contextlib.suppress(OSError):
        parts.append((PROCESSES / "sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink(PROCESSES / "self/ns/pid"))
    return " ".join(parts)


def start_time(pid: int) -> str | None:
    """When a process of this place started, in ticks since the boot; None for one that has ended.

    An empty text where the system does not say. A pid that is used again has another start.
    """
    if not (PROCESSES / "self/stat").exists():
        import psutil  # here, because Linux needs none

        return "" if psutil.pid_exists(pid) else None
    try:
        fields = (PROCESSES / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()
