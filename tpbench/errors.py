"""The errors that tpbench raises. Each has a message of one line that a user can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(ValueError):
    """The request cannot be carried out as given: unknown name, unreachable budget, wrong folder (exit code 2)."""


class ScheduleError(UsageError):
    """A budget that cannot be reached, or a schedule that cannot be read."""


class Unreachable(ScheduleError):
    """A sound budget that one method cannot meet; the message names the nearest that it can."""


class UnsupportedModel(UsageError):
    """A model whose tokens cannot be reduced without changing what it computes."""


class DataError(UsageError):
    """A data set that is missing, unreadable or not what the recipe says."""


class CellFailed(RuntimeError):
    """One cell of the benchmark went wrong (diverged, ran out of memory); the others go on."""


class OutOfTime(Exception):
    """The time limit came. Everything is saved, and the same command continues."""


@contextmanager
def explain_out_of_memory(where: str, images: int, remedy: str, kind: type[Exception] = CellFailed) -> Iterator[None]:
    """Raise CellFailed for an out-of-memory error of torch and suggest a batch that may fit; sizes never shrink alone.

    where says what ran ("in training"), with how many images at a time; remedy names the recipe line or flag to change;
    kind replaces CellFailed where the user named the batch on the command line.
    """
    import torch  # here, because errors are also raised where torch is never loaded

    try:
        yield
    except RuntimeError as error:
        on_gpu = isinstance(error, torch.OutOfMemoryError)
        if not on_gpu and "can't allocate memory" not in str(error):
            raise
        memory = "GPU memory" if on_gpu else "memory"
        raise kind(
            f"out of {memory} {where} with {images} images at a time; {images // 2 or 1} may fit: {remedy}"
        ) from error
