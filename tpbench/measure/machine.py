"""Facts that determine a machine's speed: instruction sets, clock policy, drivers and load."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

FLAGS = re.compile(r"amx|avx|fma|sse4_2|f16c|asimd|sve|sme|bf16|i8mm")
CPUINFO = Path("/proc/cpuinfo")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
DRIVER = Path("/proc/driver/nvidia/version")


def facts(where: torch.device) -> dict[str, Any]:
    """The CPU's instruction sets for arithmetic, threads and governor; for a GPU also driver, CUDA and cuDNN.

    A value is None if the system does not tell it.
    """
    report = {
        "cpu_flags": cpu_flags(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "governor": line_of(GOVERNOR),
    }
    if where.type == "cuda":
        report |= {
            "driver": line_of(DRIVER),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "capability": list(torch.cuda.get_device_capability(where)),
        }
    return report


def cpu_flags() -> list[str]:
    """The flags of /proc/cpuinfo that name vector and matrix instructions; empty if there is no such file."""
    if not CPUINFO.exists():
        return []
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", CPUINFO.read_text(), re.MULTILINE)
    return sorted(flag for flag in found[1].split() if FLAGS.search(flag)) if found else []


def line_of(path: Path) -> str | None:
    """The first line of a file; None if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").splitlines()[0].strip()
    except (OSError, IndexError):
        return None


def load() -> float | None:
    """The number of runnable processes, mean over the last minute; None if the system does not tell it."""
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None
