"""This host and its processes: the host's name, where process ids are comparable, and whether a process runs."""

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
    """The scope in which process ids are comparable: the host, its boot and its pid namespace."""
    parts = [host()]
    with contextlib.suppress(OSError):
        parts.append((PROCESSES / "sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink(PROCESSES / "self/ns/pid"))
    return " ".join(parts)


def start_time(pid: int) -> str | None:
    """When a process in this `pid_scope` started, in ticks since the boot; None for one that has ended.

    Empty text where the system does not report it. A pid that is used again has another start time.
    """
    if not (PROCESSES / "self/stat").exists():
        import psutil  # here, because Linux needs none

        return "" if psutil.pid_exists(pid) else None
    try:
        fields = (PROCESSES / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()
