"""This host and its processes: the host's name, where process ids are comparable, and whether a process runs."""

from __future__ import annotations

import contextlib
import os
import socket
from functools import cache
from pathlib import Path

PROCESSES = Path("/proc")
# Places in /proc/PID/stat, counted from 0 after the command's name; see proc(5).
STATE = 0
START_TIME = 19


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
        stat = (PROCESSES / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    _, _, after_name = stat.rpartition(b")")  # the command's name stands in brackets and may contain brackets itself
    fields = after_name.split()
    ended = fields[STATE] in (b"Z", b"X")  # a zombie, or dead
    return None if ended else fields[START_TIME].decode()
