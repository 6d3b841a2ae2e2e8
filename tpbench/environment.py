"""What a measurement ran on: the machine, the packages, the code."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpbench.errors import UsageError
from tpbench.record import slug

if TYPE_CHECKING:
    import torch

PACKAGES = ("tpbench", "torch", "torchvision", "timm", "deepspeed", "numpy", "triton", "numba")
GPU_FILES = (
    "/dev/nvidiactl",
    "/dev/nvidia0",
    "/dev/kfd",
    "/dev/dxg",
)  # device files of the GPU drivers that torch supports


def device(name: str) -> torch.device:
    """The device with this name: auto (the GPU if there is one), cpu or cuda.

    Under torchrun, each rank has a GPU of its own. Raises UsageError for an unknown name, and for cuda without a GPU.
    """
    import torch  # here and below, because a run with nothing left to do does not load it

    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"unknown device {name!r}; known: auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA device is available; use --device cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def prepare_process(workers: int, name: str) -> None:
    """Check the device, and limit this process to one thread if several workers of one thread each share the CPU.

    Raises UsageError as `device` does.
    """
    import torch

    if device(name).type == "cpu" and workers > 1:
        torch.set_num_threads(1)


def make_deterministic() -> None:
    """Make torch use only deterministic algorithms in this process. Call this before CUDA is initialised.

    An operator without one raises RuntimeError. CUBLAS_WORKSPACE_CONFIG, which cuBLAS needs, is set if it is not yet.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def dtype(name: str, where: torch.device) -> torch.dtype:
    """The dtype with this name: auto (bfloat16 on a GPU, float32 on a CPU), float32 or bfloat16. Raises UsageError."""
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name == "auto":
        return torch.bfloat16 if where.type == "cuda" else torch.float32
    if name not in known:
        raise UsageError(f"unknown dtype {name!r}; known: auto, {', '.join(known)}")
    return known[name]


def machine(where: torch.device, host: str) -> str:
    """The machine's name in file names: the GPU, or the CPU and its cores, and this checkout's host id."""
    if where.type == "cuda":
        import torch

        return f"{slug(torch.cuda.get_device_name(where))}-{host}"
    return _cpu_machine(host)


def machine_of(name: str, host: str) -> str:
    """The machine's name, given a device's name: auto, cpu or cuda. Loads torch only if there may be a GPU.

    On Linux there is no GPU without a device file of its driver.
    """
    no_gpu = sys.platform == "linux" and not any(Path(file).exists() for file in GPU_FILES)
    if name == "cpu" or (name == "auto" and no_gpu):
        return _cpu_machine(host)
    return machine(device(name), host)


def _cpu_machine(host: str) -> str:
    return f"{slug(cpu_name())}-{cores()}c-{host}"


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """The processor's model name, as the system reports it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def describe(where: torch.device, chosen: torch.dtype) -> dict[str, Any]:
    """The hardware, threads, dtype and package versions of a measurement, as a record keeps them.

    Records without `deterministic` are older than this entry and were measured with any algorithms.
    """
    import torch

    return {
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else cpu_name(),
        "kind": where.type,
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "ranks": int(os.environ.get("WORLD_SIZE", "1")),
        "dtype": str(chosen).removeprefix("torch."),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "packages": {name: version_of(name) for name in PACKAGES},
    }


def git() -> dict[str, Any]:
    """The commit that the code runs from, and whether files were changed since; empty outside a checkout."""
    folder = Path(__file__).parent

    def ask(*words: str) -> str | None:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        commit = ask("rev-parse", "HEAD")
        changed = ask("status", "--porcelain", "--", ":/tpbench", ":/baselines", str(folder))
    except OSError:  # git is not installed
        return {}
    return {} if commit is None else {"commit": commit, "changed": bool(changed)}


def version_of(name: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
