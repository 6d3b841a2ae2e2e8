"""The processes that train together: those that torchrun started, or only this one.

The launcher of DeepSpeed, and any other that sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, does what
torchrun does.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from types import ModuleType

import torch


def rank() -> int:
    """This process's number among those of torchrun; 0 without it."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def barrier() -> None:
    """Return when every rank has called this."""
    if world_size() > 1:
        torch.distributed.barrier()


def rank_0_answer(answer: bool, device: torch.device) -> bool:
    """Return rank 0's answer on every rank, as `rank_0_number` does."""
    return bool(rank_0_number(int(answer), device))


def rank_0_number(number: int, device: torch.device) -> int:
    """Return rank 0's number on every rank. All ranks must call this; the number travels through `device`."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return number
    sent = torch.tensor(number, device=device)
    torch.distributed.broadcast(sent, 0)
    return int(sent.item())


def connect(device: torch.device) -> ModuleType:
    """Import DeepSpeed and join the process group: with the other ranks under torchrun, alone otherwise."""
    if device.type == "cuda":
        torch.cuda.set_device(device)  # Triton launches on the current device, wherever its tensors are
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if device.type == "cuda" else "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    first = "deepspeed" not in sys.modules
    with quiet_stdout(), _quiet_children(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        from deepspeed.utils import logger

    if first:  # DeepSpeed logs to standard output, where results belong
        logger.setLevel(logging.ERROR)
        for handler in logger.handlers:
            handler.setStream(sys.stderr)
    # Without this, initialising on a CPU compiles a shared-memory transport for a minute; gloo is enough.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not torch.distributed.is_initialized():
        _join_process_group(device)
        atexit.register(_leave_process_group)
    return deepspeed


def _join_process_group(device: torch.device) -> None:
    # Without the number of the GPU, NCCL guesses it and warns of that.
    transport = {"backend": "nccl", "device_id": device} if device.type == "cuda" else {"backend": "gloo"}
    join = partial(torch.distributed.init_process_group, **transport)
    if "WORLD_SIZE" in os.environ:
        # While the first rank times models or fetches data, the others wait in a broadcast for longer than the default.
        join(timeout=timedelta(days=1))
    else:
        join(store=torch.distributed.HashStore(), rank=0, world_size=1)


def _leave_process_group() -> None:
    """Leave before the interpreter ends, since gloo's threads may otherwise free tensors too late and abort it."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Drop what a library prints to standard output, where only results belong."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def _quiet_children() -> Iterator[None]:
    """Drop the standard error of the compilers that DeepSpeed starts to find out what it could build."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
