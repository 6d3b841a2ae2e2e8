"""The errors that tpbench raises. Each has a message of one line that a user can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def one_line(text: str) -> str:
    """The text with spaces in place of its line breaks."""
    return " ".join(text.splitlines())


def in_short(error: BaseException, limit: int = 300) -> str:
    """An error's message in one line of at most `limit` characters."""
    return " ".join(str(error).split())[:limit]


class UsageError(ValueError):
    """A request that cannot be carried out: unknown name, unreachable budget, wrong folder (exit code 2).

    Its message stays one line, whatever the names and files that it quotes contain.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class ScheduleError(UsageError):
    """A budget that cannot be reached, or a schedule that cannot be read."""


class Unreachable(ScheduleError):
    """A valid budget that a method cannot meet. The message names the nearest budget that it can meet."""


class UnsupportedModel(UsageError):
    """A model whose tokens cannot be reduced without changing what it computes."""


class DataError(UsageError):
    """A data set that is missing, unreadable or different from what the recipe describes."""


class CellFailed(RuntimeError):
    """One cell of the benchmark failed (diverged, ran out of memory). The other cells still run."""


class Diverged(CellFailed):
    """The training loss is no longer finite."""


class OutOfTime(Exception):
    """The time limit was reached. Everything is saved, and the same command continues."""


@contextmanager
def explain_out_of_memory(where: str, images: int, remedy: str, kind: type[Exception] = CellFailed) -> Iterator[None]:
    """Turn torch's out-of-memory errors into CellFailed and suggest a batch that may fit. Nothing shrinks by itself.

    where names what ran ("in training") and images how many it took at a time; remedy names the recipe line or flag to
    change; kind is raised instead of CellFailed where the user chose the batch on the command line.
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
